"""The gateway's own responses as bytes for the wire, in Chroma's shape. Pure."""

import json
import struct
from http import HTTPStatus

from gateway.auth.access import StaticResponse
from gateway.errors import GatewayError

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_WHY_GONE = b"this gateway speaks HTTP/1.1; switch off HTTP/2 without TLS (h2c)"
_GOAWAY, _HTTP_1_1_REQUIRED = 7, 0xD
HTTP_2_GOAWAY = b"".join(
    (
        struct.pack(">xHBBI", 0, 4, 0, 0),  # an empty SETTINGS frame comes first
        struct.pack(">xHBBI", 8 + len(_WHY_GONE), _GOAWAY, 0, 0),
        struct.pack(">II", 0, _HTTP_1_1_REQUIRED),
        _WHY_GONE,
    )
)
"""The answer to a client that begins with HTTP/2 (RFC 9113 §3.4, §6.8): it may try again with HTTP/1.1."""
# Chroma sends this header with each error, with zeros where nothing collects its traces.
_NO_TRACE = b"chroma-trace-id: 00000000000000000000000000000000\r\n"


def error_response(
    error: GatewayError, request_id: bytes | None, *, close: bool, no_body: bool, extra_headers: bytes = b""
) -> bytes:
    """A complete response that reports `error`.

    `no_body` leaves the body out, as HEAD requires. `close` adds `Connection: close`.
    """
    body = json.dumps(error.body()).encode()
    lines = [
        _status_line(error.status),
        b"content-type: application/json\r\n",
        b"content-length: %d\r\n" % len(body),
    ]
    if error.retry_after_s is not None:
        lines.append(b"retry-after: %d\r\n" % error.retry_after_s)
    if error.status == 401:
        lines.append(b"www-authenticate: Bearer\r\n")
    if request_id is not None:
        lines.append(b"x-request-id: %b\r\n" % request_id)
    return _joined(lines, body, close=close, no_body=no_body, extra_headers=extra_headers)


def static_response(
    response: StaticResponse, request_id: bytes, *, close: bool, no_body: bool, extra_headers: bytes = b""
) -> bytes:
    """A complete response with the headers that Chroma sends with its own."""
    lines = [_status_line(response.status)]
    if response.body:
        lines.append(b"content-type: application/json\r\n")
    if response.status >= 400:
        lines.append(_NO_TRACE)
    lines.append(b"content-length: %d\r\nx-request-id: %b\r\n" % (len(response.body), request_id))
    return _joined(lines, response.body, close=close, no_body=no_body, extra_headers=extra_headers)


def cors_headers(origin: bytes) -> bytes:
    """Headers that let a page of `origin` read the response. One exact origin, never `*`."""
    return (
        b"access-control-allow-origin: %b\r\nvary: Origin\r\n"
        b"access-control-expose-headers: x-request-id, retry-after, x-gateway-position\r\n" % origin
    )


def preflight_head(origin: bytes) -> bytes:
    """The response to a browser's CORS preflight, without the empty line that ends a head."""
    return (
        b"HTTP/1.1 204 No Content\r\n%b"
        b"access-control-allow-methods: GET, POST, PUT, PATCH, DELETE\r\n"
        b"access-control-allow-headers:"
        b" Authorization, Content-Type, X-Chroma-Token, X-Request-Id, X-Gateway-Ack, Traceparent\r\n"
        b"access-control-max-age: 600\r\n" % cors_headers(origin)
    )


def empty_response(head: bytes, request_id: bytes, *, close: bool, no_body: bool) -> bytes:
    """A complete response without a body: `head`, the request id and the empty line."""
    last = b"connection: close\r\n" if close else b""
    return b"%bx-request-id: %b\r\n%b\r\n" % (head, request_id, last)


def _status_line(status: int) -> bytes:
    return b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode())


def _joined(lines: list[bytes], body: bytes, *, close: bool, no_body: bool, extra_headers: bytes) -> bytes:
    if extra_headers:
        lines.append(extra_headers)
    if close:
        lines.append(b"connection: close\r\n")
    lines.append(b"\r\n")
    if not no_body:
        lines.append(body)
    return b"".join(lines)
