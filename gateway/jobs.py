"""Jobs: long operations that run by themselves, and their progress.

A job runs in a task of its own, so the client that started it may wait for it, watch it, or hang up. It ends as
*succeeded*, *failed* or *cancelled*. Cancelling waits until its work has cleaned up. The last 100 jobs are
remembered.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import structlog
from pydantic import AwareDatetime, BaseModel, Field

from gateway.errors import GatewayError, NotFound

log = structlog.get_logger()

_REMEMBERED = 100
_EVENT_EVERY_S = 0.25
# The rate is measured over about this time and not since the start, so that an estimate follows changes.
_RATE_OVER_S = 5.0

State = Literal["running", "succeeded", "failed", "cancelled"]
Result = BaseModel | Mapping[str, Any] | None


class JobStatus(BaseModel):
    """A job as clients see it."""

    id: str = Field(description="a number that counts up from 1 at each start of the gateway")
    kind: str = Field(description="`snapshot`, `restore`, `verify`, …")
    subject: str = Field(description="what it is about, such as a snapshot's id")
    state: State = Field(description="whether it runs, or how it ended")
    phase: str | None = Field(None, description="what it is doing")
    done: int = Field(0, description="how much of this phase is done, in `unit`")
    total: int | None = Field(None, description="how much this phase has to do, in `unit`; null if unknown")
    unit: str = Field("bytes", description="what is counted")
    rate_per_s: float | None = Field(None, description="units per second over the last seconds")
    remaining_s: float | None = Field(None, description="estimate of the time until this phase is done, in seconds")
    started_at: AwareDatetime = Field(description="when it began")
    ended_at: AwareDatetime | None = Field(None, description="when it ended")
    result: dict[str, Any] | None = Field(
        None,
        description="what the route answers that waits for it, if it succeeded",
        examples=[{"id": "20261120T210455Z-3f9a1c"}],
    )
    error: dict[str, Any] | None = Field(
        None,
        description="what failed: `error`, `message` and `hint`, as in the answers of all routes",
        examples=[{"error": "StorageUnavailable", "message": "…", "hint": "…"}],
    )
    exit_code: int | None = Field(None, description="the exit code of a command that waits for it; null while it runs")


class Progress:
    """How far long work has come. The work calls the methods; an observer reads the attributes."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        """`changed` is called after every change, in the thread that made it."""
        self._changed = changed
        self.name: str | None = None
        self.total: int | None = None
        self.unit = "bytes"
        self.done = 0
        self._since = (0.0, 0)

    def phase(self, name: str, total: int | None, unit: str = "bytes") -> None:
        """Begin a phase of `total` units; None if the number is not known."""
        self.name, self.total, self.unit, self.done = name, total, unit, 0
        self._since = (time.monotonic(), 0)
        self._changed()

    def advance(self, count: int) -> None:
        """Note that `count` more units are done."""
        self.at(self.done + count)

    def at(self, done: int) -> None:
        """Note that `done` units of this phase are done."""
        self.done = done
        self._changed()

    @property
    def rate_per_s(self) -> float | None:
        """Units per second over the last seconds; None before the first unit of the phase is done."""
        since, done = self._since
        passed = time.monotonic() - since
        if passed <= 0 or self.done <= done:
            return None
        rate = (self.done - done) / passed
        if passed > _RATE_OVER_S:
            # Keep half of the time, so that the next rate is not that of an instant.
            self._since = (since + passed / 2, done + (self.done - done) // 2)
        return rate

    @property
    def remaining_s(self) -> float | None:
        """Estimate of the seconds until this phase is done; None without a total or a rate."""
        rate = self.rate_per_s
        if rate is None or self.total is None:
            return None
        return max(0, self.total - self.done) / rate


def counted(progress: Progress, phase: str, unit: str = "bytes") -> Callable[[int, int | None], None]:
    """Return a callback that takes how much is done and how much there is, in `unit`, and notes them in `progress`.

    `phase` begins with its first call.
    """
    begun = False

    def note(done: int, total: int | None) -> None:
        nonlocal begun
        if not begun:
            progress.phase(phase, total, unit)
            begun = True
        progress.at(done)

    return note


class Job:
    """One long operation that runs, or has ended."""

    def __init__(self, job_id: str, kind: str, subject: str, on_end: Callable[["Job"], None]) -> None:
        self.id, self.kind, self.subject, self._on_end = job_id, kind, subject, on_end
        self.state: State = "running"
        self.started_at = datetime.now(UTC)
        self.ended_at: datetime | None = None
        self.result: Result = None
        self.failure: GatewayError | None = None
        self._change = asyncio.Event()
        self._ended = asyncio.Event()
        self.progress = Progress(self._changed)
        self._task: asyncio.Task[None] | None = None

    def status(self) -> JobStatus:
        progress, result = self.progress, self.result
        remaining_s = progress.remaining_s if self.state == "running" else None
        rate_per_s = progress.rate_per_s if self.state == "running" else None
        return JobStatus(
            id=self.id,
            kind=self.kind,
            subject=self.subject,
            state=self.state,
            phase=progress.name,
            done=progress.done,
            total=progress.total,
            unit=progress.unit,
            rate_per_s=None if rate_per_s is None else round(rate_per_s, 1),
            remaining_s=None if remaining_s is None else round(remaining_s, 1),
            started_at=self.started_at,
            ended_at=self.ended_at,
            result=result.model_dump(mode="json") if isinstance(result, BaseModel) else result and dict(result),
            error=self.failure.body() if self.failure else None,
            exit_code=None if self.state == "running" else self.failure.exit_code if self.failure else 0,
        )

    async def outcome(self) -> Result:
        """Wait for the end and return the result, or raise the error that the work failed with.

        A caller that stops waiting does not stop the job. Raises GatewayError if the job was cancelled.
        """
        await self._ended.wait()
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        return self.result

    async def ended(self) -> None:
        """Wait until it has succeeded, failed or been cancelled."""
        await self._ended.wait()

    async def events(self) -> AsyncIterator[JobStatus]:
        """Yield the status now, then after changes, at most four times a second, and last the one at the end."""
        while True:
            self._change.clear()
            status = self.status()
            yield status
            if status.state != "running":
                return
            if self.state == "running":  # at the end another watcher may have cleared the event already
                await self._change.wait()
            if self.state == "running":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_EVENT_EVERY_S):
                        await self._ended.wait()

    async def begun(self) -> None:
        """Let the work take its first step. Raises the error if the work was refused at once."""
        await asyncio.sleep(0)
        if self.state == "failed" and self.failure is not None:
            raise self.failure

    async def cancel(self) -> None:
        """Cancel the work and wait until it has cleaned up. Does nothing if the job has ended."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self._ended.is_set():  # before its first step
                self._note_cancelled()
                self._end()

    async def _run(self, work: Callable[[Progress], Awaitable[Result]]) -> None:
        try:
            self.result = await work(self.progress)
            self.state = "succeeded"
        except GatewayError as error:
            self.state, self.failure = "failed", error
            # They refer to what the work held in memory, and a failed job is remembered for long.
            error.__traceback__ = error.__cause__ = error.__context__ = None
        except asyncio.CancelledError:
            self._note_cancelled()
        except Exception as error:
            log.error("a job failed unexpectedly", job=self.id, kind=self.kind, exc_info=error)
            self.state, self.failure = "failed", GatewayError("the gateway failed unexpectedly", "its log says more")
        finally:
            self._end()

    def _note_cancelled(self) -> None:
        self.state, self.failure = "cancelled", GatewayError(f"the {self.kind} was cancelled")

    def _end(self) -> None:
        self.ended_at = datetime.now(UTC)
        self._ended.set()
        self._changed()
        self._on_end(self)

    def _changed(self) -> None:
        self._change.set()


class Jobs:
    """All jobs since the start of the gateway. Used from the event loop's thread."""

    def __init__(self, on_end: Callable[[Job], None] = lambda _: None) -> None:
        """`on_end` is called with every job that has ended."""
        self._on_end = on_end
        self._jobs: dict[str, Job] = {}
        self._numbers = itertools.count(1)

    def start(self, kind: str, subject: str, work: Callable[[Progress], Awaitable[Result]]) -> Job:
        """Start `work` in a task of its own and return its job."""
        job = Job(str(next(self._numbers)), kind, subject, self._on_end)
        self._jobs[job.id] = job
        job._task = asyncio.create_task(job._run(work))
        self._forget_oldest()
        return job

    def get(self, job_id: str) -> Job:
        """Return the job of that id. Raises NotFound, also for one that is no longer remembered."""
        if job_id not in self._jobs:
            raise NotFound(f"there is no job {job_id}", "GET /admin/jobs lists those since the start of the gateway")
        return self._jobs[job_id]

    def all(self) -> list[Job]:
        """Return every remembered job, newest first."""
        return list(reversed(self._jobs.values()))

    async def close(self, *, spare: str | None = None) -> None:
        """Cancel the running jobs, except those of the kind `spare`, and wait until their work has cleaned up."""
        await asyncio.gather(*(job.cancel() for job in self._jobs.values() if job.kind != spare))

    def _forget_oldest(self) -> None:
        for job_id in [job.id for job in self._jobs.values() if job.state != "running"]:
            if len(self._jobs) <= _REMEMBERED:
                return
            del self._jobs[job_id]
