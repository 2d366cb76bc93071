"""Tokens: their format, where a request carries them, and their hash. Pure but for `new_token` and `new_session_token`.

A token is `cgw_<id>_<secret>`. The id finds the key, so a look-up takes the same time with ten keys and with ten
thousand. The secret has 256 random bits, so SHA-256 is the right hash: slow hashes protect passwords that can be
guessed, and here they would only let invalid requests use up CPU time.

A browser that signed in to the console sends a *session token* instead, in a cookie. It stands for the token that it
signed in with; see `gateway.auth.sessions`.
"""

import base64
import hashlib
import re
import secrets
from collections.abc import Iterable

from gateway.auth.origins import is_same_origin
from gateway.errors import Unauthorized

_TOKEN = re.compile(r"cgw_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_TOKEN_BYTES = 1024
_HINT = "send the header 'Authorization: Bearer <key>' or 'X-Chroma-Token: <key>', or the key as a password, once"

SESSION_COOKIE = "chroma-gateway-session"
TLS_SESSION_COOKIE = f"__Host-{SESSION_COOKIE}"
"""The name over TLS. Browsers take a cookie with this prefix from the very host only, not from its sibling domains."""
_SESSION = re.compile(r"cgs_[A-Za-z0-9_-]{43}")
_IN_COOKIE = re.compile(rb"(?:^|;)[ \t]*(__Host-)?%b=(cgs_[A-Za-z0-9_-]{43})[ \t]*(?=;|$)" % SESSION_COOKIE.encode())

AUTHORIZATION, CHROMA_TOKEN, COOKIE = b"authorization", b"x-chroma-token", b"cookie"
CREDENTIALS = frozenset((AUTHORIZATION, CHROMA_TOKEN, COOKIE))
"""Header names, in lower case, that Chroma never gets."""


def new_token() -> str:
    """A new random token."""
    return f"cgw_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"


def new_session_token() -> str:
    """A new random token of a session."""
    return f"cgs_{secrets.token_urlsafe(32)}"


def is_session(token: str) -> bool:
    """Whether `token` has the format of a session's."""
    return _SESSION.fullmatch(token) is not None


def id_of(token: str) -> str | None:
    """The id in `token`; None if it does not have the format of a token."""
    match = _TOKEN.fullmatch(token)
    return match[1] if match else None


def digest_of(token: str) -> str:
    """`sha256:<64 hex digits>`, as in a keys file."""
    return "sha256:" + hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def is_digest(text: str) -> bool:
    """Whether `text` has the format of `digest_of`."""
    return _DIGEST.fullmatch(text) is not None


def credentials_in(method: bytes, headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """The headers of a request (names in lower case) that may hold a token.

    A browser adds cookies to requests that any page sends, so that of a session counts only with a request of our own
    pages. Other cookies hold nothing.
    """
    headers = tuple(headers)
    return tuple(
        (name, value)
        for name, value in headers
        if name in CREDENTIALS
        and (name != COOKIE or (_IN_COOKIE.search(value) is not None and is_same_origin(method, headers)))
    )


def token_in(credentials: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The one token in what `credentials_in` found, None if there is none.

    `X-Chroma-Token` takes precedence over `Authorization`, which a platform in front may use for itself. With Basic
    authentication the token is the password, or the name where the password is empty. The cookie of a session counts
    where there is neither; see `_session_in`. Raises Unauthorized if a header is repeated or is not valid.
    """
    bearer: list[bytes] = []
    chroma: list[bytes] = []
    cookies: list[bytes] = []
    for name, value in credentials:
        if name == AUTHORIZATION:
            bearer.append(value)
        elif name == CHROMA_TOKEN:
            chroma.append(value)
        elif name == COOKIE:
            cookies.append(value)
    if len(chroma) > 1 or len(bearer) > 1:
        raise Unauthorized("a key was given twice", _HINT)
    if chroma:
        return _decoded(chroma[0])
    if not bearer:
        return _session_in(cookies)
    scheme, _, rest = bearer[0].partition(b" ")
    match scheme.lower():
        case b"bearer":
            return _decoded(rest)
        case b"basic":
            return _decoded(_password(rest))
        case _:
            raise Unauthorized("the Authorization header has neither a bearer token nor a password", _HINT)


def _session_in(cookies: Iterable[bytes]) -> str | None:
    """The token of a session in the values of `Cookie` headers.

    With the cookie for TLS the other one does not count. Of two with one name, none does: another server of the same
    domain may have set one of them, and the browser does not say which.
    """
    found = [match for value in cookies for match in _IN_COOKIE.finditer(value)]
    chosen = [match for match in found if match[1]] or found
    return chosen[0][2].decode() if len(chosen) == 1 else None


def _password(value: bytes) -> bytes:
    try:
        name, _, password = base64.b64decode(value.strip(b" \t"), validate=True).partition(b":")
    except ValueError:
        return b""
    return password or name


def _decoded(value: bytes) -> str:
    token = value.strip(b" \t")
    if not token or len(token) > _MAX_TOKEN_BYTES or not token.isascii():
        raise Unauthorized("the key is not valid", _HINT)
    return token.decode("ascii")
