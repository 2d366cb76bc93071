"""Which page sent a request, as far as a browser tells. Pure.

A browser sends cookies along with requests that pages of other origins make it send. It says with each request where
that came from: `Sec-Fetch-Site`, over HTTPS and to loopback, and `Origin` with all that may change something. A
page can forge neither.

A page can choose the name by which it asks. Its owner lets a name of its own resolve to 127.0.0.1 (*DNS rebinding*).
Then the browser takes the gateway for that page's own server. Such a request has that name in `Host`.
"""

import re
from collections.abc import Iterable

from gateway.errors import Forbidden

_SAFE_METHODS = (b"GET", b"HEAD")
_OTHER_ORIGIN = (b"cross-site", b"same-site")
# Nobody can let these resolve to another address: addresses, names that browsers resolve to loopback themselves
# (RFC 6761), and names that container engines give to the machine they run on (`.internal` is reserved).
_LOCAL_HOST = re.compile(
    rb"(?:[0-9.]+|\[[0-9a-f:.]+\]|(?:[a-z0-9_.-]+\.)?localhost|host\.(?:docker|containers)\.internal)\.?(?::[0-9]*)?",
    re.IGNORECASE,
)


def is_same_origin(method: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a browser would send this only for a page of the origin that it asks. Header names are in lower case.

    A read without both headers counts: over plain HTTP to another machine browsers send neither, and what other pages
    make them read they cannot see.
    """
    found = dict(headers)
    site, origin = found.get(b"sec-fetch-site"), found.get(b"origin")
    if site is not None:
        return site == b"same-origin"
    if origin is None:
        return method in _SAFE_METHODS
    return _is_origin_of_host(origin, found)


def is_cross_origin(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a browser says that a page of another origin sent this. Header names are in lower case."""
    found = dict(headers)
    site, origin = found.get(b"sec-fetch-site"), found.get(b"origin")
    if site is not None:
        return site in _OTHER_ORIGIN
    return origin is not None and not _is_origin_of_host(origin, found)


def require_local_host(host: bytes | None) -> None:
    """Raise Forbidden if `Host` is a name that a page may have chosen for DNS rebinding. None: there is no `Host`.

    Browsers always send it. Any IP address will do: it is not resolved, so no page can choose where it leads.
    """
    if host is not None and _LOCAL_HOST.fullmatch(host) is None:
        raise Forbidden(
            f"requests without a key must name this machine, and their Host is {host[:100].decode('latin-1')!r}",
            "connect to 127.0.0.1 or localhost, send a key, or set GATEWAY_ALLOW_ANONYMOUS=true",
        )


def _is_origin_of_host(origin: bytes, headers: dict[bytes, bytes]) -> bool:
    return origin.partition(b"://")[2].lower() == headers.get(b"host", b"").lower() != b""
