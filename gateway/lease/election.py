"""Which gateway writes: one at a time, and the newest one that asked.

    starting ──take──► writer ──asked──► leaving ──last snapshot, release──► reader
       │  └─ the store cannot be asked: writes go on, nothing can be published
       └─ something was published since these data: behind ──restore──► writer

A gateway on an empty data directory takes the lease before it restores, so that what it restores is the last
state of the gateway before it. That one is asked through the lease itself: it refuses writes, takes a last
snapshot and releases the lease; its reads go on. If nobody takes a released lease, because the new gateway died
on its way, the old one becomes the writer again: its data are still the newest.

A gateway that has data asks for a held lease only if these data stem from the holder's: its data directory moved, or
was copied (`gateway.lease.data_dir_state`). The holder publishes what it has on its way out. If these data lack that,
they are behind: the gateway does not take the lease, and the holder becomes the writer again.

Only the holder of the lease accepts writes, with one exception. While the store cannot be reached nobody can tell who
holds it, and a gateway that has its data goes on: a store that is down must not stop the service. What it accepts
meanwhile is on its own disk alone.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Protocol

import structlog

from gateway.aio import TaskPool
from gateway.errors import GatewayError, LeaseLost, StorageError
from gateway.lease.data_dir_state import DataDirState
from gateway.lease.lease import ANSWER_TIMEOUT_S, POLL_S, Lease, read_lease_state, this_process
from gateway.lease.probe import UNFENCED, Conditions, probe
from gateway.lease.state import LeaseState
from gateway.storage import Storage

log = structlog.get_logger()

_RETRY_AFTER_S = (1.0, 2.0, 5.0, 10.0)
_FINAL_AGAIN_S = 1.0
# Who waits for a lease looks four times a second.
_UNCLAIMED_S = 5.0


class LeaderRole(Enum):
    STARTING = "starting"
    WRITER = "writer"
    LEAVING = "leaving"
    READER = "reader"
    BEHIND = "behind"


class Writes(Protocol):
    """What is done to clients' writes; `gateway.proxy.gate` does it."""

    def refuse_writes(self, reason: str) -> None: ...

    def accept_writes(self) -> None: ...

    def extend_writes(self, until_s: float) -> None: ...


@dataclass(frozen=True)
class LeaseOptions:
    """`may_delete` says whether objects of the store may be deleted at all."""

    takeover_timeout_s: float
    may_delete: bool
    poll_s: float = POLL_S
    answer_timeout_s: float = ANSWER_TIMEOUT_S


class LeaderElection:
    """One gateway among those that use `store`. Guards what a repository publishes and deletes."""

    def __init__(
        self,
        store: Storage,
        data_dir_state: DataDirState,
        writes: Writes,
        save: Callable[[], Awaitable[None]],
        options: LeaseOptions,
        *,
        where: str = "",
    ) -> None:
        """`save` takes a last snapshot; `where` names this process to people."""
        self._store, self._data_dir_state, self._writes, self._save = store, data_dir_state, writes, save
        self._options, self._where = options, where or this_process()
        self._taking = asyncio.Lock()
        self._had_data = False
        self._lease: Lease | None = None
        self._problem: StorageError | None = None
        self._unwatched: GatewayError | None = None
        self._must_note = False
        self._released_at: float | None = None
        self.role = LeaderRole.STARTING
        self.conditions: Conditions | None = None
        self.reason: str | None = None
        """Why writes are refused, None while they are not."""
        self.lost: str | None = None
        """How this gateway lost the lease without handing it over, None if it did not."""
        self.why_behind: Callable[[], Awaitable[str | None]] | None = None
        """Why these data lack something that is in the store beside the snapshots; None if they lack nothing."""
        self.first_epoch: Callable[[], Awaitable[int]] | None = None
        """With which epoch a lease begins where there is none."""

    # ------------------------------------------------------------------ for the repository

    async def require(self) -> None:
        """Raise what keeps this gateway from changing the repository: LeaseLost, or an error of the store."""
        if self.role is LeaderRole.STARTING:
            await self._try_to_take()
        if self.role in (LeaderRole.READER, LeaderRole.BEHIND):
            raise LeaseLost(self.reason or "another gateway is the writer", "send this to that one")

    @asynccontextmanager
    async def publishing(self, snapshot_id: str) -> AsyncIterator[None]:
        """Around the writing of a manifest; see `Lease.publishing`.

        The snapshot is noted in the data directory first, so that an older image of the directory is recognised.
        """
        async with self._held().publishing(snapshot_id) as announced:
            await self._note(announced)
            yield

    async def abort_announced(self) -> None:
        """See `Lease.abort_announced`."""
        await self.require()
        await self._held().abort_announced()

    async def note_deletion(self, snapshot_id: str) -> None:
        """See `Lease.note_deletion`."""
        await self.require()
        lease = self._held()
        if lease.known is None or lease.known.expected == snapshot_id:
            await lease.note_deletion(snapshot_id)

    async def mark_pending_delete(self, packs: list[str]) -> None:
        """See `Lease.mark_pending_delete`."""
        await self._held().mark_pending_delete(packs)

    async def unmark_pending_delete(self, packs: list[str]) -> None:
        """See `Lease.unmark_pending_delete`."""
        await self._held().unmark_pending_delete(packs)

    @property
    def pending_delete(self) -> frozenset[str]:
        """Names of packs whose deletion may be under way, by any gateway. No new snapshot may name them."""
        known = self._lease.known if self._lease else None
        return frozenset(known.pending_delete) if known else frozenset()

    @property
    def may_write(self) -> bool:
        """Whether writes are ours to save: not once another gateway is, or was asked to be, the writer."""
        return self.role in (LeaderRole.STARTING, LeaderRole.WRITER, LeaderRole.LEAVING)

    @property
    def epoch(self) -> int | None:
        """The fencing number, while the lease is known to be ours."""
        return self._lease.epoch if self._lease else None

    # ------------------------------------------------------------------ for the journal

    async def home(self) -> str:
        """The name of the data directory in its place."""
        return await asyncio.to_thread(self._data_dir_state.name)

    async def note_journal(self, number: int, *, once_settled: bool = False) -> None:
        """See `DataDirState.see_journal`."""
        await asyncio.to_thread(partial(self._data_dir_state.see_journal, number, once_settled=once_settled))

    @property
    def had_data(self) -> bool:
        """Whether the data here were there before the lease was taken."""
        return self._had_data

    def fall_behind(self, why: str) -> None:
        """These data lack what another gateway stored just before it lost the lease."""
        self._become_behind(why)

    async def note_stored(self, number: int) -> None:
        """See `DataDirState.note_stored`."""
        await asyncio.to_thread(self._data_dir_state.note_stored, number)

    async def confirm(self) -> None:
        """Where the store keeps no conditions, look whether the lease is still ours. Raises LeaseLost, StorageError.

        A gateway that takes the lease later reads what was stored before.
        """
        if self.conditions in UNFENCED:
            try:
                await self._held().current()
            except LeaseLost as error:
                self._lose(error.message)
                raise

    def lose(self, reason: str) -> None:
        """The journal met an entry of another gateway: that one has the lease."""
        self._lose(reason)

    # ------------------------------------------------------------------ life

    def begin(self, *, has_data: bool) -> None:
        """Refuse writes until the lease is ours. `has_data` says whether the data directory held any at our start."""
        self._had_data = has_data
        self._refuse("this gateway does not hold the lease of its store yet")

    async def acquire(self) -> None:
        """Become the writer, after asking the present one to leave. Returns at once if that was decided already.

        Raises StorageError; may be retried.
        """
        await self._try_to_take()

    async def run(self) -> None:
        """After `begin`: become the writer, stay it, and hand over when asked; until cancelled."""
        async with TaskPool(2) as tasks:
            await tasks.start(self._notice_pauses)
            await tasks.start(self._lead)

    async def _notice_pauses(self) -> None:
        """Let writes be accepted for a while again and again; after a pause only once the lease was looked at.

        A process that is stopped (SIGSTOP, a machine that sleeps) may be succeeded meanwhile.
        """
        term_s, seen_s = self._options.answer_timeout_s / 2, time.monotonic()
        while True:
            paused_s = time.monotonic() - seen_s
            if paused_s > term_s and self.role is LeaderRole.WRITER:
                log.warning("this process was paused, so the lease is looked at", paused_s=round(paused_s, 1))
                try:
                    await self._held().current()
                except LeaseLost as error:
                    self._lose(error.message)
                except GatewayError as error:
                    log.warning("the lease cannot be looked at", cause=str(error))
            seen_s = time.monotonic()
            self._writes.extend_writes(seen_s + term_s)
            await asyncio.sleep(term_s / 8)

    async def _lead(self) -> None:
        tries = 0
        while self.role is LeaderRole.STARTING:
            try:
                await self._try_to_take()
            except StorageError as error:
                self._carry_on(error)
            except GatewayError as error:
                self._refuse(f"the lease cannot be taken: {error.message}")
                log.error("the lease cannot be taken", cause=str(error))
            if self.role is LeaderRole.STARTING:
                await asyncio.sleep(_RETRY_AFTER_S[min(tries, len(_RETRY_AFTER_S) - 1)])
                tries += 1
        while True:
            await asyncio.sleep(self._options.poll_s)
            try:
                await self._turn()
                self._unwatched = None
            except LeaseLost as error:
                self._unwatched, self._released_at = None, None
                self._lose(error.message)
            except GatewayError as error:
                self._unwatched = error
                log.warning("the lease cannot be looked at", cause=str(error))

    async def _turn(self) -> None:
        if self.role is LeaderRole.WRITER:
            lease_state = await self._held().current()
            if self._must_note:  # The disk was full, and may have been freed.
                await self._note(lease_state)
            if lease_state.wanted_by:
                await self._leave_to_another(lease_state)
        elif self.role is LeaderRole.LEAVING:
            await self._hand_over()
        elif self._released_at is not None and time.monotonic() - self._released_at > _UNCLAIMED_S:
            await self._held().retake()
            log.warning("nobody took the lease that was released, so it was taken back")
            self._become_writer()

    async def adopt(self) -> None:
        """Before a restore: take the lease although these data are behind, since they are about to be replaced.

        Raises LeaseLost, StorageError, DiskFull.
        """
        is_behind = self.role is LeaderRole.BEHIND
        if is_behind and self._lease is None:
            async with self._taking:
                lease = await self._make_lease()
                await lease.take()
                self._lease = lease
        known = self._held().known if is_behind else None
        # A process that is killed after the restore cannot call `adopted`.
        await asyncio.to_thread(self._data_dir_state.about_to_restore, known)

    async def adopted(self) -> None:
        """After a restore that went well: these data are the repository's now."""
        if self.role is LeaderRole.BEHIND and self._lease:
            await asyncio.to_thread(self._data_dir_state.see, self._lease.known)
            self._become_writer()

    async def end(self) -> None:
        """Give the lease back at the end of this process, after its last snapshot. Never raises for the store."""
        lease, self._lease = self._lease, None
        if lease and self.role in (LeaderRole.WRITER, LeaderRole.LEAVING, LeaderRole.BEHIND):
            self._refuse("this gateway is stopping")
            self.role = LeaderRole.READER
            try:
                await lease.release()
            except GatewayError as error:
                log.warning("the lease was not released, so the next gateway has to wait for it", cause=str(error))

    # ------------------------------------------------------------------ what to say of it

    @property
    def warnings(self) -> list[str]:
        """What an operator should know although everything works."""
        found = []
        if self.conditions in UNFENCED:
            found.append(
                f"no fencing: the store's conditional writes are {self.conditions.value},"
                " so never let two gateways use it at once"
            )
        if problem := self.store_problem:
            found.append(problem)
        return found

    @property
    def store_problem(self) -> str | None:
        """Why the store does not tell who holds the lease; None if it does."""
        if self._problem:
            return f"not fenced yet, the lease cannot be taken: {self._problem.message}"
        if self._unwatched:
            return f"the store does not tell whether another gateway took the lease: {self._unwatched.message}"
        return None

    def status(self) -> dict[str, Any]:
        """For `/admin/status`."""
        known = self._lease.known if self._lease else None
        return {
            "role": self.role.value,
            "epoch": self.epoch,
            "holder": known.where if known else None,
            "conditional_writes": self.conditions.value if self.conditions else None,
            "reason": self.reason,
            "warnings": self.warnings,
        }

    # ------------------------------------------------------------------ inside

    async def _try_to_take(self) -> None:
        async with self._taking:
            if self.role is not LeaderRole.STARTING:
                return
            lease_state = await read_lease_state(self._store)
            if why := await self._why_behind(lease_state):
                self._become_behind(why)
                return
            lease = await self._make_lease()
            if lease_state and lease_state.state != "released" and lease_state.home != lease.home:
                self._refuse(f"this gateway waits for another one ({lease_state.where}) to hand its lease over")
            try:
                await lease.take(self._why_behind)
            except LeaseLost as error:
                self._problem = None
                self._become_behind(error.message)
                return
            self._problem = None
            self._lease = lease
            await asyncio.to_thread(self._data_dir_state.see, lease.known)
            self._become_writer()

    async def _why_behind(self, lease_state: LeaseState | None) -> str | None:
        """Why these data are not to be written to; None if they may be."""
        if lease_state is None or not self._had_data:
            return None
        if await asyncio.to_thread(self._data_dir_state.begins_anew):
            return None
        why = await asyncio.to_thread(self._compared, lease_state)
        return why or (await self.why_behind() if self.why_behind else None)

    def _compared(self, lease_state: LeaseState) -> str | None:
        memory = self._data_dir_state
        if lease_state.state != "released" and not memory.knows(lease_state.home):
            return f"another gateway ({lease_state.where}) writes to this store, and these data may lack what it wrote"
        if snapshot := memory.is_behind(lease_state):
            known = lease_state.publisher is not None and memory.knows(lease_state.publisher)
            by = "from a newer state of these data" if known else "by another gateway"
            return f"snapshot {snapshot} was published {by} since, and these data lack what it wrote"
        return None

    async def _note(self, lease_state: LeaseState) -> None:
        """Note in the data directory what `lease_state`, which is ours, names. Raises nothing: see `_turn`."""
        try:
            await asyncio.to_thread(self._data_dir_state.see, lease_state)
            self._must_note = False
        except GatewayError as error:
            if not self._must_note:
                log.error(
                    "a snapshot cannot be noted in the data directory, which a restart would take for an older one",
                    cause=str(error),
                )
            self._must_note = True

    async def _make_lease(self) -> Lease:
        if self.conditions is None:
            self.conditions = await probe(self._store, may_delete=self._options.may_delete)
            if self.conditions is not Conditions.KEPT:
                log.warning(
                    "this store does not keep what conditional writes promise: two gateways on it are not fenced",
                    conditional_writes=self.conditions.value,
                    store=self._store.url,
                    hint="use another store, or make sure that one gateway has ended before the next one starts",
                )
        home = await asyncio.to_thread(self._data_dir_state.name)
        return Lease(
            self._store,
            home,
            self._where,
            conditional=self.conditions is Conditions.KEPT,
            takeover_timeout_s=self._options.takeover_timeout_s,
            answer_timeout_s=self._options.answer_timeout_s,
            first_epoch=self.first_epoch,
        )

    async def _leave_to_another(self, lease_state: LeaseState) -> None:
        """Another gateway wants the lease: no more writes, one last snapshot, and it is theirs."""
        self.role = LeaderRole.LEAVING
        self._refuse("another gateway takes over: writes go on there")
        log.info("another gateway wants the lease: handing over", wanted_by=lease_state.wanted_by)
        moving = asyncio.create_task(self._keep_moving())
        try:
            async with asyncio.timeout(self._options.takeover_timeout_s):
                await self._save_what_there_is()
        except TimeoutError:
            log.error(
                "the last snapshot was not done in time: what was written since the one before is not in the store"
            )
        finally:
            moving.cancel()
            await asyncio.gather(moving, return_exceptions=True)
        await self._hand_over()

    async def _hand_over(self) -> None:
        await self._held().release()
        self._released_at = time.monotonic()
        self._become_reader("another gateway has taken over: writes go on there")

    async def _save_what_there_is(self) -> None:
        while True:
            try:
                await self._save()
            except LeaseLost:
                raise
            except GatewayError as error:
                if not error.retryable:
                    log.error(
                        "the last snapshot failed, what was written since the one before is lost", cause=str(error)
                    )
                    return
                log.warning("the last snapshot failed, trying again", cause=str(error))
                await asyncio.sleep(_FINAL_AGAIN_S)
            else:
                return

    async def _keep_moving(self) -> None:
        while True:
            try:
                await self._held().leave()
            except GatewayError as error:
                log.warning("the lease cannot be moved", cause=str(error))
            await asyncio.sleep(self._options.poll_s)

    def _held(self) -> Lease:
        if self._lease is None:
            raise LeaseLost("this gateway does not hold the lease of its store", "see GET /admin/status")
        return self._lease

    def _carry_on(self, error: StorageError) -> None:
        """The store cannot be asked. Who has data serves them; who has none is told nothing but that anyway."""
        if self._problem is None:
            log.warning("the lease cannot be taken, trying again", cause=str(error))
        self._problem = error
        self._accept()

    def _become_writer(self) -> None:
        self.role, self._released_at = LeaderRole.WRITER, None
        self._accept()
        log.info("this gateway is the writer", epoch=self.epoch)

    def _become_behind(self, why: str) -> None:
        self.role = LeaderRole.BEHIND
        self._refuse(why)
        log.error("writes are refused", cause=why, hint='POST /admin/restore {"at": "latest"}')

    def _lose(self, reason: str) -> None:
        """Another gateway took the lease, which was not handed over unless this gateway is a reader already."""
        if self.role is not LeaderRole.READER:
            self.lost = reason
        self._become_reader(reason)

    def _become_reader(self, reason: str) -> None:
        if self.role is not LeaderRole.READER:
            log.warning("this gateway is not the writer any more: reads go on, writes are refused", cause=reason)
        self.role = LeaderRole.READER
        self._refuse(reason)

    def _refuse(self, reason: str) -> None:
        self.reason = reason
        self._writes.refuse_writes(reason)

    def _accept(self) -> None:
        self.reason = None
        self._writes.accept_writes()
