"""The lease of one repository, in the store: taken, kept, published under, and handed on.

`gateway.lease.state` says what the object holds and why it cannot be cheated. Here is how it is
moved, one compare-and-swap at a time:

1. read the object and its version; 2. make the next state; 3. write it if the version is still that.

If 3 is refused, or its answer lost, begin again at 1: every change says of a state it has made already
that there is nothing to do, so one's own lost write is recognised as one's own, and one that arrives
late finds another version and is refused.

Peace costs one small read every `POLL_S` and no write. Who wants the lease asks for it in the object;
the holder sees that within `POLL_S` and moves (`leaving`, again and again until `released`). A holder
that is asked and does not move for `answer_timeout_s` of the asker's own clock is dead; one that
moves but does not finish within `takeover_timeout_s` has had its time. Either way the epoch rises by
one and what the old holder may still try is refused, so a wrong guess costs it its unpublished
writes, and the history nothing.
"""

import asyncio
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple

import structlog

from gateway.errors import CorruptSnapshot, LeaseLost, ObjectMissing, StorageUnavailable
from gateway.lease.state import LEASE, MAX_LEASE_BYTES, LeaseState
from gateway.storage import Storage

log = structlog.get_logger()

POLL_S = 2.0
ANSWER_TIMEOUT_S = 8.0
_WAIT_S = 0.25
_CALL_TIMEOUT_S = 15.0
_TRIES = 6
# Bytes may be damaged on their way.
_READS = 3
_MOST_REFUSALS = 50
_FIRST_PAUSE_S = 0.05


class Taken(NamedTuple):
    """How the lease came to us."""

    before: LeaseState | None
    """The last state of the holder before us; None if there was none."""
    forced: bool
    """It was not handed over: what that holder acknowledged since its last snapshot is not in the store."""


class _Found(NamedTuple):
    lease_state: LeaseState
    version: str


def this_process() -> str:
    """Host and process id, for people."""
    return f"{socket.gethostname()}:{os.getpid()}"


async def read_lease_state(store: Storage) -> LeaseState | None:
    """The present state of the lease; None where there never was one. Raises CorruptSnapshot, StorageError."""
    for tries_left in reversed(range(_READS)):
        try:
            return LeaseState.parse(await store.get_range(LEASE, 0, MAX_LEASE_BYTES), store.url)
        except ObjectMissing:
            return None
        except CorruptSnapshot:
            if not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


class Lease:
    """The lease of the repository in `store`, for one process on the data directory `home`.

    `conditional` says whether the store keeps what conditional writes promise (`gateway.lease.probe`).
    Every method raises StorageError where the store does.
    """

    def __init__(
        self,
        store: Storage,
        home: str,
        where: str,
        *,
        conditional: bool,
        takeover_timeout_s: float = 30,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._conditional = store, conditional
        self.home, self._where, self._clock = home, where, clock
        self._takeover_timeout_s, self._answer_timeout_s = takeover_timeout_s, answer_timeout_s
        self._changing = asyncio.Lock()
        self.holder = uuid.uuid4().hex
        self.known: LeaseState | None = None
        """The state last read or written."""

    @property
    def epoch(self) -> int | None:
        """The fencing number, while the lease is known to be ours."""
        return self.known.epoch if self.known and self.known.holder == self.holder else None

    # ------------------------------------------------------------------ taking it

    async def take(self, *, any_of_ours: bool = False) -> Taken:
        """Become the holder, after asking the present one, if there is one, to leave.

        At once if nobody holds it, or if its holder was on our own data directory: only one gateway can
        be, so that one is no more. With `any_of_ours` a holder on our own data directory will do.
        """
        waiting: _Waiting | None = None
        before, forced, refused = None, False, 0
        while refused < _MOST_REFUSALS:
            found = await self._read()
            if found is not None:
                now = found.lease_state
                if now.holder == self.holder or (any_of_ours and now.home == self.home):
                    if forced and before:
                        log.warning(
                            "took the lease over by force: what was accepted since the last snapshot is not here",
                            holder=before.where,
                            epoch=now.epoch,
                            last_snapshot=before.published,
                        )
                    return Taken(before, forced)
                if waiting is None or waiting.epoch != now.epoch:
                    waiting = _Waiting(now.epoch, self._clock(), self._answer_timeout_s, self._takeover_timeout_s)
                overdue = waiting.is_over(now, self._clock())
                if now.state == "released" or now.home == self.home or overdue:
                    before, forced = now, now.state != "released" and now.home != self.home
                    wanted = now.succeeded_by(self.holder, self.home, self._where)
                elif not waiting.asked:
                    # Once: who asks after us is newer than we are, and goes first.
                    wanted = now.asked_by(self.holder)
                    if wanted is now:
                        waiting.asked = True
                        log.info("asked for the lease", holder=now.where, epoch=now.epoch)
                        continue
                else:
                    await asyncio.sleep(_WAIT_S)
                    continue
                version = found.version
            else:
                wanted, version = LeaseState(holder=self.holder, home=self.home, where=self._where), None
            if not await self._put(wanted, version):
                refused += 1
                await asyncio.sleep(_WAIT_S)
        raise StorageUnavailable(
            f"{self._store.url}{LEASE} cannot be changed, after {_MOST_REFUSALS} tries", "try again"
        )

    async def wait_for_ours(self, timeout_s: float) -> None:
        """Wait until somebody on our own data directory holds it, at most `timeout_s`."""
        since = self._clock()
        while self._clock() - since < timeout_s:
            found = await self._read()
            if found is None or found.lease_state.home == self.home or found.lease_state.state == "released":
                return
            await asyncio.sleep(_WAIT_S)

    # ------------------------------------------------------------------ holding it

    async def look(self) -> LeaseState:
        """The present state, which is ours. Raises LeaseLost if it is not."""
        return (await self._ours()).lease_state

    async def retake(self) -> None:
        """Hold what we released and nobody took. Raises LeaseLost if somebody did."""
        await self._change(
            lambda lease_state: (
                lease_state.succeeded_by(self.holder, self.home, self._where)
                if lease_state.state == "released"
                else lease_state
            )
        )

    async def leave(self) -> None:
        """Show who waits that we are on our way out. To be called every `POLL_S` until `release`."""
        await self._change(LeaseState.leaving)

    async def release(self) -> None:
        """Give it up: who comes next need not wait. Nothing can be published afterwards."""
        await self._change(LeaseState.released)

    @asynccontextmanager
    async def publishing(self, snapshot_id: str) -> AsyncIterator[None]:
        """Around the writing of a manifest: it counts once this has ended, and not before.

        Raises LeaseLost when another gateway took over, before the manifest was written or after: it
        never counts then. After StorageUnavailable at the end it counts or does not.
        """
        await self._change(lambda lease_state: _held(lease_state).announcing(snapshot_id))
        yield
        await self._change(lambda lease_state: lease_state.confirming(snapshot_id))

    async def settle(self) -> None:
        """Make void what was announced and is not known to be published: nothing of it can arrive any more."""
        await self._change(lambda lease_state: _held(lease_state).settling())

    async def mark_pending_delete(self, packs: Iterable[str]) -> None:
        """Before packs are deleted: whoever takes over knows of it. Raises LeaseLost, and they must stay."""
        names = tuple(packs)
        await self._change(lambda lease_state: _held(lease_state).marking_pending_delete(names))

    async def unmark_pending_delete(self, packs: Iterable[str]) -> None:
        """After packs were deleted, each of them answered for."""
        names = tuple(packs)
        await self._change(lambda lease_state: lease_state.unmarking_pending_delete(names))

    # ------------------------------------------------------------------ inside

    async def _change(self, change: Callable[[LeaseState], LeaseState]) -> None:
        """Bring the lease, which is ours, into the state that `change` makes of the present one."""
        async with self._changing:
            pause_s = _FIRST_PAUSE_S
            for tries_left in reversed(range(_TRIES)):
                try:
                    found = await self._ours()
                    wanted = change(found.lease_state)
                    if wanted is found.lease_state or await self._put(wanted, found.version):
                        return
                except StorageUnavailable:
                    if not tries_left:
                        raise
                await asyncio.sleep(pause_s)
                pause_s *= 2
        raise StorageUnavailable(f"{self._store.url}{LEASE} was changed by others {_TRIES} times over", "try again")

    async def _ours(self) -> _Found:
        """The present state with its version. Raises LeaseLost if it is not ours."""
        known = self.known
        found = await self._read()
        if found is None and known is not None and known.holder == self.holder:
            # Somebody deleted it. Whoever is first makes a new one, and the others see that.
            log.warning("the lease was deleted and is made anew", store=self._store.url)
            await self._put(known.succeeded_by(self.holder, self.home, self._where), None)
            found = await self._read()
        if found is None:
            raise LeaseLost(f"{self._store.url}{LEASE} is not there", "see who deletes it")
        if found.lease_state.holder != self.holder:
            raise LeaseLost(
                f"another gateway ({found.lease_state.where}, epoch {found.lease_state.epoch}) is the writer of"
                f" {self._store.url} now",
                "send writes to that one; this one must be started anew to become the writer again",
            )
        return found

    async def _read(self) -> _Found | None:
        found = None
        for tries_left in reversed(range(_READS)):
            try:
                async with _bounded(self._store):
                    versioned = await self._store.get_versioned(LEASE)
                found = _Found(LeaseState.parse(versioned.data, self._store.url), versioned.version)
                break
            except ObjectMissing:
                return None
            except CorruptSnapshot:
                if not tries_left:
                    raise
        assert found
        known = self.known
        # Reads may overtake each other; of one holder's states the newer one is known already then.
        if known is None or known.holder != found.lease_state.holder or known.serial <= found.lease_state.serial:
            self.known = found.lease_state
        return found

    async def _put(self, lease_state: LeaseState, version: str | None) -> bool:
        """Write a state over the one with `version`, or where there is none; say whether that was done.

        False too if the answer was lost: read it again, it shows.
        """
        data = lease_state.to_bytes()
        try:
            async with _bounded(self._store):
                if not self._conditional:
                    await self._store.put(LEASE, data)
                    done = True
                elif version is None:
                    done = await self._store.put_if_absent(LEASE, data)
                else:
                    done = await self._store.put_if_match(LEASE, data, version)
        except StorageUnavailable as error:
            log.debug("the answer to a change of the lease was lost", cause=str(error))
            return False
        if done:
            self.known = lease_state
        return done


class _Waiting:
    """For a holder to leave, by the clock of who waits."""

    def __init__(self, epoch: int, now: float, answer_timeout_s: float, takeover_timeout_s: float) -> None:
        self.epoch, self.asked = epoch, False
        self._moved_at = self._since = now
        self._serial = 0
        self._answer_timeout_s, self._takeover_timeout_s = answer_timeout_s, takeover_timeout_s

    def is_over(self, seen: LeaseState, now: float) -> bool:
        """Whether it was asked and then waited for long enough; `seen` is the present state."""
        if seen.serial != self._serial:
            self._serial, self._moved_at = seen.serial, now
        overdue = now - self._moved_at >= self._answer_timeout_s or now - self._since >= self._takeover_timeout_s
        return self.asked and overdue


def _held(lease_state: LeaseState) -> LeaseState:
    if lease_state.state == "released":
        raise LeaseLost("this gateway has handed the lease over", "send writes to its successor")
    return lease_state


@asynccontextmanager
async def _bounded(store: Storage) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_CALL_TIMEOUT_S):
            yield
    except TimeoutError:
        raise StorageUnavailable(f"{store.url}{LEASE}: no answer within {_CALL_TIMEOUT_S:g} s") from None
