"""The lease of one repository, in the store: take it, hold it, publish under it, release it.

`gateway.lease.state` says what the object holds, and proves that a gateway that lost the lease changes nothing. This
module changes the object, one compare-and-swap at a time:

1. Read the object and its version.
2. Make the next state.
3. Write the next state if the object still has that version.

If step 3 is refused, or its answer is lost, begin again at step 1. Every change is idempotent: on a state that it
already made there is nothing to do. So a gateway recognises its own write whose answer was lost. A write that arrives
late meets another version and is refused.

When idle, the holder makes one small read every `POLL_S` and no write. A gateway that wants the lease says so in the
object. The holder sees that within `POLL_S`. It then writes `leaving` again and again, until it writes `released`. A
holder that was asked and writes nothing for `answer_timeout_s`, by the asking gateway's clock, is taken for dead. A
holder that writes but does not release within `takeover_timeout_s` has had its time. In both cases the epoch grows by
one, and every later step of the old holder is refused. A wrong guess costs the old holder its unpublished writes. It
never costs the history anything.
"""

import asyncio
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple

import structlog

from gateway.errors import CorruptSnapshot, LeaseLost, ObjectMissing, StorageUnavailable
from gateway.lease.state import LEASE, MAX_LEASE_BYTES, LeaseState
from gateway.storage import Storage

log = structlog.get_logger()

POLL_S = 2.0
ANSWER_TIMEOUT_S = 8.0
_RETRY_TAKE_S = 0.25
_CALL_TIMEOUT_S = 15.0
_CHANGE_ATTEMPTS = 6
_FIRST_PAUSE_S = 0.05
# Bytes may be damaged on their way.
_READ_ATTEMPTS = 3
_MAX_FAILED_WRITES = 50


class Takeover(NamedTuple):
    """How this gateway became the holder."""

    before: LeaseState | None
    """The last state of the holder before us; None if there was none."""
    forced: bool
    """That holder did not hand over. What it acknowledged since its last snapshot is not in the store."""


class _Versioned(NamedTuple):
    lease_state: LeaseState
    version: str


def this_process() -> str:
    """Host and process id, for people."""
    return f"{socket.gethostname()}:{os.getpid()}"


async def read_lease_state(store: Storage) -> LeaseState | None:
    """Return the present state of the lease, None if there is none. Raises CorruptSnapshot, StorageError."""
    for attempts_left in reversed(range(_READ_ATTEMPTS)):
        try:
            return LeaseState.parse(await store.get_range(LEASE, 0, MAX_LEASE_BYTES), store.url)
        except ObjectMissing:
            return None
        except CorruptSnapshot:
            if not attempts_left:
                raise
    raise AssertionError("the last attempt returns or raises")


class Lease:
    """The lease of the repository in `store`, for one process on the data directory with the id `home`.

    `conditional` says whether the store honours conditional writes (`gateway.lease.probe`).
    Every method raises StorageError where the store does.
    """

    def __init__(
        self,
        store: Storage,
        home: str,
        where: str,
        *,
        conditional: bool,
        takeover_timeout_s: float,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
        first_epoch: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        """`first_epoch` tells with which epoch a lease begins where there is none; without it, with 1."""
        self._first_epoch = first_epoch
        self._store, self._conditional = store, conditional
        self.home, self._where, self._clock = home, where, clock
        self._takeover_timeout_s, self._answer_timeout_s = takeover_timeout_s, answer_timeout_s
        self._changing = asyncio.Lock()
        self.holder = uuid.uuid4().hex
        self.known: LeaseState | None = None
        """The state that was read or written most recently."""

    @property
    def epoch(self) -> int | None:
        """The fencing number, None unless this process is known to be the holder."""
        return self.known.epoch if self.known and self.known.holder == self.holder else None

    # ------------------------------------------------------------------ taking it

    async def take(self, unless: Callable[[LeaseState], Awaitable[str | None]] | None = None) -> Takeover:
        """Become the holder. Ask the present holder to leave first, if there is one.

        Does not wait if the lease is released, or if its holder was on our own data directory: only one gateway can
        be on a data directory, so that holder has ended. `unless` is asked about each state that is met, and returns
        why this gateway must not succeed it, or None. Safe to retry. Raises LeaseLost with what `unless` returned. Then
        the holder keeps the lease, or takes it back if it has released it.
        """
        timeout: _HolderTimeout | None = None
        before, forced, failed_writes = None, False, 0
        while failed_writes < _MAX_FAILED_WRITES:
            found = await self._read()
            if found is None:
                epoch = await self._first_epoch() if self._first_epoch else 1
                wanted = LeaseState(epoch=epoch, holder=self.holder, home=self.home, where=self._where)
                version = None
            else:
                current, version = found
                if current.holder == self.holder:
                    return _taken(current, before, forced=forced)
                if unless and (why := await unless(current)):
                    raise LeaseLost(why)
                if timeout is None or timeout.epoch != current.epoch:
                    timeout = _HolderTimeout(
                        current.epoch, self._clock(), self._answer_timeout_s, self._takeover_timeout_s
                    )
                expired = timeout.is_over(current, self._clock())
                handed_over = current.state == "released" or current.home == self.home
                if handed_over or expired:
                    before, forced = current, not handed_over
                    wanted = current.succeeded_by(self.holder, self.home, self._where)
                elif timeout.was_asked:
                    await asyncio.sleep(_RETRY_TAKE_S)
                    continue
                else:
                    # Only once: a gateway that asks after us is newer and goes first.
                    wanted = current.asked_by(self.holder)
                    if wanted is current:
                        timeout.was_asked = True
                        log.info("asked for the lease", holder=current.where, epoch=current.epoch)
                        continue
            if not await self._put(wanted, version):
                failed_writes += 1
                await asyncio.sleep(_RETRY_TAKE_S)
        raise StorageUnavailable(
            f"{self._store.url}{LEASE} could not be changed in {_MAX_FAILED_WRITES} attempts", "try again"
        )

    # ------------------------------------------------------------------ holding it

    async def current(self) -> LeaseState:
        """Read and return the present state. Raises LeaseLost if this process is not the holder."""
        return (await self._read_ours()).lease_state

    async def retake(self) -> None:
        """Hold the lease again after a release that no gateway made use of. Raises LeaseLost if one did."""
        await self._change(
            lambda current: (
                current.succeeded_by(self.holder, self.home, self._where) if current.state == "released" else current
            )
        )

    async def leave(self) -> None:
        """Show the waiting gateway that we are handing over. To be called every `POLL_S` until `release`."""
        await self._change(LeaseState.leaving)

    async def release(self) -> None:
        """Give the lease up, so that the next holder need not wait. Nothing can be published afterwards."""
        await self._change(LeaseState.released)

    @asynccontextmanager
    async def publishing(self, snapshot_id: str) -> AsyncIterator[LeaseState]:
        """Enclose the writing of a manifest. The snapshot is committed when this ends without an error.

        Yields our state of the lease in which the snapshot is announced.
        Raises LeaseLost if another gateway took over, before the manifest was written or after. Then the snapshot
        is never committed. After StorageUnavailable at the end it may be committed or not.
        """
        yield await self._change(lambda current: _require_held(current).announcing(snapshot_id))
        await self._change(lambda current: current.confirming(snapshot_id))

    async def abort_announced(self) -> None:
        """Abort the announced snapshot, if there is one. A confirmation that is still under way will be refused."""
        await self._change(lambda current: _require_held(current).aborting_announced())

    async def note_deletion(self, snapshot_id: str) -> None:
        """Tell others that `snapshot_id` is about to be deleted. Raises LeaseLost; then it must stay."""
        await self._change(lambda current: _require_held(current).noting_deletion(snapshot_id))

    async def mark_pending_delete(self, packs: Iterable[str]) -> None:
        """Tell any successor that `packs` are about to be deleted. Raises LeaseLost; then they must stay."""
        names = tuple(packs)
        await self._change(lambda current: _require_held(current).marking_pending_delete(names))

    async def unmark_pending_delete(self, packs: Iterable[str]) -> None:
        """Take `packs` off that list, once every deletion was answered."""
        names = tuple(packs)
        await self._change(lambda current: current.unmarking_pending_delete(names))

    # ------------------------------------------------------------------ inside

    async def _change(self, change: Callable[[LeaseState], LeaseState]) -> LeaseState:
        """Replace the present state, which must be ours, with `change` of it. Return that."""
        async with self._changing:
            pause_s = _FIRST_PAUSE_S
            for attempts_left in reversed(range(_CHANGE_ATTEMPTS)):
                try:
                    found = await self._read_ours()
                    wanted = change(found.lease_state)
                    if wanted is found.lease_state or await self._put(wanted, found.version):
                        return wanted
                except StorageUnavailable:
                    if not attempts_left:
                        raise
                await asyncio.sleep(pause_s)
                pause_s *= 2
        raise StorageUnavailable(
            f"{self._store.url}{LEASE} could not be changed in {_CHANGE_ATTEMPTS} attempts", "try again"
        )

    async def _read_ours(self) -> _Versioned:
        """Return the present state with its version. Raises LeaseLost if this process is not the holder."""
        known = self.known
        found = await self._read()
        if found is None and known is not None and known.holder == self.holder:
            # It was deleted. The first gateway makes a new one, and the others see that.
            log.warning("the lease was deleted, writing a new one", store=self._store.url)
            await self._put(known.succeeded_by(self.holder, self.home, self._where), None)
            found = await self._read()
        if found is None:
            raise LeaseLost(f"{self._store.url}{LEASE} does not exist", "find out what deletes it")
        if found.lease_state.holder != self.holder:
            raise LeaseLost(
                f"another gateway ({found.lease_state.where}, epoch {found.lease_state.epoch}) is now the writer of"
                f" {self._store.url}",
                "send writes to that gateway; to become the writer again, this one must be restarted",
            )
        return found

    async def _read(self) -> _Versioned | None:
        found = None
        for attempts_left in reversed(range(_READ_ATTEMPTS)):
            try:
                async with _time_limit(self._store):
                    versioned = await self._store.get_versioned(LEASE)
                found = _Versioned(LeaseState.parse(versioned.data, self._store.url), versioned.version)
                break
            except ObjectMissing:
                return None
            except CorruptSnapshot:
                if not attempts_left:
                    raise
        assert found
        known = self.known
        # Reads may overtake each other. Of one holder's states, a newer one may be known already.
        if known is None or known.holder != found.lease_state.holder or known.serial <= found.lease_state.serial:
            self.known = found.lease_state
        return found

    async def _put(self, lease_state: LeaseState, version: str | None) -> bool:
        """Replace the state that has `version`, or create the object if that is None. Return whether that was done.

        Returns False too if the answer was lost. The next read tells.
        """
        data = lease_state.to_bytes()
        try:
            async with _time_limit(self._store):
                if not self._conditional:
                    await self._store.put(LEASE, data)
                    done = True
                elif version is None:
                    done = await self._store.put_if_absent(LEASE, data)
                else:
                    done = await self._store.put_if_match(LEASE, data, version)
        except StorageUnavailable as error:
            log.debug("no answer to a change of the lease", cause=str(error))
            return False
        if done:
            self.known = lease_state
        return done


class _HolderTimeout:
    """How long to wait for the holder of one epoch, by the clock of the gateway that waits."""

    def __init__(self, epoch: int, now: float, answer_timeout_s: float, takeover_timeout_s: float) -> None:
        self.epoch, self.was_asked = epoch, False
        self._changed_at = self._since = now
        self._serial = 0
        self._answer_timeout_s, self._takeover_timeout_s = answer_timeout_s, takeover_timeout_s

    def is_over(self, current: LeaseState, now: float) -> bool:
        """Note the present state. Return whether the holder was asked and has had its time."""
        if current.serial != self._serial:
            self._serial, self._changed_at = current.serial, now
        no_answer = now - self._changed_at >= self._answer_timeout_s
        return self.was_asked and (no_answer or now - self._since >= self._takeover_timeout_s)


def _taken(current: LeaseState, before: LeaseState | None, *, forced: bool) -> Takeover:
    if forced and before:
        log.warning(
            "took the lease over by force: what that gateway accepted since its last snapshot is not in the store",
            holder=before.where,
            epoch=current.epoch,
            last_snapshot=before.published,
        )
    return Takeover(before, forced)


def _require_held(lease_state: LeaseState) -> LeaseState:
    if lease_state.state == "released":
        raise LeaseLost("this gateway has released the lease", "send writes to its successor")
    return lease_state


@asynccontextmanager
async def _time_limit(store: Storage) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_CALL_TIMEOUT_S):
            yield
    except TimeoutError:
        raise StorageUnavailable(f"{store.url}{LEASE}: no answer within {_CALL_TIMEOUT_S:g} s") from None
