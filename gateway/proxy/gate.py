"""The gate: lets writes through, or makes them wait until no write is in progress.

    OPEN ──hold()──► CLOSING ──last ticket released──► CLOSED ──end of hold()──► OPEN

A write that arrives while the gate is not open waits, at most GATEWAY_GATE_TIMEOUT_S, and then gets 503 with
`Retry-After`. Reads pass in every state, except the first read of each collection since Chroma's start: Chroma
backfills and purges the collection in it (`rust/frontend/src/executor/local.rs`, `try_backfill_collection`), so it
counts as a write until it succeeded. During a restore `refuse()` rejects every request at once. Where another gateway
is the writer `refuse_writes()` rejects writes, and all reads go on. After a pause of the process writes wait until it
is known again that they may be accepted (`extend_writes`). What needs a ticket and touches a collection that cannot
be read is rejected too (`gateway.chroma.quarantine`). While the data directory is gone `lose_writes()` rejects writes,
and the gate cannot be held: what is there is not to be copied.

GATEWAY_GATE_TIMEOUT_S limits a second wait, which is not the gate's: any request may wait as long for its turn at
Chroma (`queue_timeout_s` of `gateway.proxy.limits`).
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum

from gateway.chroma.quarantine import Quarantine
from gateway.chroma.routes import Kind, RouteMatch
from gateway.errors import Conflict, GateTimeout, LeaseLost, QuiesceTimeout, Unavailable

# The ids of deleted collections stay in the warm set. Clearing it is cheap: the next read of each collection takes a
# ticket.
_WARM_LIMIT = 100_000


class State(Enum):
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Ticket:
    """One write in progress. It ends with Chroma's response, even if the client disconnected before."""

    __slots__ = ("collection_id", "epoch", "since_s", "touches", "what")

    def __init__(self, what: str, collection_id: str | None, touches: str | None, epoch: int) -> None:
        self.what, self.collection_id, self.touches, self.epoch = what, collection_id, touches, epoch
        self.since_s = time.monotonic()


class Gate:
    """One for each Chroma. Not thread-safe: use it from the event loop."""

    def __init__(self, timeout_s: float, quarantine: Quarantine | None = None) -> None:
        self._timeout_s = timeout_s
        self.quarantine = quarantine or Quarantine()
        self.state = State.OPEN
        self.refusal: str | None = None
        self.refusals = 0
        """How many times `refuse` was called. After each of them Chroma may have other data."""
        self.write_refusal: str | None = None
        self.lost: str | None = None
        """Why writes would be lost, None while they would not."""
        self._writes_until_s = math.inf
        self.admitted_writes = 0
        """How many writes were let through since the start, without first reads."""
        self.waiting = 0
        self.requests = 0
        self._epoch = 0
        self._warm: set[str] = set()
        self._tickets: set[Ticket] = set()
        self._waiters: set[asyncio.Future[None]] = set()

    # ------------------------------------------------------------------ for requests

    def lets_pass(self, route: RouteMatch) -> bool:
        """Whether a request needs no ticket: it is a read, and not the first one of its collection."""
        return route.kind is Kind.READ or (route.kind is Kind.RECORD_READ and route.collection_id in self._warm)

    def begin_read(self) -> None:
        """Count a read in. The caller must call `end_read`. Raises Unavailable while requests are refused."""
        self._require_admission()
        self.requests += 1

    def end_read(self) -> None:
        """End what `begin_read` or `release_at_response` counted in."""
        self.requests -= 1
        if not self.requests:
            self._notify()

    def try_acquire(self, what: str, collection_id: str | None = None, touches: str | None = None) -> Ticket | None:
        """As `acquire`, but return None instead of waiting or raising."""
        if self.state is not State.OPEN or self.refusal is not None:
            return None
        if collection_id is None and (self.rejects_writes or time.monotonic() > self._writes_until_s):
            return None
        if touches is not None and self.quarantine.refuses(touches):
            return None
        return self._issue(what, collection_id, touches)

    async def acquire(self, what: str, collection_id: str | None = None, touches: str | None = None) -> Ticket:
        """A ticket for one write, or for a first read of `collection_id`. Waits while the gate is not open.

        `touches` is the collection whose records are read or written. The caller must call `release`. Raises
        GateTimeout after `timeout_s`, Unavailable while requests are refused, while writes would be lost and for a
        collection that cannot be read, LeaseLost while writes are refused.
        """
        if ticket := self.try_acquire(what, collection_id, touches):
            return ticket
        if touches is not None:
            self.quarantine.require_readable(touches)
        await self._wait_until_open(write=collection_id is None)
        if touches is not None:
            self.quarantine.require_readable(touches)
        return self._issue(what, collection_id, touches)

    def sending(self, ticket: Ticket) -> None:
        """Chroma is about to get the whole request of `ticket`."""
        if ticket.touches is not None:
            self.quarantine.begin(ticket.touches)

    def release(self, ticket: Ticket, *, done: bool = False) -> None:
        """Give a ticket back. `done` says that Chroma did the work (status 200). Safe to call again."""
        self._tickets.discard(ticket)
        if done and ticket.collection_id and ticket.epoch == self._epoch:
            if len(self._warm) >= _WARM_LIMIT:
                self._warm.clear()
            self._warm.add(ticket.collection_id)
        if not self._tickets:
            self._notify()

    def release_at_response(self, ticket: Ticket, *, done: bool) -> None:
        """Release a ticket whose response has begun, and count the rest as a read. The caller must call `end_read`."""
        if ticket.touches is not None:
            self.quarantine.answered(ticket.touches)
        self.requests += 1
        self.release(ticket, done=done)

    @asynccontextmanager
    async def ticket(self, what: str, collection_id: str | None = None) -> AsyncIterator[None]:
        """A ticket for a read by the gateway itself, which `refuse` does not reject.

        The collection is warm if the block succeeds. Raises GateTimeout.
        """
        if self.state is not State.OPEN:
            await self._wait_until_open(own=True)
        ticket, done = self._issue(what, collection_id), False
        try:
            yield
            done = True
        finally:
            self.release(ticket, done=done)

    @asynccontextmanager
    async def admitted(
        self, what: str, collection_id: str | None = None, touches: str | None = None
    ) -> AsyncIterator[None]:
        """A ticket for a write by the gateway itself, under the same rules as a client's. Raises as `acquire`."""
        ticket, done = await self.acquire(what, collection_id, touches), False
        self.sending(ticket)
        try:
            yield
            done = True
            if touches is not None:
                self.quarantine.answered(touches)
        finally:
            self.release(ticket, done=done)

    # ------------------------------------------------------------------ for operations

    @asynccontextmanager
    async def hold(self, drain_timeout_s: float) -> AsyncIterator[float]:
        """Close the gate for the time of the block. Yields how long the drain took, in ms.

        Raises Conflict if the gate is held already, Unavailable while writes would be lost. Raises QuiesceTimeout, and
        opens again, if the writes in progress do not end within `drain_timeout_s`: Chroma must not be copied then. Safe
        to retry.
        """
        if self.state is not State.OPEN:
            raise Conflict("the gate is held already", "wait for the operation that holds it, see GET /admin/status")
        if self.lost is not None:
            raise Unavailable(self.lost)
        self.state, began_s = State.CLOSING, time.monotonic()
        try:
            if not await self._until(lambda: not self._tickets, drain_timeout_s):
                raise QuiesceTimeout(
                    f"Chroma did not finish {self._in_progress()} within {drain_timeout_s:g} s",
                    "try again when it is less busy, or raise GATEWAY_DRAIN_TIMEOUT_S",
                )
            self.state = State.CLOSED
            yield (time.monotonic() - began_s) * 1e3
        finally:
            self.state = State.OPEN
            self._notify()

    @asynccontextmanager
    async def refuse(self, reason: str, drain_timeout_s: float) -> AsyncIterator[None]:
        """Reject every request with `reason`, from this call on and for the time of the block.

        The block begins when all requests in progress have ended, or after `drain_timeout_s`.
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
        """Reject writes with `reason` until `accept_writes`, including those that wait. Writes in progress go on."""
        self.write_refusal = reason
        self._notify()

    def accept_writes(self) -> None:
        """End `refuse_writes`. Safe to call at any time."""
        self.write_refusal = None

    def lose_writes(self, reason: str | None) -> None:
        """Reject writes with `reason`, since they would be lost; None ends that. Writes in progress go on."""
        self.lost = reason
        self._notify()

    def extend_writes(self, until_s: float) -> None:
        """Admit writes until `until_s` of the monotonic clock. Later ones wait for the next call."""
        lapsed, self._writes_until_s = time.monotonic() > self._writes_until_s, until_s
        if lapsed:
            self._notify()

    def chroma_gone(self) -> None:
        """Chroma's process ended, so no collection is warm.

        Tickets stay valid: a request that was not sent yet goes to the next Chroma.
        """
        self._epoch += 1
        self._warm.clear()

    @property
    def epoch(self) -> int:
        """Changes whenever Chroma's process ends. What the gate admitted in another epoch must ask again."""
        return self._epoch

    @property
    def writes(self) -> int:
        """How many writes are in progress, with first reads."""
        return len(self._tickets)

    @property
    def rejects_writes(self) -> bool:
        """Whether writes are rejected: by `refuse_writes`, or since they would be lost."""
        return self.write_refusal is not None or self.lost is not None

    # ------------------------------------------------------------------ inside

    def _require_admission(self) -> None:
        if self.refusal is not None:
            raise Unavailable(self.refusal)

    def _issue(self, what: str, collection_id: str | None, touches: str | None = None) -> Ticket:
        self.admitted_writes += collection_id is None
        ticket = Ticket(what, collection_id, touches, self._epoch)
        self._tickets.add(ticket)
        return ticket

    async def _wait_until_open(self, *, own: bool = False, write: bool = False) -> None:
        def refused() -> bool:
            return (self.refusal is not None and not own) or (write and self.rejects_writes)

        def decided() -> bool:
            held = self.state is not State.OPEN or (write and time.monotonic() > self._writes_until_s)
            return not held or refused()

        self.waiting += 1
        try:
            came = await self._until(decided, self._timeout_s)
        finally:
            self.waiting -= 1
        if not own:
            self._require_admission()
        if write and self.lost is not None:
            raise Unavailable(self.lost)
        if write and self.write_refusal is not None:
            raise LeaseLost(self.write_refusal)
        if not came:
            raise GateTimeout(f"writes are held back and this one waited {self._timeout_s:g} s", "send it again")

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `condition` is true, for at most `timeout_s`. Return whether it is.

        It is evaluated at every change. Nothing else runs between the last evaluation and the return.
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

    def _in_progress(self) -> str:
        oldest = min(self._tickets, key=lambda ticket: ticket.since_s)
        age_s = time.monotonic() - oldest.since_s
        return f"{len(self._tickets)} write(s), the oldest of them {oldest.what} for {age_s:.1f} s,"
