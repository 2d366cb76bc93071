"""Jobs end in exactly one state, report their progress, and clean up when cancelled."""

import asyncio
import gc
import weakref

import pytest

from gateway.errors import Conflict, GatewayError, NotFound
from gateway.jobs import Jobs, Progress


async def test_every_caller_that_waits_gets_the_result() -> None:
    """The status of a job that succeeded has it too."""

    async def work(progress: Progress) -> dict[str, int]:
        progress.phase("counting", 3, "things")
        progress.advance(3)
        return {"answer": 42}

    jobs = Jobs()
    job = jobs.start("count", "things", work)
    assert job.status().state == "running"
    assert await job.outcome() == await job.outcome() == {"answer": 42}
    status = jobs.get(job.id).status()
    assert (status.state, status.phase, status.done, status.total, status.unit) == (
        "succeeded",
        "counting",
        3,
        3,
        "things",
    )
    assert status.result == {"answer": 42}
    assert status.ended_at is not None


async def test_a_failure_is_raised_as_itself_and_shown_in_the_shape_of_all_errors() -> None:
    """One of our errors keeps its status and its hint. Any other one says that the log knows more."""

    async def refused(_: Progress) -> None:
        raise Conflict("something is under way", "wait")

    async def broken(_: Progress) -> None:
        raise ZeroDivisionError

    jobs = Jobs()
    first, second = jobs.start("a", "", refused), jobs.start("b", "", broken)
    with pytest.raises(Conflict):
        await first.outcome()
    with pytest.raises(GatewayError, match="unexpectedly"):
        await second.outcome()
    assert first.status().error == Conflict("something is under way", "wait").body()
    assert [job.status().state for job in jobs.all()] == ["failed", "failed"]


async def test_cancelling_waits_until_the_work_has_cleaned_up() -> None:
    """When `cancel` returns, the work has done what it does at its end."""
    cleaned = []

    async def work(_: Progress) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(True)

    jobs = Jobs()
    job = jobs.start("wait", "", work)
    await asyncio.sleep(0)
    await job.cancel()
    assert cleaned == [True]
    assert job.status().state == "cancelled"
    await job.cancel()
    with pytest.raises(GatewayError, match="cancelled"):
        await job.outcome()


async def test_a_caller_that_stops_waiting_does_not_stop_the_job() -> None:
    """A client that hangs up leaves the work going on."""
    go = asyncio.Event()

    async def work(_: Progress) -> None:
        await go.wait()

    job = Jobs().start("wait", "", work)
    waiting = asyncio.create_task(job.outcome())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    go.set()
    await job.outcome()
    assert job.status().state == "succeeded"


async def test_events_end_with_the_final_status() -> None:
    """Before it come statuses of the running job, fewer than it has steps."""

    async def work(progress: Progress) -> None:
        progress.phase("going", 1000)
        for _ in range(1000):
            progress.advance(1)
            await asyncio.sleep(0)

    job = Jobs().start("go", "", work)
    seen = [status async for status in job.events()]
    assert seen[0].state == "running"
    assert seen[-1].state == "succeeded"
    assert (seen[-1].done, seen[-1].total) == (1000, 1000)
    assert len(seen) < 20
    assert [status.state async for status in job.events()] == ["succeeded"]


async def test_every_watcher_sees_the_end() -> None:
    """Also one that was slow to take an event, while another one already saw the end."""
    go = asyncio.Event()

    async def work(_: Progress) -> None:
        await go.wait()

    job = Jobs().start("go", "", work)
    slow, quick = job.events(), job.events()
    assert (await anext(slow)).state == (await anext(quick)).state == "running"
    at_end = asyncio.create_task(anext(quick))
    go.set()
    assert (await at_end).state == "succeeded"
    assert [each async for each in quick] == []
    async with asyncio.timeout(5):
        assert (await anext(slow)).state == "succeeded"


async def test_a_failed_job_frees_the_memory_of_its_work() -> None:
    """A hundred jobs are remembered and a pack may have 64 MiB: only the message of the error is kept."""

    class Pack:
        pass

    packs = []

    def unpack(pack: Pack) -> None:
        raise ZeroDivisionError

    def fetch() -> None:
        pack = Pack()
        packs.append(weakref.ref(pack))
        try:
            unpack(pack)
        except ZeroDivisionError as error:
            raise Conflict("it is not what it should be") from error

    async def work(_: Progress) -> None:
        await asyncio.to_thread(fetch)

    job = Jobs().start("fetch", "", work)
    with pytest.raises(Conflict):
        await job.outcome()
    gc.collect()
    assert [pack() for pack in packs] == [None]
    assert job.status().error == Conflict("it is not what it should be").body()


async def test_the_last_hundred_jobs_and_all_running_ones_are_remembered() -> None:
    """Ended jobs beyond a hundred are dropped, oldest first."""
    go = asyncio.Event()

    async def wait(_: Progress) -> None:
        await go.wait()

    async def nothing(_: Progress) -> None:
        pass

    jobs = Jobs()
    first = jobs.start("wait", "", wait)
    for _ in range(150):
        await jobs.start("nothing", "", nothing).outcome()
    assert jobs.get(first.id) is first
    assert len(jobs.all()) == 100
    with pytest.raises(NotFound):
        jobs.get("2")
    await jobs.close()
    assert first.status().state == "cancelled"


def test_an_estimate_needs_a_total_and_a_rate() -> None:
    """Without either there is none; with both it is not negative."""
    progress = Progress()
    progress.phase("x", None)
    progress.advance(10)
    assert progress.remaining_s is None
    progress.phase("y", 5)
    assert progress.remaining_s is None
    progress.advance(10)
    assert progress.remaining_s == 0


async def test_a_job_that_is_cancelled_before_its_first_step_has_ended() -> None:
    """A caller that waits for it gets the error."""

    async def work(_: Progress) -> None:
        raise AssertionError("it never begins")

    job = Jobs().start("wait", "", work)
    await job.cancel()
    assert job.status().state == "cancelled"
    with pytest.raises(GatewayError, match="cancelled"):
        await job.outcome()
