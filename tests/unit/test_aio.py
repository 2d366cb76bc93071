"""What must not be left halfway is not."""

import asyncio
import threading

import pytest

from gateway.aio import run_in_thread_uninterrupted, shielded
from gateway.errors import Conflict


async def test_what_was_begun_goes_to_its_end_although_cancelled() -> None:
    """However often; the caller goes on with its result as if nobody had cancelled."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def work() -> int:
        begun.set()
        await go.wait()
        return 42

    caller = asyncio.create_task(shielded(work()))
    await begun.wait()
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0)
    assert not caller.done()
    go.set()
    assert await caller == 42


async def test_its_failure_is_raised_as_itself() -> None:
    """As if it had been awaited."""

    async def work() -> None:
        raise Conflict("something is under way")

    with pytest.raises(Conflict):
        await shielded(work())


async def test_a_thread_is_waited_for_and_undone_however_often_its_caller_is_cancelled() -> None:
    """A stop cancels again what was cancelled before: what was made meanwhile would stay for good."""
    begun, go = asyncio.Event(), threading.Event()
    loop, undone = asyncio.get_running_loop(), list[str]()

    def work() -> str:
        loop.call_soon_threadsafe(begun.set)
        assert go.wait(10)
        return "made"

    caller = asyncio.create_task(run_in_thread_uninterrupted(work, undo=undone.append))
    await begun.wait()
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0.01)
    ended_early = caller.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert (ended_early, undone) == (False, ["made"])
