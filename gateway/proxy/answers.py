"""The gateway's own answers as bytes for the wire, in Chroma's shape. Pure."""

import json
from http import HTTPStatus

from gateway.errors import GatewayError

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def error_answer(error: GatewayError, request_id: bytes | None, *, close: bool, bare: bool) -> bytes:
    """A whole answer; `bare` leaves the body out, as HEAD wants it, and `close` says it is the last."""
    body = json.dumps(error.body()).encode()
    lines = [
        b"HTTP/1.1 %d %b\r\n" % (error.status, HTTPStatus(error.status).phrase.encode()),
        b"content-type: application/json\r\n",
        b"content-length: %d\r\n" % len(body),
    ]
    if error.retry_after_s is not None:
        lines.append(b"retry-after: %d\r\n" % error.retry_after_s)
    if request_id is not None:
        lines.append(b"x-request-id: %b\r\n" % request_id)
    if close:
        lines.append(b"connection: close\r\n")
    lines.append(b"\r\n")
    if not bare:
        lines.append(body)
    return b"".join(lines)
