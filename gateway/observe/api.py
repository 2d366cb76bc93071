"""`/healthz`, `/readyz` and `/admin/status`."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from gateway.errors import Unavailable
from gateway.observe.health import Health


class Alive(BaseModel):
    status: str = Field(description="`ok`: this process works; says nothing of Chroma")


class Ready(BaseModel):
    status: str = Field(description="`ready`: Chroma is up, restored, and every collection was read")
    warnings: list[str] = Field(description="what an operator should know although everything works")


def _health(request: Request) -> Health:
    health: Health = request.app.state.health
    return health


public = APIRouter(tags=["health"])
admin = APIRouter(prefix="/admin", tags=["status"])


@public.get("/healthz", summary="Is the gateway's process alive?")
async def healthz() -> Alive:
    return Alive(status="ok")


@public.get("/readyz", summary="Is all data being served?")
async def readyz(request: Request) -> Ready:
    """503 with the reason as long as it is not."""
    if reason := _health(request).why_not_ready():
        raise Unavailable(reason)
    return Ready(status="ready", warnings=_health(request).warnings)


@admin.get("/status", summary="What an operator asks first")
async def status(request: Request) -> dict[str, Any]:
    """Version, readiness, gate, Chroma, what is under way, data directory, store and last snapshot."""
    return await _health(request).status()
