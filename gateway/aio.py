"""Tasks and threads with the manners this package needs."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

_Result = TypeVar("_Result")


class TaskPool:
    """At most `size` tasks side by side. `async with` waits for all of them.

    The first failure ends all of them and is raised as itself.
    """

    def __init__(self, size: int) -> None:
        self._places = asyncio.Semaphore(size)
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def start(self, work: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Begin `work(*args)`, when there is a place free for it."""
        await self._places.acquire()
        try:
            self._group.create_task(self._do(work, args))
        except BaseException:
            self._places.release()
            raise

    async def _do(self, work: Callable[..., Coroutine[Any, Any, None]], args: tuple[Any, ...]) -> None:
        try:
            await work(*args)
        finally:
            self._places.release()

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


async def run_in_thread_uninterrupted(
    function: Callable[..., _Result], *args: Any, undo: Callable[[_Result], object] | None = None
) -> _Result:
    """Run `function(*args)` in a thread; when cancelled, however often, wait for its end, and `undo` its result.

    For steps that must not go on behind the back of what comes next.
    """
    task = asyncio.create_task(asyncio.to_thread(function, *args))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if undo and not task.cancelled() and task.exception() is None:
            undo(task.result())
        raise


async def shielded(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Await `work` to its end although the caller is cancelled, which is forgotten then.

    For what must not be left halfway, however long it takes. Only the end of the event loop ends it.
    """
    task = asyncio.create_task(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    return task.result()


async def within(timeout_s: float, work: Coroutine[Any, Any, _Result], *, break_off_s: float) -> _Result:
    """Await `work` for `timeout_s`; raise TimeoutError at the latest `break_off_s` after that.

    It is cancelled then, and left to itself if it is still busy with what must not be left halfway.
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
            task.add_done_callback(_forget)
    if not task.done() or task.cancelled():
        raise TimeoutError
    return task.result()


def _forget(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
