"""How long anybody may keep us waiting, and how much there may be of anything. Pure."""

from dataclasses import dataclass

_KEEP_ALIVE_S = 75.0


@dataclass(frozen=True)
class ProxyLimits:
    """The settings behind it are explained in README.md."""

    client_timeout_s: float
    queue_timeout_s: float
    read_timeout_s: float
    max_body_bytes: int
    max_in_flight: int
    max_queued: int
    keep_alive_s: float = _KEEP_ALIVE_S
