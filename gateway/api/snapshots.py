"""`/admin/snapshot*`, `/admin/quiesce`, `/admin/resume`.

What may take long runs as a job, also where the answer waits for it: a client that hangs up stops nothing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from gateway.api.deps import JobsOf, SettingsOf, StoreOf
from gateway.api.jobs import accepted
from gateway.errors import InvalidRequest
from gateway.jobs import Job, Jobs, JobStatus, Progress, Result
from gateway.snapshot.gc import GcResult
from gateway.snapshot.model import Snapshot, Verification
from gateway.snapshot.tar import in_pieces, tar, tar_size
from gateway.snapshot.verify import Level
from gateway.vectorstore import VectorStore

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


class _Operator:
    """Starts what an operator asks for, each as a job."""

    def __init__(self, store: VectorStore, jobs: Jobs) -> None:
        self.store, self.operations, self._jobs = store, store.operations, jobs

    async def begin(
        self,
        kind: str,
        subject: str,
        work: Callable[[Progress], Coroutine[Any, Any, Result]],
        *,
        looks: bool = False,
    ) -> Job:
        """Start a job, or raise Conflict at once. `looks`: it is one that changes nothing."""
        if not looks:
            self.operations.require_idle()
        job = self._jobs.start(kind, subject, work)
        await job.begun()
        return job


async def _operator(store: StoreOf, jobs: JobsOf) -> _Operator:
    return _Operator(store, jobs)


Operator = Annotated[_Operator, Depends(_operator)]
_ACCEPTED: dict[int | str, dict[str, Any]] = {202: {"model": JobStatus, "description": "begun, for `wait=false`"}}


router = APIRouter(prefix="/admin", tags=["snapshots"])


@router.post(
    "/snapshot", status_code=201, summary="Take a snapshot", response_model=Snapshot | JobStatus, responses=_ACCEPTED
)
async def take_snapshot(
    operator: Operator,
    response: Response,
    asked: Annotated[TakeSnapshot | None, Body()] = None,
    wait: Wait = True,
) -> Result:
    """Every write acknowledged before is in it. Writes wait for milliseconds, reads not at all."""
    label = asked.label if asked else None
    job = await operator.begin("snapshot", label or "", lambda progress: operator.operations.snapshot(label, progress))
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
    operator: Operator,
    settings: SettingsOf,
    response: Response,
    label: Annotated[str | None, Query(max_length=200, description="what to call it, for people")] = None,
    wait: Annotated[bool, Query(description="with `false` the answer comes once the archive has arrived")] = True,
) -> Result:
    """The body is a plain tar of a directory that Chroma 0.4 or newer wrote. Chroma brings it to its own version
    and reads every collection, on the side, before it becomes a snapshot. It is the newest one until
    another is taken of what is served."""
    received, max_bytes = asyncio.Event(), settings.max_upload_bytes

    async def work(progress: Progress) -> Snapshot:
        declared = request.headers.get("content-length")
        progress.phase("receiving", int(declared) if declared else None)
        return await operator.operations.import_tar(_body(request), label, max_bytes, progress, received)

    job = await operator.begin("upload", label or "", work)
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
async def list_snapshots(operator: Operator) -> SnapshotList:
    """All of them, newest first. One whose manifest cannot be read is listed as `damaged`."""
    return SnapshotList(snapshots=await operator.operations.repository.snapshots())


@router.get("/snapshot/{snapshot_id}", summary="Show one snapshot")
async def show_snapshot(operator: Operator, snapshot_id: SnapshotId) -> Snapshot:
    repository = operator.operations.repository
    return await repository.snapshot(await repository.resolve(snapshot_id))


@router.get("/snapshot/{snapshot_id}/archive", summary="Download a snapshot", response_class=StreamingResponse)
async def download_snapshot(operator: Operator, snapshot_id: SnapshotId) -> StreamingResponse:
    """A plain tar of a directory that Chroma opens without a gateway.

    It is restored and verified on disk first: the data directory needs free space for all of it until the
    last byte is sent.
    """
    rooms, found = contextlib.AsyncExitStack(), list[FilePath]()

    async def work(progress: Progress) -> None:
        try:
            found.append(await operator.operations.unpack_to_scratch(snapshot_id, rooms, progress))
        except BaseException:
            await rooms.aclose()
            raise

    job = await operator.begin("archive", snapshot_id, work, looks=True)
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
    operator: Operator,
    response: Response,
    snapshot_id: SnapshotId,
    asked: Annotated[Verify | None, Body()] = None,
    wait: Wait = True,
) -> Result:
    """200 also if something is wrong with it: `ok` and `problems` say so, and so does every listing from then on.

    `boot` restores it beside the data, which takes as much disk, and starts a second Chroma on it.
    """
    level = (asked or Verify()).level
    job = await operator.begin(
        "verify",
        snapshot_id,
        lambda progress: operator.operations.verify(snapshot_id, level, progress),
        looks=True,
    )
    return await job.outcome() if wait else accepted(job, response)


@router.delete(
    "/snapshot/{snapshot_id}", status_code=204, summary="Delete a snapshot", response_model=None, responses=_ACCEPTED
)
async def delete_snapshot(operator: Operator, snapshot_id: SnapshotId, wait: Wait = True) -> Response:
    """What other snapshots share with it stays."""

    async def work(progress: Progress) -> None:
        progress.phase("deleting", None)
        await operator.operations.delete(snapshot_id)

    job = await operator.begin("delete", snapshot_id, work)
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
async def restore_snapshot(
    operator: Operator, response: Response, snapshot_id: SnapshotId, wait: Wait = True
) -> Result:
    """Answers when the restored data is being served. Everything written since the snapshot is gone then.

    It is fetched and verified while the present data is served; only the exchange is a gap, in which
    clients get 503 with `Retry-After`. After an error the data is what it was before.
    """
    job = await operator.begin(
        "restore", snapshot_id, lambda progress: operator.operations.restore(snapshot_id, progress)
    )
    return await job.outcome() if wait else accepted(job, response)


@router.post(
    "/gc",
    summary="Apply the retention and collect garbage",
    response_model=GcResult | JobStatus,
    responses=_ACCEPTED,
)
async def collect_garbage(operator: Operator, response: Response, wait: Wait = True) -> Result:
    """Drops snapshots that no `GATEWAY_KEEP_…` keeps, then packs that none needs and that are past the grace age."""

    async def work(progress: Progress) -> GcResult:
        progress.phase("collecting", None)
        return await operator.store.tidy()

    job = await operator.begin("gc", "", work)
    return await job.outcome() if wait else accepted(job, response)


@router.post("/quiesce", summary="Hold writes back, for a disk snapshot from outside")
async def quiesce(operator: Operator, asked: Annotated[Quiesce | None, Body()] = None) -> Quiesced:
    """Answers when nothing writes any more; reads go on. Ends by `resume`, or by itself after `ttl_s`."""
    answer: dict[str, Any] = await operator.operations.quiesce((asked or Quiesce()).ttl_s)
    return Quiesced(**answer)


@router.post("/resume", summary="Let writes go on")
async def resume(operator: Operator) -> Resumed:
    """Safe to call at any time."""
    return Resumed(state="open", was_quiesced=await operator.operations.resume())
