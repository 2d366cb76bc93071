"""The routes `/admin/flush`, `/admin/restore` and `/admin/history`: what the journal has, and back to any moment."""

import time
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Body, Query, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from gateway.api.deps import Operator, StoreOf
from gateway.api.jobs import ACCEPTED, Wait, accepted
from gateway.config import moment
from gateway.errors import InvalidRequest
from gateway.jobs import JobStatus, Progress, Result
from gateway.journal.history import HistoryPage, MarkKind
from gateway.journal.plan import MERGED_RESOLUTION
from gateway.journal.volume import divide
from gateway.snapshot.model import Snapshot, SnapshotCollection, is_snapshot_id
from gateway.vectorstore import Preview, Restored

# A client's clock may be a little ahead of ours.
_MOST_AHEAD = timedelta(minutes=1)
_MOMENTS = "such as 2026-11-26T20:15:03Z, or -15m for fifteen minutes ago"


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Flush(_Asked):
    position: str | None = Field(
        None, description="wait for no more than this: the value of a header X-Gateway-Position", examples=["3-1042"]
    )


class Flushed(BaseModel):
    position: str = Field(description="everything up to there is stored")
    at: AwareDatetime = Field(description="a moment from which all of it comes back")
    waited_s: float = Field(description="how long that took, in seconds")


class Restore(_Asked):
    at: str = Field(
        description=f"what to go back to: a moment {_MOMENTS}; a snapshot's id; or `latest`, the newest state stored",
        examples=["2026-11-26T20:15:03Z"],
    )
    dry_run: bool = Field(False, description="only say what would be restored")


class _Undo(BaseModel):
    return_to: AwareDatetime | None = Field(
        None, description="the moment that brings back what was served before; null without a journal"
    )
    undo: str | None = Field(None, description="the command that does so")


class RestoredSnapshot(Snapshot, _Undo):
    """A snapshot that is served now."""


class RestoredState(_Undo):
    at: AwareDatetime = Field(description="the moment of the data that are served now")
    snapshot: str = Field(description="id of the snapshot that they come from")
    entries: int = Field(description="how many entries of the journal were replayed over it")
    stored: bool = Field(description="whether the store knows already that these are the data now")


class RestorePreview(BaseModel):
    at: AwareDatetime = Field(description="the moment that would be restored: the newest one that is not later")
    snapshot: str = Field(description="id of the snapshot that would be fetched")
    entries: int = Field(description="how many entries of the journal would be replayed over it")
    fetched_bytes: int = Field(description="how much would be fetched of both")
    duration_s: float = Field(description="about how long that would take, in seconds")
    collections: list[SnapshotCollection] = Field(description="the collections there were, with their records")
    now: list[SnapshotCollection] = Field(description="the collections there are now, to compare; empty if unknown")


class HistorySnapshot(BaseModel):
    id: str = Field(description="its id")
    at: AwareDatetime = Field(description="the moment that it holds")
    label: str | None = Field(description="given by a person, or `checkpoint`, `scheduled`, `final` or `handover`")


class HistoryMark(BaseModel):
    kind: MarkKind = Field(
        description="`seal`: a gateway took over; `restore`: the data were replaced; `run`: the journal began anew on"
        " a snapshot"
    )
    at: AwareDatetime = Field(description="when")
    position: str = Field(description="its place in the journal")
    epoch: int = Field(description="counts the changes of the writer")
    where: str = Field(description="host and process id of the gateway that wrote it")
    snapshot: str | None = Field(description="of `restore` and `run`: the snapshot that the data come from")
    restored_to: AwareDatetime | None = Field(description="of `restore`: the moment that was restored")


class HistoryGap(BaseModel):
    first: int = Field(description="the first number that is missing")
    last: int = Field(description="the last one of them")


class HistoryPart(BaseModel):
    at: AwareDatetime = Field(description="its beginning")
    entries: int = Field(description="entries of the journal that were cut in it")
    stored_bytes: int = Field(description="how much these take")


class HistoryHole(BaseModel):
    after: AwareDatetime | None = Field(description="about when the entry before the gap was cut")
    before: AwareDatetime | None = Field(description="about when the entry after it was cut")


class HistoryTimeline(BaseModel):
    begin: AwareDatetime = Field(description="`since`, or the oldest moment of the window")
    end: AwareDatetime = Field(description="`until`, or the newest one")
    step_s: float = Field(description="how long a part lasts, in seconds")
    parts: list[HistoryPart] = Field(description="those in which something was written, oldest first")
    holes: list[HistoryHole] = Field(description="`gaps`, as times")


class History(BaseModel):
    oldest: AwareDatetime | None = Field(
        description="the oldest moment from which on any moment can be restored; null if there is none"
    )
    newest: AwareDatetime | None = Field(description="the newest moment that can be restored")
    full_since: AwareDatetime | None = Field(description="from here on, moments are as fine as the journal's interval")
    merged_resolution_s: float = Field(description="how fine moments are before that, in seconds")
    snapshots: list[HistorySnapshot] = Field(
        description="the newest hundred, newest first; their moments can be restored whatever the window is"
    )
    marks: list[HistoryMark] = Field(description="newest first")
    gaps: list[HistoryGap] = Field(
        description="numbers of entries that are missing in the store, damaged, or deleted with a snapshot"
    )
    entries: int = Field(description="how many entries there are in the store")
    stored_bytes: int = Field(description="how much they take")
    next: int | None = Field(description="give it as `before` to get older marks; null at the end")
    timeline: HistoryTimeline | None = Field(
        description="with `parts`: how much was written when, to about a minute; null without `parts`, or if there is"
        " no journal"
    )


def _target(at: str) -> tuple[str, datetime | None]:
    """What `at` names: `latest` or a snapshot's id, or a moment. Raises InvalidRequest."""
    if at == "latest" or is_snapshot_id(at):
        return at, None
    now = datetime.now(UTC)
    found = moment(at, now)
    if found is None:
        raise InvalidRequest(
            f"at: {at[:80]!r} is neither a moment with its time zone, nor a snapshot's id, nor 'latest'",
            f"send a moment {_MOMENTS}; GET /admin/history says which there are",
        )
    if found > now + _MOST_AHEAD:
        raise InvalidRequest(
            f"at: {moment_text(found)} lies in the future: it is {moment_text(now)} here",
            "send a moment of the past; GET /admin/history says which there are",
        )
    return "latest", found


def moment_text(at: datetime) -> str:
    """A moment as the routes and commands take it, to the millisecond."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def undo_command(return_to: datetime | None) -> str | None:
    """The command that goes back to `return_to`."""
    return f"chroma-gateway restore --at {moment_text(return_to)}" if return_to else None


def restored_snapshot(restored: Restored) -> RestoredSnapshot:
    """The answer to a restore of a snapshot."""
    undo = {"return_to": restored.return_to, "undo": undo_command(restored.return_to)}
    return RestoredSnapshot(**restored.snapshot.model_dump(), **undo)


def _restored_state(restored: Restored) -> RestoredState:
    return RestoredState(
        at=restored.at,
        snapshot=restored.snapshot.id,
        entries=restored.entries,
        return_to=restored.return_to,
        undo=undo_command(restored.return_to),
        stored=restored.stored,
    )


def _previewed(preview: Preview) -> RestorePreview:
    point = preview.point
    return RestorePreview(
        at=point.at,
        snapshot=point.manifest.snapshot.id,
        entries=len(point.entries),
        fetched_bytes=preview.fetched_bytes,
        duration_s=round(preview.duration_s, 1),
        collections=list(preview.collections),
        now=list(preview.now),
    )


def _asked_moment(name: str, value: str | None) -> datetime | None:
    """What a parameter means. Raises InvalidRequest."""
    found = moment(value) if value is not None else None
    if value is not None and found is None:
        raise InvalidRequest(f"{name}: {value[:80]!r} is no moment with its time zone", f"send a moment {_MOMENTS}")
    return found


def _timeline(page: HistoryPage, parts: int, since: datetime | None, until: datetime | None) -> HistoryTimeline | None:
    begin, end = since or (page.window and page.window.oldest), until or (page.window and page.window.newest)
    if not parts or begin is None or end is None:
        return None
    if end < begin:
        raise InvalidRequest("until: it lies before since", f"send moments {_MOMENTS}")
    stored = [
        (at, each.last - each.first + 1, each.size_bytes)
        for each in page.listed
        if (at := page.times.at(each.last)) is not None
    ]
    return HistoryTimeline(
        begin=begin,
        end=end,
        step_s=(end - begin).total_seconds() / parts,
        parts=[HistoryPart(**each._asdict()) for each in divide(stored, begin, end, parts)],
        holes=[
            HistoryHole(after=page.times.at(gap.first - 1), before=page.times.at(gap.last + 1)) for gap in page.gaps
        ],
    )


def _history(page: HistoryPage, timeline: HistoryTimeline | None) -> History:
    window = page.window
    return History(
        oldest=window.oldest if window else None,
        newest=window.newest if window else None,
        full_since=window.full_since if window else None,
        merged_resolution_s=MERGED_RESOLUTION.total_seconds(),
        snapshots=[HistorySnapshot(id=each.id, at=each.at, label=each.label) for each in page.snapshots],
        marks=[
            HistoryMark(
                kind=mark.kind,
                at=mark.at,
                position=mark.position,
                epoch=mark.epoch,
                where=mark.where,
                snapshot=None if mark.kind == "seal" else mark.snapshot,
                restored_to=mark.restored_to,
            )
            for mark in page.marks
        ],
        gaps=[HistoryGap(**gap._asdict()) for gap in page.gaps],
        entries=page.entries,
        stored_bytes=page.stored_bytes,
        next=page.before,
        timeline=timeline,
    )


router = APIRouter(prefix="/admin", tags=["journal"])


@router.post("/flush", summary="Wait until everything written is stored")
async def flush(
    store: StoreOf,
    asked: Annotated[Flush | None, Body()] = None,
    position: Annotated[str | None, Query(description="as in the body", examples=["3-1042"])] = None,
) -> Flushed:
    """Answers once the store has everything that was acknowledged before, or up to `position`.

    409 where the journal is off, and where what was written at `position` was lost with its gateway. 503 if it cannot
    be stored in time: it is applied all the same, and is stored once the store answers again.
    """
    began = time.monotonic()
    stored = await store.journal.stored((asked.position if asked else None) or position)
    return Flushed(position=stored, at=store.journal.moment(), waited_s=round(time.monotonic() - began, 3))


@router.post(
    "/restore",
    summary="Go back to any moment",
    response_model=RestoredState | RestorePreview | JobStatus,
    responses=ACCEPTED,
)
async def restore(operator: Operator, response: Response, asked: Restore, wait: Wait = True) -> Result:
    """Answers when the data of that moment are served. `return_to` is the moment that undoes it.

    What is served now is stored first. Clients get 503 with `Retry-After` during the swap. After an error the data are
    as before.

    With `dry_run` nothing changes. For a moment between snapshots the database of the snapshot is fetched to count
    records, which needs free disk for it in the data directory. One such look runs at a time.
    """
    wanted, at = _target(asked.at)

    async def look(progress: Progress) -> RestorePreview:
        return _previewed(await operator.store.preview(wanted, at, progress))

    async def go_back(progress: Progress) -> RestoredState:
        return _restored_state(await operator.store.restore(wanted, at, progress))

    if asked.dry_run:
        job = await operator.begin("preview", asked.at, look, read_only=True)
    else:
        job = await operator.begin("restore", asked.at, go_back)
    return await job.outcome() if wait else accepted(job, response)


@router.get("/history", summary="Which moments can be restored")
async def show_history(
    store: StoreOf,
    limit: Annotated[int, Query(ge=1, le=1000, description="the most marks in the answer")] = 100,
    before: Annotated[int | None, Query(ge=1, description="only older marks: `next` of the page before")] = None,
    parts: Annotated[int, Query(ge=0, le=1000, description="divide the time into so many parts: `timeline`")] = 0,
    since: Annotated[str | None, Query(description="the beginning of `timeline`: a moment", examples=["-1h"])] = None,
    until: Annotated[str | None, Query(description="its end: a moment", examples=["-5m"])] = None,
) -> History:
    """Lists the store once, and reads the heads of few entries: those around marks."""
    begin, end = _asked_moment("since", since), _asked_moment("until", until)
    page = await store.history.page(limit, before)
    return _history(page, _timeline(page, parts, begin, end))
