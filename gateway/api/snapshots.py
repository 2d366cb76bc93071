"""`/admin/snapshot*`, `/admin/quiesce`, `/admin/resume`.

What may take long runs as a job, also where the answer waits for it: a client that hangs up stops nothing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from gateway.api.jobs import accepted, jobs_of
from gateway.errors import InvalidRequest
from gateway.jobs import Job, JobStatus, Progress, Result
from gateway.snapshot.gc import GcResult
from gateway.snapshot.model import Snapshot, Verification
from gateway.snapshot.operations import Operations
from gateway.snapshot.tar import in_pieces, tar, tar_size
from gateway.snapshot.verify import Level

SnapshotId = Annotated[str, Path(description="a snapshot's id, or `latest`", examples=["20261120T210455Z-3f9a1c"])]
Wait = Annotated[bool, Query(description="answer at its end; with `false` at once, with 202 and the job")]

UPLOAD_PATH = "/admin/snapshot/upload"
# The frameworks's limit is one for all and fixed at import; this route keeps its own.
_NO_LIMIT = 1 << 62


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TakeSnapshot(_Asked):
    label: str | None = Field(None, max_length=200, description="what to call it, for people")


class Quiesce(_Asked):
    ttl_s: float = Field(
        60, gt=0, le=3600, allow_inf_nan=False, description="writes go on after so many seconds, resumed or not"
    )


class Verify(_Asked):
    level: Level = Field(
        "data", description="`data`: is every byte there and right; `boot`: does a Chroma serve it as it was"
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


async def _begin(
    request: Request,
    kind: str,
    subject: str,
    work: Callable[[Progress], Coroutine[Any, Any, Result]],
    *,
    looks: bool = False,
) -> Job:
    """Start a job, or raise Conflict at once. `looks`: it is one that changes nothing."""
    if not looks:
        _operations(request).require_idle()
    job = jobs_of(request).start(kind, subject, work)
    await job.begun()
    return job


_ACCEPTED: dict[int | str, dict[str, Any]] = {202: {"model": JobStatus, "description": "begun, for `wait=false`"}}


router = APIRouter(prefix="/admin", tags=["snapshots"])


@router.post(
    "/snapshot", status_code=201, summary="Take a snapshot", response_model=Snapshot | JobStatus, responses=_ACCEPTED
)
async def take_snapshot(
    request: Request,
    response: Response,
    asked: Annotated[TakeSnapshot | None, Body()] = None,
    wait: Wait = True,
) -> Result:
    """Every write acknowledged before is in it. Writes wait for milliseconds, reads not at all."""
    label = asked.label if asked else None
    job = await _begin(
        request, "snapshot", label or "", lambda progress: _operations(request).snapshot(label, progress)
    )
    if not wait:
        return accepted(job, response)
    return _created(await job.outcome(), response)


def _created(snapshot: Result, response: Response) -> Result:
    if isinstance(snapshot, Snapshot):
        response.headers["Location"] = f"/admin/snapshot/{snapshot.id}"
    return snapshot


@router.post(
    "/snapshot/upload",
    status_code=201,
    summary="Make a snapshot of an archive",
    response_model=Snapshot | JobStatus,
    responses=_ACCEPTED,
    max_body_size=_NO_LIMIT,
    openapi_extra={"requestBody": {"required": True, "content": {"application/x-tar": {"schema": {"type": "string"}}}}},
)
async def upload_snapshot(
    request: Request,
    response: Response,
    label: Annotated[str | None, Query(max_length=200, description="what to call it, for people")] = None,
    wait: Annotated[bool, Query(description="with `false` the answer comes once the archive has arrived")] = True,
) -> Result:
    """The body is a plain tar of a directory that Chroma 0.4 or newer wrote. Chroma brings it to its own version
    and reads every collection, on the side, before it becomes a snapshot. It is the newest one until
    another is taken of what is served."""
    received, max_bytes = asyncio.Event(), request.app.state.max_upload_bytes

    async def work(progress: Progress) -> Snapshot:
        declared = request.headers.get("content-length")
        progress.phase("receiving", int(declared) if declared else None)
        return await _operations(request).import_tar(_body(request), label, max_bytes, progress, received)

    job = await _begin(request, "upload", label or "", work)
    if wait:
        return _created(await job.outcome(), response)
    arriving, ending = asyncio.create_task(received.wait()), asyncio.create_task(job.ended())
    try:
        await asyncio.wait([arriving, ending], return_when=asyncio.FIRST_COMPLETED)
    finally:
        arriving.cancel()
        ending.cancel()
    await job.begun()
    return accepted(job, response)


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect as error:
        raise InvalidRequest("the client hung up before all of the archive had arrived", "send it again") from error


@router.get("/snapshot", summary="List snapshots")
async def list_snapshots(request: Request) -> SnapshotList:
    """All of them, newest first. One whose manifest cannot be read is listed as `damaged`."""
    return SnapshotList(snapshots=await _operations(request).repository.snapshots())


@router.get("/snapshot/{snapshot_id}", summary="Show one snapshot")
async def show_snapshot(request: Request, snapshot_id: SnapshotId) -> Snapshot:
    repository = _operations(request).repository
    return await repository.snapshot(await repository.resolve(snapshot_id))


@router.get("/snapshot/{snapshot_id}/archive", summary="Download a snapshot", response_class=StreamingResponse)
async def download_snapshot(request: Request, snapshot_id: SnapshotId) -> StreamingResponse:
    """A plain tar of a directory that Chroma opens without a gateway.

    It is restored and verified on disk first: the data directory needs free space for all of it until the
    last byte is sent.
    """
    rooms, found = contextlib.AsyncExitStack(), list[FilePath]()

    async def work(progress: Progress) -> None:
        try:
            found.append(await _operations(request).unpack_to_scratch(snapshot_id, rooms, progress))
        except BaseException:
            await rooms.aclose()
            raise

    job = await _begin(request, "archive", snapshot_id, work, looks=True)
    try:
        await job.outcome()
        size_bytes = await asyncio.to_thread(tar_size, found[0])
    except BaseException:
        await job.cancel()
        await rooms.aclose()
        raise
    headers = {
        "Content-Length": str(size_bytes),
        "Content-Disposition": f'attachment; filename="chroma-{snapshot_id}.tar"',
    }
    return _ArchiveResponse(in_pieces(tar(found[0])), rooms, headers)


class _ArchiveResponse(StreamingResponse):
    """Gives the rooms back at the end, however it ends."""

    def __init__(self, pieces: AsyncIterator[bytes], rooms: contextlib.AsyncExitStack, headers: dict[str, str]) -> None:
        super().__init__(pieces, headers=headers, media_type="application/x-tar")
        self._rooms = rooms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._rooms.aclose()


@router.post(
    "/snapshot/{snapshot_id}/verify",
    summary="Look at all of a snapshot",
    response_model=Verification | JobStatus,
    responses=_ACCEPTED,
)
async def verify_snapshot(
    request: Request,
    response: Response,
    snapshot_id: SnapshotId,
    asked: Annotated[Verify | None, Body()] = None,
    wait: Wait = True,
) -> Result:
    """200 also if something is wrong with it: `ok` and `problems` say so, and so does every listing from then on.

    `boot` restores it beside the data, which takes as much disk, and starts a second Chroma on it.
    """
    level = (asked or Verify()).level
    job = await _begin(
        request,
        "verify",
        snapshot_id,
        lambda progress: _operations(request).verify(snapshot_id, level, progress),
        looks=True,
    )
    return await job.outcome() if wait else accepted(job, response)


@router.delete(
    "/snapshot/{snapshot_id}", status_code=204, summary="Delete a snapshot", response_model=None, responses=_ACCEPTED
)
async def delete_snapshot(request: Request, snapshot_id: SnapshotId, wait: Wait = True) -> Response:
    """What other snapshots share with it stays."""

    async def work(progress: Progress) -> None:
        progress.phase("deleting", None)
        await _operations(request).delete(snapshot_id)

    job = await _begin(request, "delete", snapshot_id, work)
    if wait:
        await job.outcome()
        return Response(status_code=204)
    answer = JSONResponse({})
    return JSONResponse(accepted(job, answer).model_dump(mode="json"), 202, {"Location": answer.headers["Location"]})


@router.post(
    "/snapshot/{snapshot_id}/restore",
    summary="Go back to a snapshot",
    response_model=Snapshot | JobStatus,
    responses=_ACCEPTED,
)
async def restore_snapshot(request: Request, response: Response, snapshot_id: SnapshotId, wait: Wait = True) -> Result:
    """Answers when the restored data is being served. Everything written since the snapshot is gone then.

    It is fetched and verified while the present data is served; only the exchange is a gap, in which
    clients get 503 with `Retry-After`. After an error the data is what it was before.
    """
    job = await _begin(
        request, "restore", snapshot_id, lambda progress: _operations(request).restore(snapshot_id, progress)
    )
    return await job.outcome() if wait else accepted(job, response)


@router.post(
    "/gc",
    summary="Apply the retention and collect garbage",
    response_model=GcResult | JobStatus,
    responses=_ACCEPTED,
)
async def collect_garbage(request: Request, response: Response, wait: Wait = True) -> Result:
    """Drops snapshots that no `GATEWAY_KEEP_…` keeps, then packs that none needs and that are past the grace age."""
    tidy: Callable[[], Awaitable[GcResult]] = request.app.state.tidy

    async def work(progress: Progress) -> GcResult:
        progress.phase("collecting", None)
        return await tidy()

    job = await _begin(request, "gc", "", work)
    return await job.outcome() if wait else accepted(job, response)


@router.post("/quiesce", summary="Hold writes back, for a disk snapshot from outside")
async def quiesce(request: Request, asked: Annotated[Quiesce | None, Body()] = None) -> Quiesced:
    """Answers when nothing writes any more; reads go on. Ends by `resume`, or by itself after `ttl_s`."""
    answer: dict[str, Any] = await _operations(request).quiesce((asked or Quiesce()).ttl_s)
    return Quiesced(**answer)


@router.post("/resume", summary="Let writes go on")
async def resume(request: Request) -> Resumed:
    """Safe to call at any time."""
    return Resumed(state="open", was_quiesced=await _operations(request).resume())
