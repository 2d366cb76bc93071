"""Keys for the gateway's own routes, as FastAPI dependencies."""

from fastapi import Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from gateway.auth.keyring import Keyring
from gateway.auth.keys import Key
from gateway.auth.scope import Role
from gateway.auth.tokens import token_in
from gateway.errors import Forbidden, Unauthorized

_HINT = "send the header 'Authorization: Bearer <admin token>', which is in GATEWAY_ADMIN_TOKEN or ./var/admin-token"


class KeyHolder(SecurityBase):
    """Lets holders of a key pass that has at least `role` and sees everything."""

    def __init__(self, keyring: Keyring, role: Role, *, anonymous: bool = False) -> None:
        self.model = HTTPBearer(description="a key; for /admin/* the admin token, or an admin's key")
        self.scheme_name = "Key"
        self._keyring, self._role, self._anonymous = keyring, role, anonymous

    def __call__(self, request: Request) -> Key | None:
        """The key, None for somebody without one who may pass too. Raises Unauthorized or Forbidden."""
        token = token_in(request.headers.raw)  # ASGI has the names in lower case
        if token is None:
            if self._anonymous:
                return None
            raise Unauthorized("no key was given", _HINT)
        try:
            key = self._keyring.find(token)
        except Unauthorized as error:
            if self._anonymous:
                return None
            raise Unauthorized(error.message, _HINT) from None
        request.state.key = key  # before it is refused: the audit tells of that too
        if key.role < self._role or not key.scope.everything:
            raise Forbidden(
                f"this key is a {key.role.name.lower()}'s{'' if key.scope.everything else ' for a part of the data'}",
                f"this wants the key of {'an admin' if self._role is Role.ADMIN else 'somebody who sees everything'}",
            )
        return key

    def lets_pass(self, request: Request) -> bool:
        """Whether a call would raise nothing."""
        try:
            self(request)
        except (Unauthorized, Forbidden):
            return False
        return True
