"""The routes `/admin/snapshot*`, `/admin/gc`, `/admin/quiesce` and `/admin/resume`.

Long operations run as jobs, also if the response waits for the job. A client that hangs up stops no job.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from gateway.aio import background
from gateway.api.deps import Operator, SettingsOf
from gateway.api.jobs import ACCEPTED, Wait, accepted
from gateway.api.journal import RestoredSnapshot, restored_snapshot
from gateway.config import Seconds
from gateway.errors import InvalidRequest
from gateway.jobs import JobStatus, Progress, Result
from gateway.snapshot.gc import GcResult
from gateway.snapshot.model import Snapshot, Verification
from gateway.snapshot.retention import OWN_LABELS
from gateway.snapshot.tar import in_pieces, tar, tar_size
from gateway.snapshot.verify import Level

SnapshotId = Annotated[str, Path(description="a snapshot's id, or `latest`", examples=["20261120T210455Z-3f9a1c"])]

Limit = Annotated[int, Query(ge=1, le=1000, description="the most snapshots in the answer")]
After = Annotated[str | None, Query(description="only snapshots after this one in the list: `next` of the page before")]

UPLOAD_PATH = "/admin/snapshot/upload"
# FastAPI's own limit is fixed at import. The upload checks GATEWAY_MAX_UPLOAD_BYTES itself.
_NO_LIMIT = 1 << 62
_TAR = "application/x-tar"
_BYTES = {"type": "string", "format": "binary"}


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TakeSnapshot(_Asked):
    label: str | None = Field(None, max_length=200, description="a name for people")


class Quiesce(_Asked):
    ttl_s: Seconds = Field(
        60, gt=0, le=3600, description="writes go on after this time at the latest; seconds, or a duration such as `5m`"
    )


class Verify(_Asked):
    level: Level = Field(
        "data", description="`data`: is every byte present and correct; `boot`: does a Chroma serve it unchanged"
    )


class SnapshotList(BaseModel):
    snapshots: list[Snapshot] = Field(description="newest first")
    next: str | None = Field(description="give it as `after` to get the next page; null at the end")


class Quiesced(BaseModel):
    state: str = Field(description="the state of the gate: `closed`")
    expires_at: str = Field(description="when writes go on without a resume")
    drain_ms: float = Field(description="how long the writes in progress took to end, in ms")


class Resumed(BaseModel):
    state: str = Field(description="the state of the gate: `open`")
    was_quiesced: bool = Field(description="whether a quiesce was active")


router = APIRouter(prefix="/admin", tags=["snapshots"])


@router.post(
    "/snapshot", status_code=201, summary="Take a snapshot", response_model=Snapshot | JobStatus, responses=ACCEPTED
)
async def take_snapshot(
    operator: Operator,
    response: Response,
    asked: Annotated[TakeSnapshot | None, Body()] = None,
    wait: Wait = True,
) -> Result:
    """The snapshot has every write that was acknowledged before. Writes wait for milliseconds, reads do not wait."""
    label = _of_people(asked.label if asked else None)
    job = await operator.begin("snapshot", label or "", lambda progress: operator.operations.snapshot(label, progress))
    if not wait:
        return accepted(job, response)
    return _created(await job.outcome(), response)


def _of_people(label: str | None) -> str | None:
    """Return `label`. Raises InvalidRequest for one of the gateway's own, which retention would not keep."""
    if label in OWN_LABELS:
        own = ", ".join(sorted(OWN_LABELS))
        raise InvalidRequest(
            f"the label {label} is the gateway's own: retention would drop a snapshot that has it",
            f"use another label than {own}, or none",
        )
    return label


def _created(snapshot: Result, response: Response) -> Result:
    if isinstance(snapshot, Snapshot):
        response.headers["Location"] = f"/admin/snapshot/{snapshot.id}"
    return snapshot


@router.post(
    "/snapshot/upload",
    status_code=201,
    summary="Make a snapshot from an archive",
    response_model=Snapshot | JobStatus,
    responses=ACCEPTED,
    max_body_size=_NO_LIMIT,
    openapi_extra={"requestBody": {"required": True, "content": {_TAR: {"schema": _BYTES}}}},
)
async def upload_snapshot(
    request: Request,
    operator: Operator,
    settings: SettingsOf,
    response: Response,
    label: Annotated[str | None, Query(max_length=200, description="a name for people")] = None,
    wait: Annotated[bool, Query(description="`false`: answer when the archive has arrived")] = True,
) -> Result:
    """The body is a plain tar of a directory that Chroma 0.4 or newer wrote.

    A second Chroma migrates it and reads every collection before it becomes a snapshot. The served data do not change.
    The snapshot is the latest one until another is taken, which the journal soon does by itself.
    """
    received, max_bytes = asyncio.Event(), settings.max_upload_bytes
    _of_people(label)

    async def work(progress: Progress) -> Snapshot:
        declared = request.headers.get("content-length")
        progress.phase("receiving", int(declared) if declared else None)
        return await operator.operations.import_tar(_body(request), label, max_bytes, progress, received)

    job = await operator.begin("upload", label or "", work)
    if wait:
        return _created(await job.outcome(), response)
    async with background(received.wait()) as arriving, background(job.ended()) as ending:
        await asyncio.wait([arriving, ending], return_when=asyncio.FIRST_COMPLETED)
    await job.begun()
    return accepted(job, response)


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect as error:
        raise InvalidRequest("the client hung up before the whole archive had arrived", "send it again") from error


@router.get("/snapshot", summary="List snapshots")
async def list_snapshots(operator: Operator, limit: Limit = 100, after: After = None) -> SnapshotList:
    """Snapshots, newest first.

    A snapshot whose manifest cannot be read, or that was found to need data which are missing, is listed as `damaged`.
    A page has fewer than `limit` snapshots if these name very many collections.
    """
    page = await operator.operations.repository.page(limit, after)
    return SnapshotList(snapshots=page.snapshots, next=page.next)


@router.get("/snapshot/{snapshot_id}", summary="Show one snapshot")
async def show_snapshot(operator: Operator, snapshot_id: SnapshotId) -> Snapshot:
    repository = operator.operations.repository
    return await repository.snapshot(await repository.resolve(snapshot_id))


@router.get(
    "/snapshot/{snapshot_id}/archive",
    summary="Download a snapshot",
    response_class=StreamingResponse,
    responses={200: {"content": {_TAR: {"schema": _BYTES}}, "description": "the archive"}},
)
async def download_snapshot(operator: Operator, snapshot_id: SnapshotId) -> StreamingResponse:
    """A plain tar of a directory that Chroma opens without a gateway.

    The snapshot is restored and verified on disk first. So the data directory needs free space for all of it until the
    last byte is sent.
    """
    scratch, found = contextlib.AsyncExitStack(), list[FilePath]()

    async def work(progress: Progress) -> None:
        try:
            found.append(await operator.operations.unpack_to_scratch(snapshot_id, scratch, progress))
        except BaseException:
            await scratch.aclose()
            raise

    job = await operator.begin("archive", snapshot_id, work, read_only=True)
    try:
        await job.outcome()
        size_bytes = await asyncio.to_thread(tar_size, found[0])
    except BaseException:
        await job.cancel()
        await scratch.aclose()
        raise
    headers = {
        "Content-Length": str(size_bytes),
        "Content-Disposition": f'attachment; filename="chroma-{snapshot_id}.tar"',
    }
    return _ArchiveResponse(in_pieces(tar(found[0])), scratch, headers)


class _ArchiveResponse(StreamingResponse):
    """Removes the scratch directory when the response ends, also by an error."""

    def __init__(
        self, pieces: AsyncIterator[bytes], scratch: contextlib.AsyncExitStack, headers: dict[str, str]
    ) -> None:
        super().__init__(pieces, headers=headers, media_type=_TAR)
        self._scratch = scratch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._scratch.aclose()


@router.post(
    "/snapshot/{snapshot_id}/verify",
    summary="Verify a snapshot",
    response_model=Verification | JobStatus,
    responses=ACCEPTED,
)
async def verify_snapshot(
    operator: Operator,
    response: Response,
    snapshot_id: SnapshotId,
    asked: Annotated[Verify | None, Body()] = None,
    wait: Wait = True,
) -> Result:
    """Answers 200 also for a damaged snapshot: see `ok` and `problems`. Listings show the result from then on.

    `boot` restores the snapshot beside the data, which takes as much disk again, and starts a second Chroma on it.
    """
    level = (asked or Verify()).level
    job = await operator.begin(
        "verify",
        snapshot_id,
        lambda progress: operator.operations.verify(snapshot_id, level, progress),
        read_only=True,
    )
    return await job.outcome() if wait else accepted(job, response)


@router.delete(
    "/snapshot/{snapshot_id}", status_code=204, summary="Delete a snapshot", response_model=None, responses=ACCEPTED
)
async def delete_snapshot(operator: Operator, snapshot_id: SnapshotId, wait: Wait = True) -> Response:
    """Data that other snapshots share with it stay.

    The moments from it to the next snapshot go with it, unless they can be restored from the one before it. History
    does not list them any more. What is served now is stored first.
    """

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
    summary="Restore a snapshot",
    response_model=RestoredSnapshot | JobStatus,
    responses=ACCEPTED,
)
async def restore_snapshot(
    operator: Operator, response: Response, snapshot_id: SnapshotId, wait: Wait = True
) -> Result:
    """Answers when the restored data are served. `return_to` is the moment that undoes it.

    Without a journal, everything written since the latest snapshot is lost. The snapshot is fetched and verified while
    the present data are served. During the swap clients get 503 with `Retry-After`. After an error the data are as
    before.
    """

    async def work(progress: Progress) -> RestoredSnapshot:
        return restored_snapshot(await operator.store.restore_snapshot(snapshot_id, progress))

    job = await operator.begin("restore", snapshot_id, work)
    return await job.outcome() if wait else accepted(job, response)


@router.post(
    "/gc",
    summary="Apply the retention rules and collect garbage",
    response_model=GcResult | JobStatus,
    responses=ACCEPTED,
)
async def collect_garbage(operator: Operator, response: Response, wait: Wait = True) -> Result:
    """Deletes snapshots that no `GATEWAY_KEEP_…` setting keeps, then unused packs older than the grace period."""

    async def work(progress: Progress) -> GcResult:
        progress.phase("collecting", None)
        return await operator.store.tidy()

    job = await operator.begin("gc", "", work)
    return await job.outcome() if wait else accepted(job, response)


@router.post("/quiesce", summary="Pause writes, for a disk snapshot by other means")
async def quiesce(operator: Operator, asked: Annotated[Quiesce | None, Body()] = None) -> Quiesced:
    """Answers when no write is in progress. Reads go on. Ends with `resume`, or after `ttl_s`."""
    answer: dict[str, Any] = await operator.operations.quiesce((asked or Quiesce()).ttl_s)
    return Quiesced(**answer)


@router.post("/resume", summary="Resume writes")
async def resume(operator: Operator) -> Resumed:
    """Safe to call at any time."""
    return Resumed(state="open", was_quiesced=await operator.operations.resume())
