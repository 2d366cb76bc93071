"""The gate: `gateway.proxy.gate`."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from gateway.errors import Conflict, GateTimeout, GatewayError, LeaseLost, QuiesceTimeout, Unavailable
from gateway.proxy.classify import Kind, Route
from gateway.proxy.gate import Gate, State, Ticket

LONG_S = 60
SHORT_S = 0.02
A, B = "collection-a", "collection-b"


@pytest.fixture
def gate() -> Gate:
    return Gate(timeout_s=LONG_S)


async def settled() -> None:
    """Until every task that can go on has gone as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


def warm(gate: Gate, collection_id: str) -> bool:
    return gate.lets_pass(Route(Kind.RECORD_READ, collection_id))


async def begin(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task = asyncio.create_task(work)
    await settled()
    return task


@asynccontextmanager
async def draining(gate: Gate) -> AsyncIterator[tuple[Ticket, asyncio.Task[None], asyncio.Event]]:
    """CLOSING: a hold waits for one ticket; then it is CLOSED until the event is set."""
    ticket, end = await gate.enter("a write"), asyncio.Event()

    async def hold() -> None:
        async with gate.hold(LONG_S):
            await end.wait()

    task = await begin(hold())
    assert gate.state is State.CLOSING
    try:
        yield ticket, task, end
    finally:
        gate.leave(ticket)
        end.set()
        await asyncio.gather(task, return_exceptions=True)


async def assert_quiet(gate: Gate) -> None:
    """Nothing is under way, nothing waits, and the gate can be held at once."""
    assert (gate.state, gate.writes, gate.requests, gate.waiting) == (State.OPEN, 0, 0, 0)
    async with gate.hold(0):
        assert gate.state is State.CLOSED
    assert not gate._waiters


# ---------------------------------------------------------------------- writes


async def test_open_lets_writes_through_at_once(gate: Gate) -> None:
    """While it is open, writes do not wait for one another."""
    tickets = [await gate.enter("a write") for _ in range(3)]
    assert (gate.writes, gate.waiting) == (3, 0)
    for ticket in tickets:
        gate.leave(ticket)
    await assert_quiet(gate)


async def test_closing_holds_writes_back(gate: Gate) -> None:
    """A write that arrives while others drain waits, though it could have been let through."""
    async with draining(gate) as (ticket, hold, end):
        late = await begin(gate.enter("a late write"))
        assert not late.done()
        assert (gate.state, gate.writes, gate.waiting) == (State.CLOSING, 1, 1)
        gate.leave(ticket)
        await settled()
        assert (gate.state, gate.writes, gate.waiting) == (State.CLOSED, 0, 1)
        assert not late.done()
        end.set()
        await hold
        gate.leave(await late)
    await assert_quiet(gate)


async def test_closed_holds_writes_back_until_it_opens(gate: Gate) -> None:
    """All that waited are let through when the hold ends."""
    async with gate.hold(LONG_S):
        late = [await begin(gate.enter("a late write")) for _ in range(5)]
        assert (gate.state, gate.writes, gate.waiting) == (State.CLOSED, 0, 5)
    for task in late:
        gate.leave(await task)
    await assert_quiet(gate)


async def test_the_hold_begins_when_the_last_ticket_is_back(gate: Gate) -> None:
    """Not one ticket sooner, and not later than the loop's next turn."""
    first = await gate.enter("first")
    async with draining(gate) as (second, _, _):
        gate.leave(first)
        await settled()
        assert gate.state is State.CLOSING
        gate.leave(second)
        await settled()
        assert gate.state is State.CLOSED


async def test_a_write_that_waited_too_long_is_told_to_come_back() -> None:
    """GateTimeout is a 503 with a Retry-After, says how long the write waited, and leaves nothing behind."""
    gate = Gate(timeout_s=SHORT_S)
    async with gate.hold(LONG_S):
        with pytest.raises(GateTimeout, match=r"waited 0\.02 s") as raised:
            await gate.enter("a write")
        with pytest.raises(GateTimeout):
            async with gate.ticket("a read of our own"):
                raise AssertionError
    assert (raised.value.status, raised.value.retryable) == (503, True)
    assert raised.value.retry_after_s
    await assert_quiet(gate)


async def test_waiting_goes_on_over_two_holds(gate: Gate) -> None:
    """A write that is woken into the next hold goes on waiting; it does not slip through between the two."""
    async with gate.hold(LONG_S):
        late = await begin(gate.enter("a late write"))
    async with gate.hold(LONG_S):
        await settled()
        assert not late.done()
        assert (gate.state, gate.writes) == (State.CLOSED, 0)
    gate.leave(await late)
    await assert_quiet(gate)


async def test_a_cancelled_wait_leaks_nothing(gate: Gate) -> None:
    """A write whose request is cancelled while it waits takes no ticket, then or later."""
    async with gate.hold(LONG_S):
        task = await begin(gate.enter("a write"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gate.waiting == 0
    await assert_quiet(gate)


async def test_a_wait_cancelled_as_the_gate_opens_leaks_nothing(gate: Gate) -> None:
    """Opening and cancelling in the same turn of the loop: no ticket is given to nobody."""
    async with gate.hold(LONG_S):
        task = await begin(gate.enter("a write"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await assert_quiet(gate)


async def test_giving_a_ticket_back_twice_counts_once(gate: Gate) -> None:
    """Another write's ticket is not given back with it."""
    first, second = await gate.enter("first"), await gate.enter("second")
    gate.leave(first)
    gate.leave(first)
    assert gate.writes == 1
    gate.leave(second)
    await assert_quiet(gate)


# ---------------------------------------------------------------------- hold


async def test_hold_says_how_long_draining_took(gate: Gate) -> None:
    """In milliseconds, from the asking to the last ticket."""
    async with gate.hold(LONG_S) as drain_ms:
        assert 0 <= drain_ms < 1000


@pytest.mark.parametrize("drain_timeout_s", [0, SHORT_S])
async def test_a_drain_that_takes_too_long_fails_and_opens_again(gate: Gate, drain_timeout_s: float) -> None:
    """QuiesceTimeout names the oldest write, nothing was held meanwhile, and writes go on."""
    oldest, newer = await gate.enter("POST /oldest"), await gate.enter("POST /newer")
    with pytest.raises(QuiesceTimeout, match=r"2 write\(s\), the oldest of them POST /oldest") as raised:
        async with gate.hold(drain_timeout_s):
            raise AssertionError
    assert (raised.value.status, raised.value.retryable) == (503, True)
    assert gate.state is State.OPEN
    gate.leave(await gate.enter("a write"))
    gate.leave(oldest)
    gate.leave(newer)
    await assert_quiet(gate)


async def test_a_failed_drain_lets_those_waiting_through(gate: Gate) -> None:
    """Whoever waited for a hold that came to nothing need not wait for its timeout."""
    ticket = await gate.enter("a slow write")

    async def hold() -> None:
        async with gate.hold(SHORT_S):
            raise AssertionError

    task = await begin(hold())
    late = await begin(gate.enter("a late write"))
    assert gate.waiting == 1
    with pytest.raises(QuiesceTimeout):
        await task
    gate.leave(await late)
    gate.leave(ticket)
    await assert_quiet(gate)


async def test_one_hold_at_a_time(gate: Gate) -> None:
    """A second hold is a Conflict, while the first drains and while it lasts, and harms it not."""
    async with draining(gate) as (ticket, _, _):
        for state in (State.CLOSING, State.CLOSED):
            assert gate.state is state
            with pytest.raises(Conflict):
                async with gate.hold(LONG_S):
                    raise AssertionError
            assert gate.state is state
            gate.leave(ticket)
            await settled()
    await assert_quiet(gate)


async def test_a_hold_whose_block_fails_opens_again(gate: Gate) -> None:
    """The error goes through, the gate is open, and what waited goes on."""

    async def fail() -> None:
        async with gate.hold(LONG_S):
            late.append(await begin(gate.enter("a late write")))
            raise ZeroDivisionError

    late: list[asyncio.Task[Ticket]] = []
    with pytest.raises(ZeroDivisionError):
        await fail()
    gate.leave(await late[0])
    await assert_quiet(gate)


@pytest.mark.parametrize("state", [State.CLOSING, State.CLOSED])
async def test_a_cancelled_hold_opens_again(gate: Gate, state: State) -> None:
    """An operation that is cancelled, while it drains or holds, leaves the gate open."""
    async with draining(gate) as (ticket, hold, _):
        if state is State.CLOSED:
            gate.leave(ticket)
            await settled()
        assert gate.state is state
        late = await begin(gate.enter("a late write"))
        hold.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hold
        assert gate.state is State.OPEN
        gate.leave(await late)
    await assert_quiet(gate)


# ---------------------------------------------------------------------- reads and warmth


async def test_plain_reads_pass_in_every_state(gate: Gate) -> None:
    """Reads wait for nothing, and a hold does not wait for them."""
    with gate.passing():
        async with gate.hold(0):
            assert gate.lets_pass(Route(Kind.READ))
            assert not gate.lets_pass(Route(Kind.WRITE))
            with gate.passing():
                assert gate.requests == 2
    await assert_quiet(gate)


async def test_the_first_read_of_a_collection_takes_a_ticket(gate: Gate) -> None:
    """It writes; once it was answered, further reads of that collection, and of no other, pass."""
    assert not warm(gate, A)
    ticket = await gate.enter("a first read", A)
    assert gate.writes == 1
    assert not warm(gate, A)
    gate.leave(ticket, done=True)
    assert warm(gate, A)
    assert not warm(gate, B)
    async with gate.hold(0):
        assert warm(gate, A)


async def test_a_failed_first_read_warms_nothing(gate: Gate) -> None:
    """Chroma did not say 200, so the backfill may not have happened."""
    gate.leave(await gate.enter("a first read", A))
    with pytest.raises(ZeroDivisionError):
        async with gate.ticket("a read of our own", A):
            raise ZeroDivisionError
    assert not warm(gate, A)
    await assert_quiet(gate)


async def test_writes_warm_nothing(gate: Gate) -> None:
    """A write that is done says nothing about any collection's first read."""
    gate.leave(await gate.enter("a write"), done=True)
    assert not gate.lets_pass(Route(Kind.RECORD_READ, None))


async def test_nothing_is_warm_after_chroma_ended(gate: Gate) -> None:
    """The first read since Chroma's start is one per process."""
    gate.leave(await gate.enter("a first read", A), done=True)
    gate.chroma_gone()
    assert not warm(gate, A)


async def test_a_first_read_that_ends_after_chroma_died_warms_nothing(gate: Gate) -> None:
    """It was read in a Chroma that is no more."""
    ticket = await gate.enter("a first read", A)
    async with gate.ticket("a read of our own", B):
        gate.chroma_gone()
        newer = await gate.enter("a first read in the next Chroma", A)
    gate.leave(ticket, done=True)
    assert not warm(gate, A)
    assert not warm(gate, B)
    assert gate.writes == 1
    gate.leave(newer, done=True)
    assert warm(gate, A)
    await assert_quiet(gate)


async def test_a_ticket_outlives_chroma(gate: Gate) -> None:
    """A write that was not sent yet goes to the next Chroma, so a drain waits for it all the same."""
    async with draining(gate):
        gate.chroma_gone()
        await settled()
        assert gate.state is State.CLOSING


async def test_the_warm_set_is_bounded(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collections come and go for ever; the ids of those that went do not pile up."""
    monkeypatch.setattr("gateway.proxy.gate._WARM_LIMIT", 3)
    for number in range(100):
        gate.leave(await gate.enter("a first read", str(number)), done=True)
        assert warm(gate, str(number))
    assert sum(warm(gate, str(number)) for number in range(100)) <= 3


# ---------------------------------------------------------------------- refuse


async def test_refusing_turns_everything_away_with_its_reason(gate: Gate) -> None:
    """Reads and writes get the reason at once, as a 503; afterwards all is as before."""
    async with gate.refuse("a restore is under way", LONG_S):
        with pytest.raises(Unavailable, match="a restore is under way"), gate.passing():
            raise AssertionError
        with pytest.raises(Unavailable, match="a restore is under way"):
            await gate.enter("a write")
        assert (gate.writes, gate.requests, gate.waiting) == (0, 0, 0)
    with gate.passing():
        gate.leave(await gate.enter("a write"))
    await assert_quiet(gate)


async def test_refusing_wakes_those_who_wait_at_once(gate: Gate) -> None:
    """A write that waits for the gate learns of the refusal now, not at its timeout."""
    async with gate.hold(LONG_S):
        late = await begin(gate.enter("a late write"))
        async with gate.refuse("a restore is under way", LONG_S):
            with pytest.raises(Unavailable, match="a restore is under way"):
                await late
    await assert_quiet(gate)


async def test_refusing_waits_for_reads_and_writes_under_way(gate: Gate) -> None:
    """The block begins when the last of both has ended."""
    refusing, end = asyncio.Event(), asyncio.Event()

    async def refuse() -> None:
        async with gate.refuse("a restore is under way", LONG_S):
            refusing.set()
            await end.wait()

    ticket = await gate.enter("a write")
    with gate.passing():
        task = await begin(refuse())
        gate.leave(ticket)
        await settled()
        assert not refusing.is_set()
    await settled()
    assert refusing.is_set()
    end.set()
    await task
    await assert_quiet(gate)


async def test_refusing_waits_no_longer_than_it_was_told(gate: Gate) -> None:
    """What has not ended in time is left to break off; no error."""
    ticket = await gate.enter("a write")
    with gate.passing():
        async with gate.refuse("a restore is under way", SHORT_S):
            assert (gate.writes, gate.requests) == (1, 1)
        gate.leave(ticket)
    await assert_quiet(gate)


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_refusal_ends_with_its_block(gate: Gate, how: str) -> None:
    """However the restore ends, requests are admitted again."""

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
    """Warming a restored Chroma happens while everybody else is turned away."""
    async with gate.refuse("a restore is under way", LONG_S):
        async with gate.ticket("warming", A):
            assert gate.writes == 1
        assert warm(gate, A)
    await assert_quiet(gate)


async def test_the_gateways_own_reads_wait_for_a_hold(gate: Gate) -> None:
    """A first read writes, whoever reads: it does not run into a frozen Chroma, refusal or not."""

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
    """An event loop whose clock is moved by hand."""

    now = 0.0

    def time(self) -> float:
        return self.now


def test_a_ticket_that_comes_back_as_the_time_runs_out_counts() -> None:
    """Drained is drained: a timeout in the same turn of the loop does not fail the hold."""
    loop = VirtualTime()
    gate = Gate(LONG_S)

    async def hold() -> State:
        async with gate.hold(10):
            return gate.state

    ticket = loop.run_until_complete(gate.enter("a write"))
    holding = loop.create_task(hold())
    loop.run_until_complete(settled())
    loop.call_at(10.5, gate.leave, ticket)
    loop.now = 11  # the timeout first, then the ticket, and only then does the hold wake up
    assert loop.run_until_complete(holding) is State.CLOSED
    loop.close()


class GateMachine(RuleBasedStateMachine):
    """Every order of entering, leaving, holding, refusing, cancelling, dying and of time going by.

    What is under way is counted here, apart from the gate's own counting.
    """

    TIMEOUT_S, DRAIN_S = 30.0, 10.0

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTime()
        self.gate = Gate(self.TIMEOUT_S)
        self.entering: list[asyncio.Task[Ticket]] = []
        self.under_way: list[Ticket] = []
        self.of_the_dead: set[Ticket] = set()
        self.hold: asyncio.Task[None] | None = None
        self.held, self.end = asyncio.Event(), asyncio.Event()
        self.own: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        self.refusals = AsyncExitStack()
        self.refusing = False
        self.reads: list[Any] = []

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def settle(self) -> None:
        self.run(settled())
        for task in [task for task in self.entering if task.done()]:
            self.entering.remove(task)
            if not task.cancelled() and not task.exception():
                self.under_way.append(task.result())
        if self.hold and self.hold.done():
            if not self.hold.cancelled() and (error := self.hold.exception()):
                assert isinstance(error, QuiesceTimeout)
            self.hold = None
        for own in [own for own in self.own if own[0].done()]:
            self.own.remove(own)
            assert own[0].cancelled() or isinstance(own[0].exception(), GateTimeout | None)

    @rule(collection=st.sampled_from([None, A, B]))
    def enter(self, collection: str | None) -> None:
        self.entering.append(self.loop.create_task(self.gate.enter("a write", collection)))
        self.settle()

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), done=st.booleans())
    def leave(self, data: st.DataObject, done: bool) -> None:
        ticket = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        self.gate.leave(ticket, done=done)
        if done and ticket.collection_id and ticket not in self.of_the_dead:
            assert warm(self.gate, ticket.collection_id)
        self.settle()

    @precondition(lambda self: self.entering)
    @rule(data=st.data(), settle_first=st.booleans())
    def cancel_waiting(self, data: st.DataObject, settle_first: bool) -> None:
        if not settle_first and self.hold:
            self.end.set()  # opens in the same turn
        data.draw(st.sampled_from(self.entering)).cancel()
        self.settle()

    @rule()
    def begin_hold(self) -> None:
        async def hold() -> None:
            async with self.gate.hold(self.DRAIN_S):
                assert not self.under_way
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

        self.own.append((self.loop.create_task(read()), end))
        self.settle()

    @precondition(lambda self: self.own)
    @rule(data=st.data(), cancel=st.booleans())
    def end_own(self, data: st.DataObject, cancel: bool) -> None:
        task, end = data.draw(st.sampled_from(self.own))
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
        reading = self.gate.passing()
        try:
            reading.__enter__()
        except Unavailable:
            assert self.refusing
        else:
            assert not self.refusing
            self.reads.append(reading)

    @precondition(lambda self: self.reads)
    @rule()
    def end_read(self) -> None:
        self.reads.pop().__exit__(None, None, None)
        self.settle()

    @rule()
    def chroma_ends(self) -> None:
        self.gate.chroma_gone()
        assert not warm(self.gate, A)
        self.of_the_dead.update(self.under_way)
        self.settle()

    @rule(seconds=st.sampled_from([1.0, DRAIN_S, TIMEOUT_S]))
    def time_goes_by(self, seconds: float) -> None:
        waiting = list(self.entering)
        self.loop.now += seconds
        self.settle()
        if seconds == self.TIMEOUT_S:
            assert all(task.done() for task in waiting)

    @invariant()
    def nothing_is_under_way_while_closed(self) -> None:
        if self.gate.state is State.CLOSED:
            assert not self.under_way
            assert self.gate.writes == 0

    @invariant()
    def every_write_is_accounted_for(self) -> None:
        assert 0 <= self.gate.writes - len(self.under_way) <= len(self.own)
        assert self.gate.requests == len(self.reads)

    @invariant()
    def nobody_waits_without_a_reason(self) -> None:
        assert len(self.entering) <= self.gate.waiting <= len(self.entering) + len(self.own)
        if self.gate.state is State.OPEN or self.refusing:
            assert not self.entering
        if self.gate.state is State.OPEN:
            assert self.gate.waiting == 0
        assert (self.gate.state is State.OPEN) == (self.hold is None)

    def teardown(self) -> None:
        for ticket in self.under_way:
            self.gate.leave(ticket)
        self.under_way = []
        tasks: list[asyncio.Task[Any]] = [*self.entering, *(task for task, _ in self.own)]
        tasks += [self.hold] if self.hold else []
        for task in tasks:
            task.cancel()
        self.run(asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 1) if tasks else settled())
        self.run(self.refusals.aclose())
        for reading in self.reads:
            reading.__exit__(None, None, None)
        self.run(assert_quiet(self.gate))
        self.loop.close()


def test_no_write_is_under_way_while_closed_in_whatever_order_things_happen() -> None:
    """In every order: closed means no write under way; nobody waits for an open gate; at the end nothing is left."""
    run_state_machine_as_test(GateMachine, settings=settings(max_examples=60, stateful_step_count=30))


def test_the_gates_errors_are_the_gateways() -> None:
    """Whatever the gate raises is answered in Chroma's shape."""
    assert all(issubclass(error, GatewayError) for error in (Conflict, GateTimeout, QuiesceTimeout, Unavailable))


# ---------------------------------------------------------------------- where another gateway is the writer


async def test_refused_writes_are_told_at_once_and_reads_go_on(gate: Gate) -> None:
    """First reads of a collection too, which take a ticket as writes do."""
    gate.refuse_writes("another gateway")
    with pytest.raises(LeaseLost, match="another gateway"):
        await gate.enter("a write")
    assert gate.enter_now("a write") is None
    ticket = await gate.enter("a first read", A)
    gate.leave(ticket, done=True)
    assert warm(gate, A)
    with gate.passing():
        pass
    gate.accept_writes()
    gate.leave(await gate.enter("a write"))


async def test_a_write_that_waits_is_refused_too(gate: Gate) -> None:
    """It must not slip through when the gate opens; a first read that waits goes on when it does."""
    async with draining(gate):
        write, read = await begin(gate.enter("a write")), await begin(gate.enter("a first read", A))
        gate.refuse_writes("another gateway")
        with pytest.raises(LeaseLost):
            await asyncio.wait_for(write, 5)
        assert not read.done()
    gate.leave(await asyncio.wait_for(read, 5))


async def test_a_write_under_way_is_waited_for_although_writes_are_refused(gate: Gate) -> None:
    """So that the last snapshot has it."""
    async with draining(gate) as (_, task, _):
        gate.refuse_writes("another gateway")
        await settled()
        assert not task.done()
        assert gate.state is State.CLOSING


async def test_admitted_writes_are_counted(gate: Gate) -> None:
    """Each one that was let through, and neither reads nor what was refused."""
    gate.leave(await gate.enter("a write"))
    ticket = gate.enter_now("a write")
    assert ticket
    gate.leave(ticket)
    gate.leave(await gate.enter("a first read", A))
    async with gate.ticket("our own read", B):
        pass
    gate.refuse_writes("another gateway")
    assert gate.enter_now("a write") is None
    assert gate.admitted_writes == 2
