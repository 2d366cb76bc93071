"""Whether a page of the gateway itself sent a request. Pure.

A browser sends cookies along with requests that pages of other origins make it send. It says with each request where
that came from: `Sec-Fetch-Site`, over HTTPS and to loopback, and `Origin` with all that may change something. A
page can forge neither.
"""

from collections.abc import Iterable

_SAFE_METHODS = (b"GET", b"HEAD")


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
    return origin.partition(b"://")[2].lower() == found.get(b"host", b"").lower() != b""
