"""`/healthz`, `/readyz`, `/metrics` and `/admin/status`. Phases and their texts are in `gateway.vectorstore`."""

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from gateway.api import probes
from gateway.api.deps import CollectorOf, HealthOf, ScraperOf
from gateway.api.status import Status
from gateway.observability.collector import CONTENT_TYPE
from gateway.vectorstore import Phase


class Alive(BaseModel):
    status: str = Field(description="`ok`: this process works; says nothing of Chroma")


class Ready(BaseModel):
    status: str = Field(description="`ready`: Chroma is up, restored, and every collection was read once")
    warnings: list[str] = Field(description="what an operator should know although everything else works")
    unreadable: dict[str, str] | None = Field(
        None,
        description="a handful of the collections that cannot be read, and why; all others are served",
        examples=[None],
    )


class NotReady(BaseModel):
    error: str = Field(description="`Unavailable`")
    message: str = Field(description="why, in one sentence")
    phase: str = Field(
        description="one of " + ", ".join(f"`{phase.value}`" for phase in Phase if phase is not Phase.READY)
    )
    bytes_done: int | None = Field(None, description="of a restore: how much is fetched and verified")
    bytes_total: int | None = Field(None, description="of a restore: how much there is")
    collections_done: int | None = Field(None, description="while every collection is read once: how many were")
    collections_total: int | None = Field(None, description="while every collection is read once: how many there are")
    unreadable: dict[str, str] | None = Field(
        None,
        description="a handful of the collections that cannot be read, and why",
        examples=[{"notes": "its index is torn"}],
    )


public = APIRouter(tags=["health"])
scraped = APIRouter(tags=["metrics"])
admin = APIRouter(prefix="/admin", tags=["status"])


@public.get("/healthz", summary="Is the gateway's process alive?", response_model=Alive)
async def healthz() -> Response:
    return probes.alive()


@public.get(
    "/readyz",
    summary="Is the data being served?",
    response_model=Ready,
    responses={503: {"model": NotReady, "description": "not yet, or none of it"}},
)
async def readyz(request: Request, health: HealthOf, scraper: ScraperOf) -> Response:
    """503 with the reason as long as it is not, and how far a start has come.

    Collections that cannot be read are a warning as long as any other is served.
    """
    return probes.readiness(health, sees_names=scraper.lets_pass(request))


@scraped.get(
    "/metrics",
    summary="What Prometheus asks for",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus text"}},
)
async def metrics(collector: CollectorOf) -> Response:
    """Where the data path wants keys, so does this: one of any role that sees everything."""
    return Response(await collector.render(), media_type=CONTENT_TYPE)


@admin.get(
    "/status",
    summary="What an operator asks first",
    response_model=None,
    responses={200: {"model": Status, "description": "also while it is not ready"}},
)
async def status(health: HealthOf) -> dict[str, Any]:
    """Version, readiness, gate, Chroma, what is under way, data directory, store and last snapshot."""
    return await health.status()
