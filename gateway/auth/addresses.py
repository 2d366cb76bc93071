"""From which address a request really comes. Pure.

Anybody can write anything into `X-Forwarded-For`. What a proxy adds at its end is believed if the proxy is one of
ours; from there it goes left, as long as the next one is ours too. The first that is not is the client.
"""

import ipaddress
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOST_BITS = 64
# Nobody has more proxies one behind the other, and each that is told of costs time.
_MAX_HOPS = 16


def networks(text: str) -> tuple[Network, ...]:
    """`10.0.0.0/8,::1`. Raises ValueError."""
    return tuple(ipaddress.ip_network(each.strip()) for each in text.split(",") if each.strip())


def client_address(peer: str, forwarded_for: bytes | None, trusted: Iterable[Network]) -> str:
    """The address of whoever sent what `peer` brought. `forwarded_for` is all such headers, joined by commas."""
    trusted = tuple(trusted)
    told = forwarded_for.decode("latin-1").rsplit(",", _MAX_HOPS)[-_MAX_HOPS:] if forwarded_for else []
    hops = [each.strip() for each in told]
    address = peer
    while hops and _is_one_of(address, trusted):
        believed = _plain(hops.pop())
        if believed is None:
            break
        address = believed
    return address


def counted_as(address: str) -> str:
    """What limits by address go by: of IPv6 the network, for whoever has one address there has 2^64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, ipaddress.IPv6Address):
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(parsed) >> _HOST_BITS << _HOST_BITS))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_one_of(address: str, trusted: tuple[Network, ...]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in network for network in trusted)


def _plain(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        return None
