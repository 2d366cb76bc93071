"""Message heads: parsed strictly, made ready for the next hop, and remembered.

A head is everything up to the empty line. Clients and Chroma repeat themselves, so what follows from a
head is worked out once for each distinct one: `parse_request` is a function of the bytes alone, and the
door keeps its results with what follows from the keys; `response_head` keeps its own latest results.
"""

import re
from functools import lru_cache
from typing import NamedTuple

import httptools

from gateway.auth.routes import Addressed, addressed
from gateway.auth.tokens import CREDENTIALS
from gateway.errors import HeadTooLarge, InvalidRequest
from gateway.proxy.classify import Kind, Route, classify
from gateway.proxy.framing import BadFraming, Body, Chunked, Counted, UntilClose
from gateway.proxy.headers import Headers, for_client, for_upstream

END_OF_HEAD = b"\r\n\r\n"
MAX_HEAD_BYTES = 64 * 1024
# Chroma's server takes no more (hyper, `DEFAULT_MAX_HEADERS`); thousands of empty ones cost us much to look at.
_MAX_HEADERS = 100
_OTHER_LINES = 2

# Longer ones are rare, and would let strangers fill the memory.
_REMEMBERED_BYTES = 2048
_REMEMBERED = 512

_PROBES = frozenset(
    f"/api/{version}/{name}".encode()
    for version in ("v1", "v2")
    for name in ("heartbeat", "healthcheck", "version", "pre-flight-checks")
)
# It is repeated in logs, in the audit and to Chroma.
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,200}")
_ELSEWHERE = (b"cross-site", b"same-site")
_NO_BODY_STATUSES = (204, 304)
_RETRIED = (Kind.READ, Kind.RECORD_READ)


class RequestHead(NamedTuple):
    """One request, but for its body."""

    for_chroma: bool
    """Whether it goes to Chroma; all else is the application's."""
    method: bytes
    what: str
    """Method and path, for people."""
    route: Route
    upstream: bytes
    """Request line and headers for the next hop; the forwarding headers and the empty line are still to come."""
    length_bytes: int | None
    chunked: bool
    keep_alive: bool
    old: bool
    """HTTP/1.0: no chunks, no 1xx."""
    expects_continue: bool
    forwarded_for: bytes | None
    request_id: bytes | None
    probe: bool
    """Asks whether Chroma lives: never queues behind data."""
    idempotent: bool
    to: Addressed
    path: bytes
    query: bytes
    credentials: tuple[tuple[bytes, bytes], ...]
    """The headers that may hold a token, with names in lower case. The next hop does not get them."""
    traceparent: bytes | None
    origin: bytes | None
    asks_method: bool
    """Whether it may be a browser's question before the request that matters."""
    of_another_page: bool
    """Whether a browser says that a page from elsewhere wants this."""

    def body(self) -> Body | None:
        """The body to come, None if there is none."""
        if self.chunked:
            return Chunked()
        return Counted(self.length_bytes) if self.length_bytes else None


class ResponseHead(NamedTuple):
    """One answer of Chroma's, but for its body."""

    status: int
    client: bytes
    """Status line and headers for the client; framing of a chunked body and the empty line are still to come."""
    length_bytes: int | None
    chunked: bool
    keep_alive: bool

    def body(self, method: bytes) -> Body:
        """The body that follows as the answer to a request of `method`."""
        if method == b"HEAD" or self.status in _NO_BODY_STATUSES:
            return Counted(0)
        if self.chunked:
            return Chunked()
        return UntilClose() if self.length_bytes is None else Counted(self.length_bytes)


class _Parts:
    """What httptools finds in a head."""

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
        # Asked any later, the parser may have forgotten: without a body the message is over by then.
        self.complete, self.keep_alive = True, self.parser.should_keep_alive()


def parse_request(raw: bytes) -> RequestHead:
    """Parse a client's head, with the empty line that ends it. Raises InvalidRequest, HeadTooLarge."""
    if raw.count(b"\r\n") > _MAX_HEADERS + _OTHER_LINES:
        raise HeadTooLarge(f"a request may have {_MAX_HEADERS} headers")
    parts = _Parts()
    parser = parts.parser = httptools.HttpRequestParser(parts)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # an offer that need not be taken up
    except httptools.HttpParserError as error:
        raise InvalidRequest(f"this is not a valid HTTP request: {error}") from None
    if not parts.complete:
        raise InvalidRequest("this is not a valid HTTP request: its head does not end where it seems to")
    version = parser.get_http_version()
    if version not in ("1.1", "1.0"):
        raise InvalidRequest(f"HTTP/{version} is not spoken here")
    method: bytes = parser.get_method()
    target = _origin_form(parts.target)
    path, _, query = target.partition(b"?")
    headers = [(name.lower(), value) for name, value in parts.headers]
    length_bytes, chunked = _framing(headers)
    if chunked and version == "1.0":
        raise InvalidRequest("HTTP/1.0 knows no Transfer-Encoding")
    route = classify(method.decode("ascii"), path)
    return RequestHead(
        for_chroma=path.startswith(b"/api/"),
        method=method,
        what=f"{method.decode('ascii')} {path.decode('latin-1')}",
        route=route,
        upstream=_request_lines(method, target, parts.headers, chunked=chunked),
        length_bytes=length_bytes,
        chunked=chunked,
        keep_alive=parts.keep_alive,
        old=version == "1.0",
        expects_continue=any(name == b"expect" and value.lower() == b"100-continue" for name, value in headers),
        forwarded_for=b", ".join(value for name, value in headers if name == b"x-forwarded-for") or None,
        request_id=next(
            (value for name, value in headers if name == b"x-request-id" and _REQUEST_ID.fullmatch(value)), None
        ),
        probe=method in (b"GET", b"HEAD") and path in _PROBES,
        idempotent=route.kind in _RETRIED,
        to=addressed(method.decode("ascii"), path),
        path=path,
        query=query,
        credentials=tuple(pair for pair in headers if pair[0] in CREDENTIALS),
        traceparent=next((value for name, value in headers if name == b"traceparent"), None),
        origin=next((value for name, value in headers if name == b"origin"), None),
        of_another_page=any(name == b"sec-fetch-site" and value in _ELSEWHERE for name, value in headers),
        asks_method=any(name == b"access-control-request-method" for name, _ in headers),
    )


def _origin_form(target: bytes) -> bytes:
    """`/path?query` of `http://host/path?query`, as a proxy passes it on (RFC 9112 §3.2.1); others as they are."""
    if target[:1] != b"/" and target[:8].lower().startswith((b"http://", b"https://")):
        return b"/" + target.partition(b"://")[2].partition(b"/")[2]
    return target


def _framing(headers: Headers) -> tuple[int | None, bool]:
    """Content-Length and whether it is chunked. Raises InvalidRequest for what could be understood in two ways."""
    lengths = [value for name, value in headers if name == b"content-length"]
    encodings = [value for name, value in headers if name == b"transfer-encoding"]
    if len(lengths) + len(encodings) > 1:
        raise InvalidRequest("Content-Length and Transfer-Encoding may be there once, and not both")
    if encodings:
        if encodings[0].lower() != b"chunked":
            raise InvalidRequest("the only Transfer-Encoding known here is 'chunked'")
        return None, True
    if not lengths:
        return None, False
    if not lengths[0].isdigit():
        raise InvalidRequest("Content-Length is not a number")
    return int(lengths[0]), False


# Of these the gateway sends its own, per connection and request; and keys are for the gateway alone.
_OURS = frozenset((b"x-forwarded-for", b"x-request-id")) | CREDENTIALS


def _request_lines(method: bytes, target: bytes, headers: Headers, *, chunked: bool) -> bytes:
    present = {name.lower(): value for name, value in headers}
    lines = [method, b" ", target, b" HTTP/1.1\r\n"]
    for name, value in for_upstream(headers):
        if name.lower() not in _OURS:
            lines += (name, b": ", value, b"\r\n")
    host = present.get(b"host")
    if host is None:
        lines.append(b"host: localhost\r\n")  # HTTP/1.0 may leave it out, HTTP/1.1 may not
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
        raise BadFraming("Chroma changed the protocol, unasked") from None
    except httptools.HttpParserError as error:
        raise BadFraming(str(error)) from None
    if not parts.complete:
        raise BadFraming("the head does not end where it seems to")
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


@lru_cache(_REMEMBERED)
def _remembered_response(raw: bytes) -> ResponseHead:
    return _parse_response(raw)


def response_head(raw: bytes) -> ResponseHead:
    """Parse Chroma's head, with the empty line that ends it. Raises BadFraming."""
    return _remembered_response(raw) if len(raw) <= _REMEMBERED_BYTES else _parse_response(raw)
