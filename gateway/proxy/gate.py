"""The gate: lets writes through, or holds them back until none is under way.

    OPEN ──hold()──► CLOSING ──last ticket given back──► CLOSED ──end of hold()──► OPEN

Writes that arrive while it is not open wait, at most `timeout_s`, and then are told to come back. Reads
of warm collections pass in every state. For a restore `refuse()` turns everything away at once; where
another gateway is the writer `refuse_writes()` turns writes away, and every read goes on.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import Enum

from gateway.errors import Conflict, GateTimeout, LeaseLost, QuiesceTimeout, Unavailable
from gateway.proxy.classify import Kind, Route

# Ids of deleted collections stay behind in the warm set. Forgetting all of them costs each living
# one a ticket for its next read.
_WARM_LIMIT = 100_000


class State(Enum):
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Ticket:
    """One write under way. It ends when Chroma's answer ended, whatever became of the client."""

    __slots__ = ("collection_id", "epoch", "since", "what")

    def __init__(self, what: str, collection_id: str | None, epoch: int) -> None:
        self.what, self.collection_id, self.epoch = what, collection_id, epoch
        self.since = time.monotonic()


class Gate:
    """One per gateway; used from the event loop's thread only."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.state = State.OPEN
        self.refusal: str | None = None
        self.refusals = 0
        """How often everything was refused for a time, after which Chroma may hold something else."""
        self.write_refusal: str | None = None
        self.admitted_writes = 0
        """How many writes were ever let through; first reads are none."""
        self.waiting = 0
        self.requests = 0
        self._epoch = 0
        self._warm: set[str] = set()
        self._tickets: set[Ticket] = set()
        self._waiters: set[asyncio.Future[None]] = set()

    # ------------------------------------------------------------------ for requests

    def lets_pass(self, route: Route) -> bool:
        """Whether a request needs no ticket: a read, and not the first of its collection."""
        return route.kind is Kind.READ or (route.kind is Kind.RECORD_READ and route.collection_id in self._warm)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Count a request in, so that `refuse` can wait for it. Raises Unavailable while refusing."""
        self.begin_read()
        try:
            yield
        finally:
            self.end_read()

    def begin_read(self) -> None:
        """As `passing`, for those who end elsewhere; `end_read` must follow. Raises Unavailable while refusing."""
        self._require_admission()
        self.requests += 1

    def end_read(self) -> None:
        """The read that `begin_read` counted in is over."""
        self.requests -= 1
        if not self.requests:
            self._notify()

    def enter_now(self, what: str, collection_id: str | None = None) -> Ticket | None:
        """As `enter`, but None where that would wait."""
        if self.state is not State.OPEN or self.refusal is not None or self._refuses(collection_id):
            return None
        return self._issue(what, collection_id)

    async def enter(self, what: str, collection_id: str | None = None) -> Ticket:
        """Take a ticket for one write, or for a first read of `collection_id`; wait while not open.

        Raises GateTimeout after `timeout_s`, Unavailable when everything is refused, LeaseLost when writes are.
        """
        if ticket := self.enter_now(what, collection_id):
            return ticket
        await self._wait_until_open(write=collection_id is None)
        return self._issue(what, collection_id)

    def leave(self, ticket: Ticket, *, done: bool = False) -> None:
        """Give a ticket back. `done` says that Chroma did what was asked (it answered 200)."""
        self._tickets.discard(ticket)
        if done and ticket.collection_id and ticket.epoch == self._epoch:
            if len(self._warm) >= _WARM_LIMIT:
                self._warm.clear()
            self._warm.add(ticket.collection_id)
        if not self._tickets:
            self._notify()

    def answered(self, ticket: Ticket, *, done: bool) -> None:
        """Give a ticket back whose answer has begun, and count the rest of it like a read; `end_read` must follow."""
        self.requests += 1
        self.leave(ticket, done=done)

    @asynccontextmanager
    async def ticket(self, what: str, collection_id: str | None = None) -> AsyncIterator[None]:
        """A ticket for a read of the gateway's own, which `refuse` does not turn away.

        The collection is warm if the block ends well. Raises GateTimeout.
        """
        if self.state is not State.OPEN:
            await self._wait_until_open(own=True)
        ticket, done = self._issue(what, collection_id), False
        try:
            yield
            done = True
        finally:
            self.leave(ticket, done=done)

    @asynccontextmanager
    async def admitted(self, what: str, collection_id: str | None = None) -> AsyncIterator[None]:
        """A ticket for a write of the gateway's own that is treated like any client's.

        Raises Unavailable while everything is refused, GateTimeout.
        """
        ticket, done = await self.enter(what, collection_id), False
        try:
            yield
            done = True
        finally:
            self.leave(ticket, done=done)

    # ------------------------------------------------------------------ for operations

    @asynccontextmanager
    async def hold(self, drain_timeout_s: float) -> AsyncIterator[float]:
        """Hold writes back for the time of the block; yields how long draining took, in ms.

        Raises Conflict when it is held already, QuiesceTimeout (and opens again) when the writes
        under way do not end in time: then Chroma is not quiet and must not be copied.
        """
        if self.state is not State.OPEN:
            raise Conflict("the gate is held already", "wait for the operation that holds it, see GET /admin/status")
        self.state, asked = State.CLOSING, time.monotonic()
        try:
            if not await self._until(lambda: not self._tickets, drain_timeout_s):
                raise QuiesceTimeout(
                    f"Chroma did not finish {self._under_way()} within {drain_timeout_s:g} s",
                    "try again when it is less busy, or raise GATEWAY_DRAIN_TIMEOUT_S",
                )
            self.state = State.CLOSED
            yield (time.monotonic() - asked) * 1e3
        finally:
            self.state = State.OPEN
            self._notify()

    @asynccontextmanager
    async def refuse(self, reason: str, drain_timeout_s: float) -> AsyncIterator[None]:
        """Turn every request away with `reason` for the time of the block, from this call on.

        Requests under way get `drain_timeout_s` to end; what has not ended then is left to break off.
        """
        self.refusal = reason
        self.refusals += 1
        self._notify()
        try:
            await self._until(lambda: not self._tickets and not self.requests, drain_timeout_s)
            yield
        finally:
            self.refusal = None
            self._notify()

    def refuse_writes(self, reason: str) -> None:
        """Turn writes away with `reason` until `accept_writes`, also those that wait. Those under way go on."""
        self.write_refusal = reason
        self._notify()

    def accept_writes(self) -> None:
        """End `refuse_writes`. Safe to call at any time."""
        self.write_refusal = None

    def chroma_gone(self) -> None:
        """Chroma's process ended: nothing is warm any more.

        Tickets stay with their requests: one that was not sent yet goes to the next Chroma.
        """
        self._epoch += 1
        self._warm.clear()

    @property
    def epoch(self) -> int:
        """Changes whenever Chroma's process ended: what was admitted before is admitted no more."""
        return self._epoch

    @property
    def writes(self) -> int:
        """How many writes are under way."""
        return len(self._tickets)

    # ------------------------------------------------------------------ inside

    def _require_admission(self) -> None:
        if self.refusal is not None:
            raise Unavailable(self.refusal)

    def _refuses(self, collection_id: str | None) -> bool:
        """Whether what wants a ticket is a write, and those are turned away."""
        return self.write_refusal is not None and collection_id is None

    def _issue(self, what: str, collection_id: str | None) -> Ticket:
        self.admitted_writes += collection_id is None
        ticket = Ticket(what, collection_id, self._epoch)
        self._tickets.add(ticket)
        return ticket

    async def _wait_until_open(self, *, own: bool = False, write: bool = False) -> None:
        def refused() -> bool:
            return (self.refusal is not None and not own) or (write and self.write_refusal is not None)

        def decided() -> bool:
            return self.state is State.OPEN or refused()

        self.waiting += 1
        try:
            came = await self._until(decided, self._timeout_s)
        finally:
            self.waiting -= 1
        if not own:
            self._require_admission()
        if write and self.write_refusal is not None:
            raise LeaseLost(self.write_refusal)
        if not came:
            raise GateTimeout(f"writes are held back and this one waited {self._timeout_s:g} s", "send it again")

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for `condition`, asked again at every change; say whether it came true in time.

        Nothing else runs between the last asking and the return.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.add(waiter)
                    try:
                        await waiter
                    finally:
                        self._waiters.discard(waiter)
        except TimeoutError:
            return condition()
        return True

    def _notify(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _under_way(self) -> str:
        oldest = min(self._tickets, key=lambda ticket: ticket.since)
        age_s = time.monotonic() - oldest.since
        return f"{len(self._tickets)} write(s), the oldest of them {oldest.what} for {age_s:.1f} s,"
