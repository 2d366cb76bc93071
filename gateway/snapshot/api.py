"""`/admin/snapshot*`, `/admin/quiesce`, `/admin/resume`."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from gateway.errors import InvalidRequest
from gateway.snapshot.collect import Collected
from gateway.snapshot.model import Snapshot
from gateway.snapshot.operations import Operations

SnapshotId = Annotated[str, Path(description="a snapshot's id, or `latest`", examples=["20261120T210455Z-3f9a1c"])]
Wait = Annotated[bool, Query(description="wait for the end; `false` is not available yet")]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TakeSnapshot(_Asked):
    label: str | None = Field(None, max_length=200, description="what to call it, for people")


class Quiesce(_Asked):
    ttl_s: float = Field(
        60, gt=0, le=3600, allow_inf_nan=False, description="writes go on after so many seconds, resumed or not"
    )


class SnapshotList(BaseModel):
    snapshots: list[Snapshot] = Field(description="newest first")


class Quiesced(BaseModel):
    state: str = Field(description="of the gate: `closed`")
    expires_at: str = Field(description="when writes go on by themselves")
    drain_ms: float = Field(description="how long writes under way took to end, in ms")


class Resumed(BaseModel):
    state: str = Field(description="of the gate: `open`")
    was_quiesced: bool = Field(description="whether there was a quiesce to end")


def _operations(request: Request) -> Operations:
    operations: Operations = request.app.state.operations
    return operations


def _require_wait(wait: bool) -> None:
    if not wait:
        raise InvalidRequest(
            "wait=false is not available in this version", "leave it out: the answer comes when it is done"
        )


router = APIRouter(prefix="/admin", tags=["snapshots"])


@router.post("/snapshot", status_code=201, summary="Take a snapshot")
async def take_snapshot(
    request: Request,
    response: Response,
    asked: Annotated[TakeSnapshot | None, Body()] = None,
    wait: Wait = True,
) -> Snapshot:
    """Every write acknowledged before is in it. Writes wait for milliseconds, reads not at all."""
    _require_wait(wait)
    snapshot = await _operations(request).snapshot(asked.label if asked else None)
    response.headers["Location"] = f"/admin/snapshot/{snapshot.id}"
    return snapshot


@router.get("/snapshot", summary="List snapshots")
async def list_snapshots(request: Request) -> SnapshotList:
    """All of them, newest first. One whose manifest cannot be read is listed as `damaged`."""
    return SnapshotList(snapshots=await _operations(request).repository.snapshots())


@router.get("/snapshot/{snapshot_id}", summary="Show one snapshot")
async def show_snapshot(request: Request, snapshot_id: SnapshotId) -> Snapshot:
    repository = _operations(request).repository
    return (await repository.manifest(await repository.resolve(snapshot_id))).snapshot


@router.delete("/snapshot/{snapshot_id}", status_code=204, summary="Delete a snapshot")
async def delete_snapshot(request: Request, snapshot_id: SnapshotId) -> None:
    """What other snapshots share with it stays."""
    await _operations(request).delete(snapshot_id)


@router.post("/snapshot/{snapshot_id}/restore", summary="Go back to a snapshot")
async def restore_snapshot(request: Request, snapshot_id: SnapshotId, wait: Wait = True) -> Snapshot:
    """Answers when the restored data is being served. Everything written since the snapshot is gone then.

    It is fetched and verified while the present data is served; only the exchange is a gap, in which
    clients get 503 with `Retry-After`. After an error the data is what it was before.
    """
    _require_wait(wait)
    return await _operations(request).restore(snapshot_id)


@router.post("/gc", summary="Apply the retention and collect garbage")
async def collect_garbage(request: Request) -> Collected:
    """Drops snapshots that no `GATEWAY_KEEP_…` keeps, then packs that none needs and that are past the grace age."""
    tidy: Callable[[], Awaitable[Collected]] = request.app.state.tidy
    return await tidy()


@router.post("/quiesce", summary="Hold writes back, for a disk snapshot from outside")
async def quiesce(request: Request, asked: Annotated[Quiesce | None, Body()] = None) -> Quiesced:
    """Answers when nothing writes any more; reads go on. Ends by `resume`, or by itself after `ttl_s`."""
    answer: dict[str, Any] = await _operations(request).quiesce((asked or Quiesce()).ttl_s)
    return Quiesced(**answer)


@router.post("/resume", summary="Let writes go on")
async def resume(request: Request) -> Resumed:
    """Safe to call at any time."""
    return Resumed(state="open", was_quiesced=await _operations(request).resume())
