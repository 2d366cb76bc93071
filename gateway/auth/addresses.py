"""Which address a request comes from. Pure.

A client can write anything into `X-Forwarded-For`, and each proxy appends the address that it got the request from.
So the header is read from its right end, for as long as the sender is a trusted proxy. The first address that is not a
trusted proxy is the client.
"""

import ipaddress
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOST_BITS = 64
# More than any chain of proxies has. The header may be long, and each address in it takes time to parse.
_MAX_HOPS = 16


def networks(text: str) -> tuple[Network, ...]:
    """Parse a list such as `10.0.0.0/8,::1`. Raises ValueError."""
    return tuple(ipaddress.ip_network(each.strip()) for each in text.split(",") if each.strip())


def client_address(peer: str, forwarded_for: bytes | None, trusted: Iterable[Network]) -> str:
    """The address of the client whose request came from `peer`.

    `forwarded_for` is the value of all `X-Forwarded-For` headers, joined by commas.
    """
    trusted = tuple(trusted)
    listed = forwarded_for.decode("latin-1").rsplit(",", _MAX_HOPS)[-_MAX_HOPS:] if forwarded_for else []
    hops = [each.strip() for each in listed]
    address = peer
    while hops and _is_one_of(address, trusted):
        previous = _parse(hops.pop())
        if previous is None:
            break
        address = previous
    return address


def counted_as(address: str) -> str:
    """The address that a limit counts for. Of IPv6 it is the /64 network: its owner can use 2^64 addresses."""
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
    """Whether a server that listens on `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_private(address: str) -> bool:
    """Whether `address` is of a private network, such as that of a container engine. False if it is no address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_private


def _is_one_of(address: str, trusted: tuple[Network, ...]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in network for network in trusted)


def _parse(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        return None
