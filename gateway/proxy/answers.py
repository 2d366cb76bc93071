"""The gateway's own answers as bytes for the wire, in Chroma's shape. Pure."""

import json
from http import HTTPStatus

from gateway.auth.access import Answer
from gateway.errors import GatewayError

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def error_answer(
    error: GatewayError, request_id: bytes | None, *, close: bool, bare: bool, extra: bytes = b""
) -> bytes:
    """A whole answer; `bare` leaves the body out, as HEAD wants it, and `close` says it is the last."""
    body = json.dumps(error.body()).encode()
    lines = [
        b"HTTP/1.1 %d %b\r\n" % (error.status, HTTPStatus(error.status).phrase.encode()),
        b"content-type: application/json\r\n",
        b"content-length: %d\r\n" % len(body),
    ]
    if error.retry_after_s is not None:
        lines.append(b"retry-after: %d\r\n" % error.retry_after_s)
    if error.status == 401:
        lines.append(b"www-authenticate: Bearer\r\n")
    if request_id is not None:
        lines.append(b"x-request-id: %b\r\n" % request_id)
    if extra:
        lines.append(extra)
    if close:
        lines.append(b"connection: close\r\n")
    lines.append(b"\r\n")
    if not bare:
        lines.append(body)
    return b"".join(lines)


def own_answer(answer: Answer, request_id: bytes, *, close: bool, bare: bool, extra: bytes = b"") -> bytes:
    """A whole answer with the headers that Chroma gives its own."""
    lines = [b"HTTP/1.1 %d %b\r\n" % (answer.status, HTTPStatus(answer.status).phrase.encode())]
    if answer.body:
        lines.append(b"content-type: application/json\r\n")
    if answer.status >= 400:
        lines.append(_NO_TRACE)
    lines.append(b"content-length: %d\r\nx-request-id: %b\r\n" % (len(answer.body), request_id))
    if extra:
        lines.append(extra)
    if close:
        lines.append(b"connection: close\r\n")
    lines.append(b"\r\n")
    if not bare:
        lines.append(answer.body)
    return b"".join(lines)


# Chroma's, where nobody collects its traces.
_NO_TRACE = b"chroma-trace-id: 00000000000000000000000000000000\r\n"


def allow_origin(origin: bytes) -> bytes:
    """What lets a page of `origin` read an answer. One exact origin, never `*`."""
    return (
        b"access-control-allow-origin: %b\r\nvary: Origin\r\n"
        b"access-control-expose-headers: x-request-id, retry-after\r\n" % origin
    )


def preflight(origin: bytes) -> bytes:
    """What a browser asks before it sends anything unusual. Without the empty line at its end."""
    return (
        b"HTTP/1.1 204 No Content\r\n%b"
        b"access-control-allow-methods: GET, POST, PUT, PATCH, DELETE\r\n"
        b"access-control-allow-headers: Authorization, Content-Type, X-Chroma-Token, X-Request-Id, Traceparent\r\n"
        b"access-control-max-age: 600\r\n" % allow_origin(origin)
    )


def ended_head(head: bytes, request_id: bytes, *, close: bool, bare: bool) -> bytes:
    """An answer that has no body: `head` and the empty line."""
    last = b"connection: close\r\n" if close else b""
    return b"%bx-request-id: %b\r\n%b\r\n" % (head, request_id, last)
