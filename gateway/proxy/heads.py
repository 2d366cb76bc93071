"""Message heads: parsed strictly, and rewritten for the next hop.

A head is everything up to the empty line. Clients and Chroma send the same heads again and again, so each distinct
head is parsed once: `RequestPolicy` caches what `parse_request` returns, and `parse_response` has a cache of its own.
"""

import re
from functools import lru_cache
from typing import NamedTuple

import httptools

from gateway.auth.ack import ACK
from gateway.auth.origins import is_cross_origin
from gateway.auth.tokens import CREDENTIALS, credentials_in
from gateway.chroma.routes import Kind, RouteMatch, match_route
from gateway.errors import HeadTooLarge, InvalidRequest
from gateway.proxy.framing import BadFraming, Body, Chunked, Counted, UntilClose
from gateway.proxy.headers import Headers, for_client, for_upstream

END_OF_HEAD = b"\r\n\r\n"
MAX_HEAD_BYTES = 64 * 1024
# As many as Chroma's server takes (hyper, `DEFAULT_MAX_HEADERS`). Thousands of empty headers are slow to parse.
_MAX_HEADERS = 100
_OTHER_LINES = 2  # the request line and the empty line

# Longer heads are rare, and would fill the memory.
_MAX_CACHED_HEAD_BYTES = 2048
_MAX_CACHED_HEADS = 512

# A request id is written to logs and to the audit, and sent to Chroma.
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,200}")
_NO_BODY_STATUSES = (204, 304)


class RequestHead(NamedTuple):
    """One request without its body."""

    for_chroma: bool
    """Whether it goes to Chroma. The ASGI application gets all others."""
    method: bytes
    what: str
    """Method and path, for messages."""
    route: RouteMatch
    upstream: bytes
    """Request line and headers for Chroma, without the forwarding headers and the empty line."""
    length_bytes: int | None
    chunked: bool
    keep_alive: bool
    http_1_0: bool
    """Such a client understands neither chunks nor 1xx."""
    expects_continue: bool
    forwarded_for: bytes | None
    request_id: bytes | None
    idempotent: bool
    """Whether Chroma may get it twice."""
    path: bytes
    query: bytes
    credentials: tuple[tuple[bytes, bytes], ...]
    """The headers that may hold a token, with names in lower case. Chroma does not get them."""
    traceparent: bytes | None
    origin: bytes | None
    has_request_method: bool
    """Whether it has `Access-Control-Request-Method`, as a browser's CORS preflight does."""
    cross_origin: bool
    """Whether a browser says that a page of another origin sent it (`Sec-Fetch-Site`, or `Origin` without it)."""
    host: bytes | None
    ack: bytes | None
    """The acknowledgement level that it asks for, not parsed. Chroma does not get it."""
    forwarded_proto: bytes | None
    """Of the last `X-Forwarded-Proto`, in lower case: by which protocol it came to a proxy in front."""
    user_agent: bytes | None

    def body(self) -> Body | None:
        """The body that follows, None if there is none."""
        if self.chunked:
            return Chunked()
        return Counted(self.length_bytes) if self.length_bytes else None


class ResponseHead(NamedTuple):
    """One response of Chroma without its body."""

    status: int
    client: bytes
    """Status line and headers for the client, without `Transfer-Encoding` and the empty line."""
    length_bytes: int | None
    chunked: bool
    keep_alive: bool

    def body(self, method: bytes) -> Body:
        """The body that follows in the response to a request of `method`."""
        if method == b"HEAD" or self.status in _NO_BODY_STATUSES:
            return Counted(0)
        if self.chunked:
            return Chunked()
        return UntilClose() if self.length_bytes is None else Counted(self.length_bytes)


class _Parts:
    """Collects what httptools finds in a head."""

    def __init__(self) -> None:
        self.target = self.reason = b""
        self.headers: Headers = []
        self.complete = self.keep_alive = False
        self.parser: httptools.HttpRequestParser | httptools.HttpResponseParser

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        # Only now: a message without a body is over right after its head, and the parser resets this then.
        self.complete, self.keep_alive = True, self.parser.should_keep_alive()


def parse_request(raw: bytes) -> RequestHead:
    """Parse a client's head, including the empty line. A function of the bytes alone.

    Raises InvalidRequest or HeadTooLarge.
    """
    if raw.count(b"\r\n") > _MAX_HEADERS + _OTHER_LINES:
        raise HeadTooLarge(f"a request may have {_MAX_HEADERS} headers")
    parts = _Parts()
    parser = parts.parser = httptools.HttpRequestParser(parts)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # the gateway ignores offers to change the protocol
    except httptools.HttpParserError as error:
        raise InvalidRequest(f"this is not a valid HTTP request: {error}") from None
    if not parts.complete:
        raise InvalidRequest("this is not a valid HTTP request: its head does not end at the empty line")
    version = parser.get_http_version()
    if version not in ("1.1", "1.0"):
        raise InvalidRequest(f"HTTP/{version} is not supported")
    method: bytes = parser.get_method()
    target = _origin_form(parts.target)
    path, _, query = target.partition(b"?")
    headers = [(name.lower(), value) for name, value in parts.headers]
    present = dict(headers)
    length_bytes, chunked = _framing(headers)
    if chunked and version == "1.0":
        raise InvalidRequest("HTTP/1.0 has no Transfer-Encoding")
    route = match_route(method.decode("ascii"), path)
    return RequestHead(
        for_chroma=path.startswith(b"/api/"),
        method=method,
        what=f"{method.decode('ascii')} {path.decode('latin-1')}",
        route=route,
        upstream=_request_lines(method, target, parts.headers, chunked=chunked),
        length_bytes=length_bytes,
        chunked=chunked,
        keep_alive=parts.keep_alive,
        http_1_0=version == "1.0",
        expects_continue=any(name == b"expect" and value.lower() == b"100-continue" for name, value in headers),
        forwarded_for=b", ".join(value for name, value in headers if name == b"x-forwarded-for") or None,
        request_id=next(
            (value for name, value in headers if name == b"x-request-id" and _REQUEST_ID.fullmatch(value)), None
        ),
        idempotent=route.kind is not Kind.WRITE,
        path=path,
        query=query,
        credentials=credentials_in(method, headers),
        traceparent=next((value for name, value in headers if name == b"traceparent"), None),
        origin=next((value for name, value in headers if name == b"origin"), None),
        cross_origin=is_cross_origin(headers),
        host=present.get(b"host"),
        has_request_method=any(name == b"access-control-request-method" for name, _ in headers),
        ack=b", ".join(acks) if (acks := [value for name, value in headers if name == ACK]) else None,
        forwarded_proto=present[b"x-forwarded-proto"].lower() if b"x-forwarded-proto" in present else None,
        user_agent=present.get(b"user-agent"),
    )


def _origin_form(target: bytes) -> bytes:
    """`/path?query` of `http://host/path?query`, as a proxy sends it on (RFC 9112 §3.2.1). Others are unchanged."""
    if target[:1] != b"/" and target[:8].lower().startswith((b"http://", b"https://")):
        return b"/" + target.partition(b"://")[2].partition(b"/")[2]
    return target


def _framing(headers: Headers) -> tuple[int | None, bool]:
    """Content-Length, and whether the body is chunked. Raises InvalidRequest for ambiguous framing."""
    lengths = [value for name, value in headers if name == b"content-length"]
    encodings = [value for name, value in headers if name == b"transfer-encoding"]
    if len(lengths) + len(encodings) > 1:
        raise InvalidRequest("a request may have one Content-Length or one Transfer-Encoding, not both")
    if encodings:
        if encodings[0].lower() != b"chunked":
            raise InvalidRequest("the only Transfer-Encoding supported is 'chunked'")
        return None, True
    if not lengths:
        return None, False
    if not lengths[0].isdigit():
        raise InvalidRequest("Content-Length is not a number")
    return int(lengths[0]), False


# The gateway adds its own forwarding headers to each request, and keeps keys and its own headers to itself.
_NOT_PASSED_ON = frozenset((b"x-forwarded-for", b"x-request-id", ACK)) | CREDENTIALS


def _request_lines(method: bytes, target: bytes, headers: Headers, *, chunked: bool) -> bytes:
    present = {name.lower(): value for name, value in headers}
    lines = [method, b" ", target, b" HTTP/1.1\r\n"]
    for name, value in for_upstream(headers):
        if name.lower() not in _NOT_PASSED_ON:
            lines += (name, b": ", value, b"\r\n")
    host = present.get(b"host")
    if host is None:
        lines.append(b"host: localhost\r\n")  # optional in HTTP/1.0, required in HTTP/1.1
    elif b"x-forwarded-host" not in present:
        lines += (b"x-forwarded-host: ", host, b"\r\n")
    if b"x-forwarded-proto" not in present:
        lines.append(b"x-forwarded-proto: http\r\n")
    if chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    return b"".join(lines)


def _parse_response(raw: bytes) -> ResponseHead:
    parts = _Parts()
    parser = parts.parser = httptools.HttpResponseParser(parts)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        raise BadFraming("Chroma changed the protocol") from None
    except httptools.HttpParserError as error:
        raise BadFraming(str(error)) from None
    if not parts.complete:
        raise BadFraming("its head does not end at the empty line")
    status = parser.get_status_code()
    try:
        length_bytes, chunked = _framing([(name.lower(), value) for name, value in parts.headers])
    except InvalidRequest as error:
        raise BadFraming(error.message) from None
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, parts.reason)]
    for name, value in for_client(parts.headers):
        if name.lower() != b"x-request-id":
            lines += (name, b": ", value, b"\r\n")
    return ResponseHead(status, b"".join(lines), length_bytes, chunked, parts.keep_alive)


@lru_cache(_MAX_CACHED_HEADS)
def _cached_response(raw: bytes) -> ResponseHead:
    return _parse_response(raw)


def parse_response(raw: bytes) -> ResponseHead:
    """Parse the head of Chroma's response, including the empty line. Raises BadFraming."""
    return _cached_response(raw) if len(raw) <= _MAX_CACHED_HEAD_BYTES else _parse_response(raw)
