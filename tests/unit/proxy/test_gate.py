"""The gate: `gateway.proxy.gate`."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from gateway.chroma.routes import Action, Kind, RouteMatch
from gateway.errors import Conflict, GateTimeout, GatewayError, LeaseLost, QuiesceTimeout, Unavailable
from gateway.proxy.gate import Gate, State, Ticket

LONG_S = 60
SHORT_S = 0.02
A, B = "collection-a", "collection-b"


@pytest.fixture
def gate() -> Gate:
    return Gate(timeout_s=LONG_S)


async def settled() -> None:
    """Run the event loop until no task can go on."""
    for _ in range(20):
        await asyncio.sleep(0)


def record_read(collection_id: str | None) -> RouteMatch:
    return RouteMatch(Action.QUERY, Kind.RECORD_READ, collection_id)


@contextmanager
def reading(gate: Gate) -> Iterator[None]:
    """A read in progress."""
    gate.begin_read()
    try:
        yield
    finally:
        gate.end_read()


def warm(gate: Gate, collection_id: str) -> bool:
    return gate.lets_pass(record_read(collection_id))


async def begin(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task = asyncio.create_task(work)
    await settled()
    return task


@asynccontextmanager
async def draining(gate: Gate) -> AsyncIterator[tuple[Ticket, asyncio.Task[None], asyncio.Event]]:
    """CLOSING: a hold waits for one ticket. After that it is CLOSED until the event is set."""
    ticket, end = await gate.acquire("a write"), asyncio.Event()

    async def hold() -> None:
        async with gate.hold(LONG_S):
            await end.wait()

    task = await begin(hold())
    assert gate.state is State.CLOSING
    try:
        yield ticket, task, end
    finally:
        gate.release(ticket)
        end.set()
        await asyncio.gather(task, return_exceptions=True)


async def assert_quiet(gate: Gate) -> None:
    """Nothing is in progress, nothing waits, and the gate can be held at once."""
    assert (gate.state, gate.writes, gate.requests, gate.waiting) == (State.OPEN, 0, 0, 0)
    async with gate.hold(0):
        assert gate.state is State.CLOSED
    assert not gate._waiters


# ---------------------------------------------------------------------- writes


async def test_an_open_gate_lets_writes_through_at_once(gate: Gate) -> None:
    """While it is open, writes do not wait for one another."""
    tickets = [await gate.acquire("a write") for _ in range(3)]
    assert (gate.writes, gate.waiting) == (3, 0)
    for ticket in tickets:
        gate.release(ticket)
    await assert_quiet(gate)


async def test_a_closing_gate_makes_writes_wait(gate: Gate) -> None:
    """A write that arrives during the drain waits, so that the drain can end."""
    async with draining(gate) as (ticket, hold, end):
        late = await begin(gate.acquire("a late write"))
        assert not late.done()
        assert (gate.state, gate.writes, gate.waiting) == (State.CLOSING, 1, 1)
        gate.release(ticket)
        await settled()
        assert (gate.state, gate.writes, gate.waiting) == (State.CLOSED, 0, 1)
        assert not late.done()
        end.set()
        await hold
        gate.release(await late)
    await assert_quiet(gate)


async def test_a_closed_gate_makes_writes_wait_until_it_opens(gate: Gate) -> None:
    """All that waited pass when the hold ends."""
    async with gate.hold(LONG_S):
        late = [await begin(gate.acquire("a late write")) for _ in range(5)]
        assert (gate.state, gate.writes, gate.waiting) == (State.CLOSED, 0, 5)
    for task in late:
        gate.release(await task)
    await assert_quiet(gate)


async def test_the_hold_begins_when_the_last_ticket_is_released(gate: Gate) -> None:
    """Not one ticket sooner, and not later than the event loop's next turn."""
    first = await gate.acquire("first")
    async with draining(gate) as (second, _, _):
        gate.release(first)
        await settled()
        assert gate.state is State.CLOSING
        gate.release(second)
        await settled()
        assert gate.state is State.CLOSED


async def test_a_write_that_waits_longer_than_the_timeout_fails() -> None:
    """GateTimeout is a 503 with Retry-After, says how long the write waited, and leaves no state behind."""
    gate = Gate(timeout_s=SHORT_S)
    async with gate.hold(LONG_S):
        with pytest.raises(GateTimeout, match=r"waited 0\.02 s") as raised:
            await gate.acquire("a write")
        with pytest.raises(GateTimeout):
            async with gate.ticket("a read of our own"):
                raise AssertionError
    assert (raised.value.status, raised.value.retryable) == (503, True)
    assert raised.value.retry_after_s
    await assert_quiet(gate)


async def test_a_waiting_write_does_not_pass_between_two_holds(gate: Gate) -> None:
    """If the gate is held again before the write runs, it goes on waiting."""
    async with gate.hold(LONG_S):
        late = await begin(gate.acquire("a late write"))
    async with gate.hold(LONG_S):
        await settled()
        assert not late.done()
        assert (gate.state, gate.writes) == (State.CLOSED, 0)
    gate.release(await late)
    await assert_quiet(gate)


async def test_a_cancelled_wait_takes_no_ticket(gate: Gate) -> None:
    """Neither at once nor when the gate opens."""
    async with gate.hold(LONG_S):
        task = await begin(gate.acquire("a write"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gate.waiting == 0
    await assert_quiet(gate)


async def test_a_wait_cancelled_as_the_gate_opens_takes_no_ticket(gate: Gate) -> None:
    """Opening and cancelling happen in the same turn of the event loop."""
    async with gate.hold(LONG_S):
        task = await begin(gate.acquire("a write"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await assert_quiet(gate)


async def test_releasing_a_ticket_twice_counts_once(gate: Gate) -> None:
    """Another write's ticket is not released with it."""
    first, second = await gate.acquire("first"), await gate.acquire("second")
    gate.release(first)
    gate.release(first)
    assert gate.writes == 1
    gate.release(second)
    await assert_quiet(gate)


# ---------------------------------------------------------------------- hold


async def test_hold_yields_the_duration_of_the_drain(gate: Gate) -> None:
    """In milliseconds, from the call to the last ticket."""
    async with gate.hold(LONG_S) as drain_ms:
        assert 0 <= drain_ms < 1000


@pytest.mark.parametrize("drain_timeout_s", [0, SHORT_S])
async def test_a_drain_that_takes_too_long_fails_and_opens_again(gate: Gate, drain_timeout_s: float) -> None:
    """QuiesceTimeout names the oldest write, the block does not run, and writes go on."""
    oldest, newer = await gate.acquire("POST /oldest"), await gate.acquire("POST /newer")
    with pytest.raises(QuiesceTimeout, match=r"2 write\(s\), the oldest of them POST /oldest") as raised:
        async with gate.hold(drain_timeout_s):
            raise AssertionError
    assert (raised.value.status, raised.value.retryable) == (503, True)
    assert gate.state is State.OPEN
    gate.release(await gate.acquire("a write"))
    gate.release(oldest)
    gate.release(newer)
    await assert_quiet(gate)


async def test_a_failed_drain_lets_waiting_writes_through(gate: Gate) -> None:
    """They pass at once, not after their own timeout."""
    ticket = await gate.acquire("a slow write")

    async def hold() -> None:
        async with gate.hold(SHORT_S):
            raise AssertionError

    task = await begin(hold())
    late = await begin(gate.acquire("a late write"))
    assert gate.waiting == 1
    with pytest.raises(QuiesceTimeout):
        await task
    gate.release(await late)
    gate.release(ticket)
    await assert_quiet(gate)


async def test_a_second_hold_is_a_conflict(gate: Gate) -> None:
    """Both while the first one drains and while it lasts. The first one is not affected."""
    async with draining(gate) as (ticket, _, _):
        for state in (State.CLOSING, State.CLOSED):
            assert gate.state is state
            with pytest.raises(Conflict):
                async with gate.hold(LONG_S):
                    raise AssertionError
            assert gate.state is state
            gate.release(ticket)
            await settled()
    await assert_quiet(gate)


async def test_a_hold_whose_block_fails_opens_again(gate: Gate) -> None:
    """The error is raised, the gate is open, and waiting writes pass."""

    async def fail() -> None:
        async with gate.hold(LONG_S):
            late.append(await begin(gate.acquire("a late write")))
            raise ZeroDivisionError

    late: list[asyncio.Task[Ticket]] = []
    with pytest.raises(ZeroDivisionError):
        await fail()
    gate.release(await late[0])
    await assert_quiet(gate)


@pytest.mark.parametrize("state", [State.CLOSING, State.CLOSED])
async def test_a_cancelled_hold_opens_again(gate: Gate, state: State) -> None:
    """Whether it is cancelled during the drain or during the hold."""
    async with draining(gate) as (ticket, hold, _):
        if state is State.CLOSED:
            gate.release(ticket)
            await settled()
        assert gate.state is state
        late = await begin(gate.acquire("a late write"))
        hold.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hold
        assert gate.state is State.OPEN
        gate.release(await late)
    await assert_quiet(gate)


# ---------------------------------------------------------------------- reads and warm collections


async def test_plain_reads_pass_in_every_state(gate: Gate) -> None:
    """Reads never wait, and a hold does not wait for them."""
    with reading(gate):
        async with gate.hold(0):
            assert gate.lets_pass(RouteMatch(Action.GET_TENANT, Kind.READ))
            assert not gate.lets_pass(RouteMatch(Action.CREATE_TENANT, Kind.WRITE))
            with reading(gate):
                assert gate.requests == 2
    await assert_quiet(gate)


async def test_the_first_read_of_a_collection_takes_a_ticket(gate: Gate) -> None:
    """It writes. Once it succeeded, further reads of that collection, and of no other, pass."""
    assert not warm(gate, A)
    ticket = await gate.acquire("a first read", A)
    assert gate.writes == 1
    assert not warm(gate, A)
    gate.release(ticket, done=True)
    assert warm(gate, A)
    assert not warm(gate, B)
    async with gate.hold(0):
        assert warm(gate, A)


async def test_a_failed_first_read_does_not_warm_the_collection(gate: Gate) -> None:
    """Without status 200 the backfill may not have happened."""
    gate.release(await gate.acquire("a first read", A))
    with pytest.raises(ZeroDivisionError):
        async with gate.ticket("a read of our own", A):
            raise ZeroDivisionError
    assert not warm(gate, A)
    await assert_quiet(gate)


async def test_a_write_does_not_warm_a_collection(gate: Gate) -> None:
    """It does not say whether any collection had its first read."""
    gate.release(await gate.acquire("a write"), done=True)
    assert not gate.lets_pass(record_read(None))


async def test_no_collection_is_warm_after_chroma_ended(gate: Gate) -> None:
    """Each process of Chroma does its own first read."""
    gate.release(await gate.acquire("a first read", A), done=True)
    gate.chroma_gone()
    assert not warm(gate, A)


async def test_a_first_read_of_an_ended_chroma_does_not_warm_the_collection(gate: Gate) -> None:
    """It was read in the previous process."""
    ticket = await gate.acquire("a first read", A)
    async with gate.ticket("a read of our own", B):
        gate.chroma_gone()
        newer = await gate.acquire("a first read in the next Chroma", A)
    gate.release(ticket, done=True)
    assert not warm(gate, A)
    assert not warm(gate, B)
    assert gate.writes == 1
    gate.release(newer, done=True)
    assert warm(gate, A)
    await assert_quiet(gate)


async def test_a_ticket_stays_valid_when_chroma_ends(gate: Gate) -> None:
    """A write that was not sent yet goes to the next Chroma, so a drain waits for it."""
    async with draining(gate):
        gate.chroma_gone()
        await settled()
        assert gate.state is State.CLOSING


async def test_the_warm_set_is_bounded(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids of deleted collections do not fill the memory."""
    monkeypatch.setattr("gateway.proxy.gate._WARM_LIMIT", 3)
    for number in range(100):
        gate.release(await gate.acquire("a first read", str(number)), done=True)
        assert warm(gate, str(number))
    assert sum(warm(gate, str(number)) for number in range(100)) <= 3


# ---------------------------------------------------------------------- refuse


async def test_refuse_rejects_every_request_with_its_reason(gate: Gate) -> None:
    """Reads and writes get 503 with the reason at once. Afterwards the gate is as before."""
    async with gate.refuse("a restore is under way", LONG_S):
        with pytest.raises(Unavailable, match="a restore is under way"), reading(gate):
            raise AssertionError
        with pytest.raises(Unavailable, match="a restore is under way"):
            await gate.acquire("a write")
        assert (gate.writes, gate.requests, gate.waiting) == (0, 0, 0)
    with reading(gate):
        gate.release(await gate.acquire("a write"))
    await assert_quiet(gate)


async def test_refuse_rejects_waiting_writes_at_once(gate: Gate) -> None:
    """They get the reason now, not at their timeout."""
    async with gate.hold(LONG_S):
        late = await begin(gate.acquire("a late write"))
        async with gate.refuse("a restore is under way", LONG_S):
            with pytest.raises(Unavailable, match="a restore is under way"):
                await late
    await assert_quiet(gate)


async def test_refuse_waits_for_reads_and_writes_in_progress(gate: Gate) -> None:
    """The block begins when the last of both has ended."""
    refusing, end = asyncio.Event(), asyncio.Event()

    async def refuse() -> None:
        async with gate.refuse("a restore is under way", LONG_S):
            refusing.set()
            await end.wait()

    ticket = await gate.acquire("a write")
    with reading(gate):
        task = await begin(refuse())
        gate.release(ticket)
        await settled()
        assert not refusing.is_set()
    await settled()
    assert refusing.is_set()
    end.set()
    await task
    await assert_quiet(gate)


async def test_refuse_waits_no_longer_than_its_timeout(gate: Gate) -> None:
    """Requests that did not end in time are no error."""
    ticket = await gate.acquire("a write")
    with reading(gate):
        async with gate.refuse("a restore is under way", SHORT_S):
            assert (gate.writes, gate.requests) == (1, 1)
        gate.release(ticket)
    await assert_quiet(gate)


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_refuse_ends_with_its_block(gate: Gate, how: str) -> None:
    """Whether the block fails or is cancelled, requests are admitted again."""

    async def refuse() -> None:
        async with gate.refuse("a restore is under way", LONG_S):
            if how == "fails":
                raise ZeroDivisionError
            await asyncio.get_running_loop().create_future()

    task = await begin(refuse())
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert gate.refusal is None
    await assert_quiet(gate)


async def test_the_gateways_own_reads_are_not_refused(gate: Gate) -> None:
    """A restored Chroma is warmed while clients are refused."""
    async with gate.refuse("a restore is under way", LONG_S):
        async with gate.ticket("warming", A):
            assert gate.writes == 1
        assert warm(gate, A)
    await assert_quiet(gate)


async def test_the_gateways_own_reads_wait_for_a_hold(gate: Gate) -> None:
    """A first read writes, so it must not reach a frozen Chroma, whether clients are refused or not."""

    async def read() -> None:
        async with gate.ticket("warming", A):
            assert gate.state is State.OPEN

    async with gate.hold(LONG_S):
        task = await begin(read())
        async with gate.refuse("a restore is under way", 0):
            await settled()
            assert (task.done(), gate.waiting) == (False, 1)
    await task
    await assert_quiet(gate)


# ---------------------------------------------------------------------- in any order


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop with a clock that the test sets."""

    now = 0.0

    def time(self) -> float:
        return self.now


def test_a_ticket_released_as_the_drain_times_out_counts() -> None:
    """If the timeout comes in the same turn of the event loop, the hold does not fail."""
    loop = VirtualTime()
    gate = Gate(LONG_S)

    async def hold() -> State:
        async with gate.hold(10):
            return gate.state

    ticket = loop.run_until_complete(gate.acquire("a write"))
    holding = loop.create_task(hold())
    loop.run_until_complete(settled())
    loop.call_at(10.5, gate.release, ticket)
    loop.now = 11  # first the timeout, then the ticket, and only then the hold wakes up
    assert loop.run_until_complete(holding) is State.CLOSED
    loop.close()


class GateMachine(RuleBasedStateMachine):
    """Acquires, releases, holds, refuses, cancels, ends Chroma and moves the clock, in any order.

    It counts the requests in progress itself, to compare them with the gate's counts.
    """

    TIMEOUT_S, DRAIN_S = 30.0, 10.0

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTime()
        self.gate = Gate(self.TIMEOUT_S)
        self.acquiring: list[asyncio.Task[Ticket]] = []
        self.in_progress: list[Ticket] = []
        self.of_ended_chroma: set[Ticket] = set()
        self.hold: asyncio.Task[None] | None = None
        self.held, self.end = asyncio.Event(), asyncio.Event()
        self.own_reads: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        self.refusals = AsyncExitStack()
        self.refusing = False
        self.reads = 0

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def settle(self) -> None:
        self.run(settled())
        for task in [task for task in self.acquiring if task.done()]:
            self.acquiring.remove(task)
            if not task.cancelled() and not task.exception():
                self.in_progress.append(task.result())
        if self.hold and self.hold.done():
            if not self.hold.cancelled() and (error := self.hold.exception()):
                assert isinstance(error, QuiesceTimeout)
            self.hold = None
        for own in [own for own in self.own_reads if own[0].done()]:
            self.own_reads.remove(own)
            assert own[0].cancelled() or isinstance(own[0].exception(), GateTimeout | None)

    @rule(collection=st.sampled_from([None, A, B]))
    def acquire(self, collection: str | None) -> None:
        self.acquiring.append(self.loop.create_task(self.gate.acquire("a write", collection)))
        self.settle()

    @precondition(lambda self: self.in_progress)
    @rule(data=st.data(), done=st.booleans())
    def release(self, data: st.DataObject, done: bool) -> None:
        ticket = self.in_progress.pop(data.draw(st.integers(0, len(self.in_progress) - 1)))
        self.gate.release(ticket, done=done)
        if done and ticket.collection_id and ticket not in self.of_ended_chroma:
            assert warm(self.gate, ticket.collection_id)
        self.settle()

    @precondition(lambda self: self.acquiring)
    @rule(data=st.data(), settle_first=st.booleans())
    def cancel_waiting(self, data: st.DataObject, settle_first: bool) -> None:
        if not settle_first and self.hold:
            self.end.set()  # opens in the same turn
        data.draw(st.sampled_from(self.acquiring)).cancel()
        self.settle()

    @rule()
    def begin_hold(self) -> None:
        async def hold() -> None:
            async with self.gate.hold(self.DRAIN_S):
                assert not self.in_progress
                self.held.set()
                await self.end.wait()

        if self.hold is None:
            self.held, self.end = asyncio.Event(), asyncio.Event()
            self.hold = self.loop.create_task(hold())
        else:
            with pytest.raises(Conflict):
                self.run(hold())
        self.settle()

    @precondition(lambda self: self.hold)
    @rule(cancel=st.booleans())
    def end_hold(self, cancel: bool) -> None:
        assert self.hold
        self.end.set()
        if cancel:
            self.hold.cancel()
        self.settle()

    @rule()
    def begin_own(self) -> None:
        end = asyncio.Event()

        async def read() -> None:
            async with self.gate.ticket("our own", A):
                assert self.gate.state is State.OPEN
                await end.wait()

        self.own_reads.append((self.loop.create_task(read()), end))
        self.settle()

    @precondition(lambda self: self.own_reads)
    @rule(data=st.data(), cancel=st.booleans())
    def end_own(self, data: st.DataObject, cancel: bool) -> None:
        task, end = data.draw(st.sampled_from(self.own_reads))
        end.set()
        if cancel:
            task.cancel()
        self.settle()

    @precondition(lambda self: not self.refusing)
    @rule()
    def begin_refusal(self) -> None:
        self.run(self.refusals.enter_async_context(self.gate.refuse("a restore", 0)))
        self.refusing = True
        self.settle()

    @precondition(lambda self: self.refusing)
    @rule()
    def end_refusal(self) -> None:
        self.run(self.refusals.aclose())
        self.refusing = False
        self.settle()

    @rule()
    def read(self) -> None:
        try:
            self.gate.begin_read()
        except Unavailable:
            assert self.refusing
        else:
            assert not self.refusing
            self.reads += 1

    @precondition(lambda self: self.reads)
    @rule()
    def end_read(self) -> None:
        self.reads -= 1
        self.gate.end_read()
        self.settle()

    @rule()
    def chroma_ends(self) -> None:
        self.gate.chroma_gone()
        assert not warm(self.gate, A)
        self.of_ended_chroma.update(self.in_progress)
        self.settle()

    @rule(seconds=st.sampled_from([1.0, DRAIN_S, TIMEOUT_S]))
    def time_goes_by(self, seconds: float) -> None:
        waiting = list(self.acquiring)
        self.loop.now += seconds
        self.settle()
        if seconds == self.TIMEOUT_S:
            assert all(task.done() for task in waiting)

    @invariant()
    def no_write_is_in_progress_while_closed(self) -> None:
        if self.gate.state is State.CLOSED:
            assert not self.in_progress
            assert self.gate.writes == 0

    @invariant()
    def every_write_is_counted(self) -> None:
        assert 0 <= self.gate.writes - len(self.in_progress) <= len(self.own_reads)
        assert self.gate.requests == self.reads

    @invariant()
    def nothing_waits_at_an_open_gate(self) -> None:
        assert len(self.acquiring) <= self.gate.waiting <= len(self.acquiring) + len(self.own_reads)
        if self.gate.state is State.OPEN or self.refusing:
            assert not self.acquiring
        if self.gate.state is State.OPEN:
            assert self.gate.waiting == 0
        assert (self.gate.state is State.OPEN) == (self.hold is None)

    def teardown(self) -> None:
        for ticket in self.in_progress:
            self.gate.release(ticket)
        self.in_progress = []
        tasks: list[asyncio.Task[Any]] = [*self.acquiring, *(task for task, _ in self.own_reads)]
        tasks += [self.hold] if self.hold else []
        for task in tasks:
            task.cancel()
        self.run(asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 1) if tasks else settled())
        self.run(self.refusals.aclose())
        for _ in range(self.reads):
            self.gate.end_read()
        self.run(assert_quiet(self.gate))
        self.loop.close()


def test_no_write_is_in_progress_while_the_gate_is_closed() -> None:
    """In any order of events. Nothing waits at an open gate, and at the end no state is left."""
    run_state_machine_as_test(GateMachine, settings=settings(max_examples=60, stateful_step_count=30))


def test_the_gates_errors_are_gateway_errors() -> None:
    """So clients get them in Chroma's shape."""
    assert all(issubclass(error, GatewayError) for error in (Conflict, GateTimeout, QuiesceTimeout, Unavailable))


# ---------------------------------------------------------------------- another gateway is the writer


async def test_refuse_writes_rejects_writes_at_once_and_reads_go_on(gate: Gate) -> None:
    """Also first reads of a collection, which take a ticket as writes do."""
    gate.refuse_writes("another gateway")
    with pytest.raises(LeaseLost, match="another gateway"):
        await gate.acquire("a write")
    assert gate.try_acquire("a write") is None
    ticket = await gate.acquire("a first read", A)
    gate.release(ticket, done=True)
    assert warm(gate, A)
    with reading(gate):
        pass
    gate.accept_writes()
    gate.release(await gate.acquire("a write"))


async def test_refuse_writes_rejects_waiting_writes(gate: Gate) -> None:
    """They must not pass when the gate opens. A first read that waits does."""
    async with draining(gate):
        write, read = await begin(gate.acquire("a write")), await begin(gate.acquire("a first read", A))
        gate.refuse_writes("another gateway")
        with pytest.raises(LeaseLost):
            await asyncio.wait_for(write, 5)
        assert not read.done()
    gate.release(await asyncio.wait_for(read, 5))


async def test_writes_that_would_be_lost_are_rejected_and_reads_go_on(gate: Gate) -> None:
    """Those that wait too. The gate cannot be held meanwhile: a snapshot would be one of what is not there."""
    async with draining(gate):
        write, read = await begin(gate.acquire("a write")), await begin(gate.acquire("a first read", A))
        gate.lose_writes("the directory is gone")
        with pytest.raises(Unavailable, match="the directory is gone"):
            await asyncio.wait_for(write, 5)
    gate.release(await asyncio.wait_for(read, 5))
    assert gate.try_acquire("a write") is None
    gate.accept_writes()
    with pytest.raises(Unavailable, match="the directory is gone"):
        await gate.acquire("a write")
    with pytest.raises(Unavailable, match="the directory is gone"):
        async with gate.hold(1):
            pytest.fail("it was held")
    gate.lose_writes(None)
    gate.release(await gate.acquire("a write"))


async def test_a_drain_waits_for_writes_in_progress_while_writes_are_refused(gate: Gate) -> None:
    """So that the last snapshot has them."""
    async with draining(gate) as (_, task, _):
        gate.refuse_writes("another gateway")
        await settled()
        assert not task.done()
        assert gate.state is State.CLOSING


async def test_admitted_writes_are_counted(gate: Gate) -> None:
    """Each write that passed, but no reads and no refused writes."""
    gate.release(await gate.acquire("a write"))
    ticket = gate.try_acquire("a write")
    assert ticket
    gate.release(ticket)
    gate.release(await gate.acquire("a first read", A))
    async with gate.ticket("our own read", B):
        pass
    gate.refuse_writes("another gateway")
    assert gate.try_acquire("a write") is None
    assert gate.admitted_writes == 2


async def test_a_collection_that_cannot_be_read_is_refused_for_itself(gate: Gate) -> None:
    """Its first reads and its writes are; those of other collections pass, also while the gate was closed."""
    gate.quarantine.unreadable = {A: "torn"}
    for collection_id in (A, None):
        assert gate.try_acquire("a request", collection_id, A) is None
        with pytest.raises(Unavailable, match="torn"):
            await gate.acquire("a request", collection_id, A)
    gate.release(await gate.acquire("a write", None, B))
    async with gate.hold(SHORT_S):
        waiting = await begin(gate.acquire("a write", None, B))
        gate.quarantine.unreadable = {B: "torn since"}
    with pytest.raises(Unavailable, match="torn since"):
        await waiting
    assert gate.writes == 0


async def test_what_chroma_has_not_answered_is_known(gate: Gate) -> None:
    """From the moment it is sent until the response begins; a request that was never sent is no suspect."""
    for answered, suspects in ((True, set()), (False, {A})):
        ticket = await gate.acquire("a write", None, A)
        unsent = await gate.acquire("a write", None, B)
        gate.sending(ticket)
        if answered:
            gate.release_at_response(ticket, done=False)
            gate.end_read()
        gate.release(ticket)
        gate.release(unsent)
        gate.quarantine.chroma_gone()
        assert gate.quarantine.suspects == suspects


async def test_writes_wait_until_they_are_extended(gate: Gate) -> None:
    """Reads pass, first reads too. A write that waited is admitted by the next extension."""
    gate.extend_writes(time.monotonic() - 1)
    assert gate.try_acquire("a write") is None
    ticket = gate.try_acquire("a first read", A)
    assert ticket is not None
    gate.release(ticket)
    writing = await begin(gate.acquire("a write"))
    assert not writing.done()
    gate.extend_writes(time.monotonic() + LONG_S)
    gate.release(await writing)
    assert gate.try_acquire("a write") is not None


async def test_a_refusal_ends_the_wait_for_an_extension(gate: Gate) -> None:
    """What waited after a pause is refused where another gateway became the writer."""
    gate.extend_writes(time.monotonic() - 1)
    writing = await begin(gate.acquire("a write"))
    gate.refuse_writes("another gateway is the writer")
    with pytest.raises(LeaseLost):
        await writing
