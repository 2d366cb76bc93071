"""Which holders of a key a route lets pass. Imports no FastAPI: probes are answered before that."""

import re

from starlette.requests import Request

from gateway.auth.keyring import Keyring
from gateway.auth.keys import Key
from gateway.auth.origins import require_local_host
from gateway.auth.scope import Role
from gateway.auth.tokens import credentials_in, is_session, token_in
from gateway.config import Settings
from gateway.documents.layout import FOLDER_KINDS
from gateway.errors import Forbidden, Unauthorized

_HINTS = {
    Role.ADMIN: "send the header 'Authorization: Bearer <admin token>', which is in GATEWAY_ADMIN_TOKEN or"
    " ./var/admin-token",
    Role.READER: "send the header 'Authorization: Bearer <key>' with a key that sees everything; a reader's will do",
}

_FOLDERS = "|".join(kind.path for kind in FOLDER_KINDS)
_READERS_SEE = re.compile(
    r"/admin/(?:status|check|history|databases|collections(?:/[^/]+)?|snapshot(?:/[^/]+)?|jobs(?:/[^/]+(?:/events)?)?"
    rf"|users/[^/]+/(?:image/?|avatars(?:/[^/]+/(?:{_FOLDERS})/?)?))"
)
"""Paths below /admin/ that a session of a reader's key may GET: what the console shows, and no document or archive."""


class KeyHolder:
    """Lets holders of a key pass that has at least `role` and sees everything.

    In a session of the console, readers see the routes of `_READERS_SEE`. With a header, /admin/ is for admins alone.
    """

    def __init__(
        self, keyring: Keyring, role: Role, *, anonymous: bool = False, local_hosts_only: bool = False
    ) -> None:
        """`anonymous`: requests without a key pass too. `local_hosts_only`: if their `Host` names this machine."""
        self._keyring, self._role, self._anonymous = keyring, role, anonymous
        self._local_hosts_only = local_hosts_only

    def __call__(self, request: Request) -> Key | None:
        """The key, None for somebody without one who may pass too. Raises Unauthorized or Forbidden."""
        # ASGI has the names in lower case.
        token = token_in(credentials_in(request.method.encode(), request.headers.raw))
        role = self._role
        reads = request.method in ("GET", "HEAD") and _READERS_SEE.fullmatch(request.scope["path"])
        if reads and token is not None and is_session(token):
            role = Role.READER
        if token is None:
            if self._anonymous:
                self._require_local_host(request)
                return None
            raise Unauthorized("no key was given", _HINTS[self._role])
        try:
            key = self._keyring.find(token)
        except Unauthorized as error:
            if self._anonymous:
                self._require_local_host(request)
                return None
            hint = error.hint if is_session(token) else _HINTS[self._role]
            raise Unauthorized(error.message, hint) from None
        request.state.key = key  # before it is refused: the audit tells of that too
        if key.role < role or not key.scope.everything:
            raise Forbidden(
                f"this key is a {key.role.name.lower()}'s{'' if key.scope.everything else ' for a part of the data'}",
                f"this wants the key of {'an admin' if role is Role.ADMIN else 'somebody who sees everything'}",
            )
        return key

    def _require_local_host(self, request: Request) -> None:
        if self._local_hosts_only:
            host = request.headers.get("host")
            require_local_host(host.encode("latin-1") if host is not None else None)

    def lets_pass(self, request: Request) -> bool:
        """Whether a call would raise nothing."""
        try:
            self(request)
        except (Unauthorized, Forbidden):
            return False
        return True


def scraper_of(settings: Settings, keyring: Keyring) -> KeyHolder:
    """Whom `/metrics` lets pass, and who sees names in `/readyz`."""
    return KeyHolder(keyring, Role.READER, anonymous=not settings.is_closed, local_hosts_only=settings.local_hosts_only)
