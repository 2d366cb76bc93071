"""Time limits and size limits of the data path. Pure."""

from dataclasses import dataclass

_KEEP_ALIVE_S = 75.0


@dataclass(frozen=True)
class ProxyLimits:
    """The settings `GATEWAY_CLIENT_TIMEOUT_S` and so on; docs/configuration.md says what each means.

    `queue_timeout_s` is GATEWAY_GATE_TIMEOUT_S, which is the gate's timeout too.
    """

    client_timeout_s: float
    queue_timeout_s: float
    read_timeout_s: float
    max_body_bytes: int
    max_in_flight: int
    max_queued: int
    keep_alive_s: float = _KEEP_ALIVE_S
