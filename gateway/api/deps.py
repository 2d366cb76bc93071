"""What the admin routes depend on: the objects they use, and the keys they ask for.

A route names what it needs (`store: StoreOf`). `provide` says, once for an application, which object that is.
"""

import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from gateway.auth.keyring import Keyring
from gateway.auth.keys import Key
from gateway.auth.origins import require_local_host
from gateway.auth.scope import Role
from gateway.auth.tokens import credentials_in, is_session, token_in
from gateway.config import Settings
from gateway.console.feed import Feed
from gateway.documents.layout import FOLDER_KINDS
from gateway.errors import Forbidden, Unauthorized
from gateway.jobs import Job, Jobs, Progress, Result
from gateway.observability.check.gather import ProductionCheck
from gateway.observability.collector import MetricsCollector
from gateway.observability.health import Health
from gateway.vectorstore import VectorStore


def provide(app: FastAPI, *provided: object) -> None:
    """Make each of `provided` the object that routes of `app` get where they name its type."""
    for each in provided:
        app.dependency_overrides[Needs(type(each))] = _Provides(each)


class Needs:
    """A dependency on the one object of `kind`; equal to any other on the same type."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Needs) and other._kind is self._kind

    def __hash__(self) -> int:
        return hash(self._kind)

    async def __call__(self) -> object:
        raise LookupError(f"{self._kind.__name__} is not provided: see gateway.api.app")


class _Provides:
    def __init__(self, provided: object) -> None:
        self._provided = provided

    async def __call__(self) -> object:
        return self._provided


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


class KeyHolder(SecurityBase):
    """Lets holders of a key pass that has at least `role` and sees everything.

    In a session of the console, readers see the routes of `_READERS_SEE`. With a header, /admin/ is for admins alone.
    """

    def __init__(
        self, keyring: Keyring, role: Role, *, anonymous: bool = False, local_hosts_only: bool = False
    ) -> None:
        """`anonymous`: requests without a key pass too. `local_hosts_only`: if their `Host` names this machine."""
        self.model = HTTPBearer(description="a key; for /admin/* the admin token, or an admin's key")
        self.scheme_name = "Key"
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


StoreOf = Annotated[VectorStore, Depends(Needs(VectorStore))]
JobsOf = Annotated[Jobs, Depends(Needs(Jobs))]
HealthOf = Annotated[Health, Depends(Needs(Health))]
SettingsOf = Annotated[Settings, Depends(Needs(Settings))]
CheckOf = Annotated[ProductionCheck, Depends(Needs(ProductionCheck))]
CollectorOf = Annotated[MetricsCollector, Depends(Needs(MetricsCollector))]
KeyringOf = Annotated[Keyring, Depends(Needs(Keyring))]
FeedOf = Annotated[Feed, Depends(Needs(Feed))]
ScraperOf = Annotated[KeyHolder, Depends(Needs(KeyHolder))]
"""The keys that `/metrics` and the names in `/readyz` ask for."""


class _Operator:
    """Starts the operations of a vector store as jobs."""

    def __init__(self, store: VectorStore, jobs: Jobs) -> None:
        self.store, self.operations, self._jobs = store, store.operations, jobs

    async def begin(
        self,
        kind: str,
        subject: str,
        work: Callable[[Progress], Coroutine[Any, Any, Result]],
        *,
        read_only: bool = False,
    ) -> Job:
        """Start a job. Raises Conflict if another one runs, unless this one is `read_only`."""
        if not read_only:
            self.operations.require_idle()
        job = self._jobs.start(kind, subject, work)
        await job.begun()
        return job


async def _operator(store: StoreOf, jobs: JobsOf) -> _Operator:
    return _Operator(store, jobs)


Operator = Annotated[_Operator, Depends(_operator)]
