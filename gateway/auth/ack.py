"""When a write is answered: its acknowledgement level. Pure.

A key's level is the least that it gets. The level that a request asks for may be higher, and where the key has none it
may be lower than the gateway's own.
"""

from enum import StrEnum

from gateway.errors import InvalidRequest

ACK = b"x-gateway-ack"
"""The header with the level that a request asks for, in lower case. Chroma never gets it."""


class Ack(StrEnum):
    LOCAL = "local"
    """When Chroma has applied it."""
    STORED = "stored"
    """When the store has it too."""


def ack_level(default: Ack, of_key: Ack | None, asked: Ack | None) -> Ack:
    """The level of a write. `default` is the gateway's own, `asked` that of the request."""
    if of_key is Ack.STORED:
        return Ack.STORED
    return asked or of_key or default


def parse_ack(value: bytes | None) -> Ack | None:
    """The level in a header's value; None without the header. Raises InvalidRequest."""
    if value is None:
        return None
    try:
        return Ack(value.strip().lower().decode("ascii"))
    except ValueError:
        raise InvalidRequest(
            "the header X-Gateway-Ack has a value that is no acknowledgement level",
            "send it once, with local or stored",
        ) from None
