"""Which headers a proxy passes on. Pure.

Hop-by-hop headers, and those that `Connection` names, belong to one connection and are dropped (RFC 9110 §7.6.1).
Names are compared in lower case. All other headers keep their order, case and repetition.
"""

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

# The gateway answers `expect` itself. `content-length` stays: it frames the same body on the next hop.
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
    """A request's headers for Chroma."""
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
    # Without Host or Content-Length Chroma would frame the message in another way, so these stay: request smuggling.
    return {name.strip().lower() for name in connection.split(b",")} - _FRAMING
