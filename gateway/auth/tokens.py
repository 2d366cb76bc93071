"""Tokens: how they look, where a request carries them, and their digest. Pure but for `new_token`.

A token is `cgw_<id>_<secret>`: the id finds the key, so that looking for one costs the same among ten keys and
ten thousand, and the secret has 256 random bits. So SHA-256 is the right hash: a slow one protects what people
think up, and would only make strangers' attempts expensive for us.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable

from gateway.errors import Unauthorized

_TOKEN = re.compile(r"cgw_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_TOKEN_BYTES = 1024
_HINT = "send the header 'Authorization: Bearer <key>' or 'X-Chroma-Token: <key>', once"

AUTHORIZATION, CHROMA_TOKEN = b"authorization", b"x-chroma-token"
CREDENTIALS = frozenset((AUTHORIZATION, CHROMA_TOKEN))
"""Header names, in lower case, that are for the gateway alone."""


def new_token() -> str:
    """A token that nobody can guess."""
    return f"cgw_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"


def id_of(token: str) -> str | None:
    """The part that finds the key; None if this cannot be one of our tokens."""
    match = _TOKEN.fullmatch(token)
    return match[1] if match else None


def digest_of(token: str) -> str:
    """`sha256:<64 hex digits>`, as keys files have it."""
    return "sha256:" + hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def is_digest(text: str) -> bool:
    """Whether `text` looks like the result of `digest_of`."""
    return _DIGEST.fullmatch(text) is not None


def token_in(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The one token in a request's headers (names in lower case), None if there is none.

    `X-Chroma-Token` goes before `Authorization`, which a platform in front may use for its own purposes. Raises
    Unauthorized for what could be understood in two ways.
    """
    bearer: list[bytes] = []
    chroma: list[bytes] = []
    for name, value in headers:
        if name == AUTHORIZATION:
            bearer.append(value)
        elif name == CHROMA_TOKEN:
            chroma.append(value)
    if len(chroma) > 1 or len(bearer) > 1:
        raise Unauthorized("a key was given twice", _HINT)
    if chroma:
        return _plain(chroma[0])
    if not bearer:
        return None
    scheme, _, rest = bearer[0].partition(b" ")
    if scheme.lower() != b"bearer":
        raise Unauthorized("the Authorization header is not a bearer token", _HINT)
    return _plain(rest)


def _plain(value: bytes) -> str:
    token = value.strip(b" \t")
    if not token or len(token) > _MAX_TOKEN_BYTES or not token.isascii():
        raise Unauthorized("the key that was given cannot be one", _HINT)
    return token.decode("ascii")
