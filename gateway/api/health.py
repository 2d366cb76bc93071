"""`/healthz`, `/readyz`, `/metrics` and `/admin/status`."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from gateway.errors import Unavailable
from gateway.observability.collector import CONTENT_TYPE, MetricsCollector
from gateway.observability.health import Health


class Alive(BaseModel):
    status: str = Field(description="`ok`: this process works; says nothing of Chroma")


class Ready(BaseModel):
    status: str = Field(description="`ready`: Chroma is up, restored, and every collection was read")
    warnings: list[str] = Field(description="what an operator should know although everything works")


class NotReady(BaseModel):
    error: str = Field(description="`Unavailable`")
    message: str = Field(description="why, in one sentence")
    phase: str = Field(
        description=(
            "`refusing`, `preparing`, `restoring`, `waiting` (for the store), `starting`, `reading`, `unreadable`"
        )
    )
    bytes_done: int | None = Field(None, description="of a restore: how much is fetched and verified")
    bytes_total: int | None = Field(None, description="of a restore: how much there is")
    collections_done: int | None = Field(None, description="while every collection is read once: how many were")
    collections_total: int | None = Field(None, description="while every collection is read once: how many there are")
    unreadable: dict[str, str] | None = Field(None, description="what cannot be read, and why")


_IN_GENERAL = {
    "refusing": "requests are refused for a moment, as during a restore",
    "preparing": "Chroma is starting",
    "restoring": "a snapshot is being restored",
    "waiting": "the store does not answer yet",
    "starting": "Chroma is starting",
    "reading": "every collection is being read once",
    "read-only": "writes are refused: another gateway has the lease, or has had it",
    "unreadable": "{} collection(s) cannot be read; ask with a key to see which",
}


def _health(request: Request) -> Health:
    health: Health = request.app.state.health
    return health


public = APIRouter(tags=["health"])
scraped = APIRouter(tags=["metrics"])
admin = APIRouter(prefix="/admin", tags=["status"])


@public.get("/healthz", summary="Is the gateway's process alive?")
async def healthz() -> Alive:
    return Alive(status="ok")


@public.get(
    "/readyz",
    summary="Is all data being served?",
    responses={503: {"model": NotReady, "description": "not yet, or not all of it"}},
)
async def readyz(request: Request) -> Response:
    """503 with the reason as long as it is not, and how far a start has come."""
    health = _health(request)
    tells: Callable[[Request], bool] = request.app.state.tells_names
    if (reason := health.why_not_ready()) is None:
        warnings = health.warnings
        if warnings and not tells(request):
            warnings = [f"{len(warnings)}, for those who ask with a key"]
        return JSONResponse(Ready(status="ready", warnings=warnings).model_dump())
    progress = health.progress()
    if not tells(request):
        # Names of collections and of the store are for those who have a key that sees everything.
        reason, unreadable = _IN_GENERAL.get(progress["phase"], "Chroma is starting"), progress.pop("unreadable", {})
        reason = reason.format(len(unreadable))
    error = Unavailable(reason)
    return JSONResponse({**error.body(), **progress}, error.status, {"Retry-After": str(error.retry_after_s)})


@scraped.get(
    "/metrics",
    summary="What Prometheus asks for",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus text"}},
)
async def metrics(request: Request) -> Response:
    """Where the data path wants keys, so does this: one of any role that sees everything."""
    collector: MetricsCollector = request.app.state.collector
    return Response(await collector.render(), media_type=CONTENT_TYPE)


@admin.get("/status", summary="What an operator asks first")
async def status(request: Request) -> dict[str, Any]:
    """Version, readiness, gate, Chroma, what is under way, data directory, store and last snapshot."""
    return await _health(request).status()
