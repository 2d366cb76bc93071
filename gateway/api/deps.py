"""What the admin routes depend on: the objects they use, and the keys they ask for.

A route names what it needs (`store: StoreOf`). `provide` says, once for an application, which object that is.
"""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from gateway.api.key_holder import KeyHolder
from gateway.auth.keyring import Keyring
from gateway.config import Settings
from gateway.console.feed import Feed
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


class Described(SecurityBase):
    """A `KeyHolder` as a dependency that OpenAPI describes."""

    def __init__(self, holder: KeyHolder) -> None:
        self.model = HTTPBearer(description="a key; for /admin/* the admin token, or an admin's key")
        self.scheme_name = "Key"
        self._holder = holder

    def __call__(self, request: Request) -> None:
        """Raises Unauthorized or Forbidden."""
        self._holder(request)


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
