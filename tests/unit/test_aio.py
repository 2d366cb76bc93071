"""Cancelling, failing and waiting do the same everywhere."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable

import pytest

from gateway.aio import (
    SharedRuns,
    TaskPool,
    background,
    cancel,
    poll_until,
    run_in_thread_uninterrupted,
    shielded,
    uninterrupted,
    within,
)
from gateway.errors import Conflict


async def test_shielded_work_ends_and_its_caller_goes_on_however_often_it_is_cancelled() -> None:
    """The caller gets the result as if nobody had cancelled."""
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


async def test_uninterrupted_work_ends_before_its_caller_is_cancelled() -> None:
    """However often the caller is cancelled, CancelledError comes after the work, and the result is undone."""
    begun, go = asyncio.Event(), asyncio.Event()
    undone = list[str]()

    async def work() -> str:
        begun.set()
        await go.wait()
        return "made"

    caller = asyncio.create_task(uninterrupted(work(), undo=undone.append))
    await begun.wait()
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0)
    assert not caller.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert undone == ["made"]


@pytest.mark.parametrize("protected", [shielded, uninterrupted])
async def test_a_failure_of_protected_work_is_raised_as_itself(
    protected: Callable[[Awaitable[None]], Awaitable[None]],
) -> None:
    """As if the work had been awaited directly."""

    async def work() -> None:
        raise Conflict("something is under way")

    with pytest.raises(Conflict):
        await protected(work())


async def test_a_thread_ends_and_is_undone_before_its_caller_is_cancelled() -> None:
    """However often the caller is cancelled: what the thread makes would stay for good."""
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


async def test_a_pool_runs_no_more_tasks_than_its_size() -> None:
    """`start` waits for a free place, and the end of the block for every task."""
    running, most, done = 0, 0, list[int]()

    async def work(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        done.append(number)

    async with TaskPool(3) as pool:
        for number in range(20):
            await pool.start(work, number)
    assert (most, sorted(done)) == (3, list(range(20)))


async def test_a_pool_raises_its_first_failure_and_cancels_the_rest() -> None:
    """The failure is raised as itself, not in an exception group."""
    cancelled = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def fail() -> None:
        raise Conflict("something is under way")

    async def both() -> None:
        async with TaskPool(2) as pool:
            await pool.start(wait)
            await asyncio.sleep(0)
            await pool.start(fail)

    with pytest.raises(Conflict):
        await both()
    assert cancelled.is_set()


async def test_background_work_has_ended_after_its_block() -> None:
    """Also when the block raises, and what the work does at its end is waited for."""
    cleaned = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    with contextlib.suppress(Conflict):
        async with background(work()) as task:
            await asyncio.sleep(0)
            assert not task.done()
            raise Conflict("something is under way")
    assert cleaned.is_set()


async def test_cancel_drops_what_the_tasks_raise() -> None:
    """A task that failed before or fails while it is cancelled is no error of the caller."""

    async def fail() -> None:
        raise Conflict("something is under way")

    async def fail_at_its_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise Conflict("something is under way")

    tasks = [asyncio.create_task(fail()), asyncio.create_task(fail_at_its_end())]
    await asyncio.sleep(0)
    await cancel(*tasks)
    assert all(task.done() for task in tasks)


async def test_a_time_limit_leaves_work_that_must_not_stop_halfway_to_itself() -> None:
    """TimeoutError comes although the work is not done; the work still comes to its end."""
    go, done = asyncio.Event(), asyncio.Event()

    async def finish() -> None:
        await go.wait()
        done.set()

    with pytest.raises(TimeoutError):
        await within(0, shielded(finish()), break_off_s=0)
    go.set()
    await asyncio.wait_for(done.wait(), 5)


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.mark.parametrize(("answers", "looked"), [([5], 1), ([0, None, 7, 9], 3)])
async def test_polling_ends_with_the_first_true_answer(answers: list[int | None], looked: int) -> None:
    """It is returned; between two looks the interval passes."""
    clock, asked = Clock(), 0

    async def look() -> int | None:
        nonlocal asked
        asked += 1
        return answers[asked - 1]

    found = await poll_until(look, every_s=2, timeout_s=60, clock=clock, sleep=clock.sleep)
    assert (found, asked, clock.now_s) == (answers[looked - 1], looked, 100 + 2 * (looked - 1))


@pytest.mark.parametrize(("timeout_s", "looked"), [(0, 1), (5, 4)])
async def test_polling_gives_up_after_its_time(timeout_s: float, looked: int) -> None:
    """It looks at least once, and never again after the limit has passed."""
    clock, asked = Clock(), 0

    async def look() -> bool:
        nonlocal asked
        asked += 1
        return False

    with pytest.raises(TimeoutError):
        await poll_until(look, every_s=2, timeout_s=timeout_s, clock=clock, sleep=clock.sleep)
    assert asked == looked


class _Work:
    """Work that goes on when it is told to."""

    def __init__(self) -> None:
        self.begun, self.go_on = 0, asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        await self.go_on.acquire()
        if self.error is not None:
            raise self.error
        return number


async def test_callers_share_a_run_that_began_after_they_came() -> None:
    """However many ask at once. One that asks later gets what is so then."""
    work = _Work()
    runs = SharedRuns(work)
    first = asyncio.create_task(runs.run())
    await asyncio.sleep(0)
    others = [asyncio.create_task(runs.run()) for _ in range(50)]
    await asyncio.sleep(0)
    work.go_on.release()
    work.go_on.release()
    async with asyncio.timeout(5):
        assert await first == 1
        assert await asyncio.gather(*others) == [2] * 50
        work.go_on.release()
        assert await runs.run() == 3
    assert (work.begun, runs.callers) == (3, 0)


async def test_the_error_of_a_shared_run_is_not_for_all() -> None:
    """The next caller tries itself, and so it does when the one before was cancelled."""
    work = _Work()
    runs = SharedRuns(work)
    work.error = ValueError("once")
    first, second, third = (asyncio.create_task(runs.run()) for _ in range(3))
    await asyncio.sleep(0)
    work.go_on.release()
    async with asyncio.timeout(5):
        with pytest.raises(ValueError, match="once"):
            await first
        work.error = None
        await asyncio.sleep(0)
        second.cancel()
        work.go_on.release()
        assert await third == work.begun
    assert second.cancelled()
