"""Tasks, threads and waiting, for every module that needs more than a plain `await`.

TaskPool                      many short tasks, a few at a time
background                    a task that lasts as long as a block
cancel                        cancel tasks and wait until they have ended
uninterrupted                 a cancelled caller waits for the work, then is cancelled
run_in_thread_uninterrupted   the same for a blocking function
shielded                      a cancelled caller waits for the work, then goes on
within                        a time limit that work which must not stop halfway may outlive
SharedRuns                    work that many ask for at once and that is done once for all of them
poll_until                    look again and again until something is so
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

_Result = TypeVar("_Result")


class TaskPool:
    """At most `size` tasks at a time. `async with` waits for all of them.

    The first failure cancels the others and is raised as itself, not in an exception group.
    """

    def __init__(self, size: int) -> None:
        self._free = asyncio.Semaphore(size)
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def start(self, work: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Wait until fewer than `size` tasks run, then start `work(*args)` and return."""
        await self._free.acquire()
        doing = self._do(work, args)
        try:
            self._group.create_task(doing)
        except BaseException:  # the group ends already, as another task has failed
            doing.close()
            self._free.release()
            raise

    async def _do(self, work: Callable[..., Coroutine[Any, Any, None]], args: tuple[Any, ...]) -> None:
        try:
            await work(*args)
        finally:
            self._free.release()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._group.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            raise _first(group) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextlib.asynccontextmanager
async def background(work: Coroutine[Any, Any, _Result]) -> AsyncIterator[asyncio.Task[_Result]]:
    """Run `work` in a task while the block runs. At the end of the block, cancel it and wait until it has ended.

    Its failure is not raised: look at the task that is yielded.
    """
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        await cancel(task)


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel `tasks` and wait until all of them have ended. What they raise is dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def uninterrupted(
    work: Coroutine[Any, Any, _Result], *, undo: Callable[[_Result], object] | None = None
) -> _Result:
    """Return the result of `work`. A caller that is cancelled, however often, first waits for the end of `work`.

    Then CancelledError is raised, and `undo` is called with the result, if there is one. For steps that would
    otherwise go on while the caller already does something else. Only the end of the event loop ends `work`.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _end_of(task)
        if not task.cancelled() and task.exception() is None and undo:
            undo(task.result())
        raise


async def run_in_thread_uninterrupted(
    function: Callable[..., _Result], *args: Any, undo: Callable[[_Result], object] | None = None
) -> _Result:
    """Run `function(*args)` in a thread and return its result. Cancelling is as for `uninterrupted`."""
    return await uninterrupted(asyncio.to_thread(function, *args), undo=undo)


async def shielded(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Return the result of `work`, also when the caller is cancelled meanwhile: the cancellation is dropped.

    For work that must not stop halfway and whose result the caller still needs. It may take as long as it
    likes: only the end of the event loop ends it.
    """
    task = asyncio.create_task(work)
    await _end_of(task)
    return task.result()


async def _end_of(task: asyncio.Task[Any]) -> None:
    """Wait until `task` has ended; a cancellation of the caller does not end the wait."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])


async def within(timeout_s: float, work: Coroutine[Any, Any, _Result], *, break_off_s: float) -> _Result:
    """Return the result of `work`, which is cancelled after `timeout_s`.

    Raises TimeoutError, at the latest `break_off_s` after the cancellation. Work that is still busy then, because
    it must not stop halfway, goes on by itself; what it raises is dropped.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task], timeout=timeout_s)
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=break_off_s)
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(_drop_error)
    if not task.done() or task.cancelled():
        raise TimeoutError
    return task.result()


class SharedRuns(Generic[_Result]):
    """Runs of `work`, one at a time. A caller gets the result of a run that began after the call, whoever began it.

    So however many call at once, `work` is done twice at most. An error is raised to the caller whose run it was.
    """

    def __init__(self, work: Callable[[], Awaitable[_Result]]) -> None:
        self._work = work
        self._running = asyncio.Lock()
        self._begun = 0
        self._newest: tuple[int, _Result] | None = None
        """The number of a run and its result, while there are callers."""
        self.callers = 0

    async def run(self) -> _Result:
        """The result of `work`. Raises what it raises."""
        wanted = self._begun + 1
        self.callers += 1
        try:
            async with self._running:
                if self._newest is None or self._newest[0] < wanted:
                    self._begun += 1
                    self._newest = self._begun, await self._work()
                return self._newest[1]
        finally:
            self.callers -= 1
            if not self.callers:
                self._newest = None


def _drop_error(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


async def poll_until(
    look: Callable[[], Awaitable[_Result]],
    *,
    every_s: float,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> _Result:
    """Await `look()` every `every_s` seconds until its result is true, and return that result.

    It is called at once, and at least once. Raises TimeoutError if `timeout_s` have passed by `clock` after a
    call whose result was false; a call is never interrupted. What `look` raises ends the wait. Tests give a
    `clock` and a `sleep` of their own.
    """
    give_up_at = clock() + timeout_s
    while not (result := await look()):
        if clock() >= give_up_at:
            raise TimeoutError
        await sleep(every_s)
    return result
