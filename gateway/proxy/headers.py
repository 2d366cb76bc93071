"""Which headers a proxy passes on. Pure.

RFC 9110 §7.6.1: hop-by-hop headers, and those that `Connection` names, belong to one connection.
Names are compared in lower case; order, case and repetition of the rest are kept.
"""

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

# `expect` is answered by our own server; `content-length` frames the same body on the next hop.
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_NOT_UPSTREAM = _HOP_BY_HOP | {b"expect"}
_FRAMING = frozenset((b"content-length", b"host"))


def for_upstream(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """A request's headers (names in lower case, as ASGI gives them) for the next hop."""
    return _without(headers, _NOT_UPSTREAM)


def for_client(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """A response's headers for the client."""
    return _without(headers, _HOP_BY_HOP)


def _without(headers: Iterable[tuple[bytes, bytes]], dropped: frozenset[bytes]) -> Headers:
    kept, named = [], None
    for name, value in headers:
        lower = name.lower()
        if lower in dropped:
            if lower == b"connection" and value.lower() not in (b"keep-alive", b"close"):
                named = _named_by(value) | (named or set())
            continue
        kept.append((name, value))
    return [pair for pair in kept if pair[0].lower() not in named] if named else kept


def _named_by(connection: bytes) -> set[bytes]:
    # A client that names Host or Content-Length here tries to unframe its own message.
    return {name.strip().lower() for name in connection.split(b",")} - _FRAMING
