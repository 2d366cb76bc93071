"""The journal of one vector store: a cut whenever something changed, and who waits for it.

    run:  wait until a cut is due, or somebody waits for one
          → take the lease's seal, once for each epoch          (`gateway.journal.sequence`)
          → know a snapshot to begin with, or take one
          → cut: changed pages, in milliseconds                 (`gateway.chroma.pages`)
          → one object, put-if-absent                           (`Sequence.append`)
          → all who waited for this cut go on

One entry is on its way at a time. Writes that come meanwhile are in the next one, however many they are: the store's
latency bounds the number of requests, not the number of writes.

A cut needs no gate. Every commit of SQLite is a consistent state of Chroma, and Chroma's log in it has what the indexes
of the snapshot lack (`gateway.chroma.log`).
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import structlog

from gateway.aio import run_in_thread_uninterrupted
from gateway.chroma.database import newest_log_row
from gateway.chroma.pages import DatabaseCut, Mark, PageTracker
from gateway.errors import Conflict, GatewayError, InvalidRequest, LeaseLost, NotStored
from gateway.journal.entry import MAX_BODY_BYTES, NO_PAGES, Entry, Head, Kind, changed_digest, digest_of, moment_after
from gateway.journal.plan import recovery_s
from gateway.journal.sequence import Sequence, Superseded
from gateway.journal.usage import PUT_USD, Durations, LastHour
from gateway.lease.data_dir_state import DataDirState
from gateway.lease.election import LeaderElection, LeaderRole
from gateway.snapshot.blocks import Fingerprints, changed_blocks
from gateway.snapshot.capture import scan_database

log = structlog.get_logger()

_AGAIN_S = (0.25, 0.5, 1.0, 2.0, 5.0)
_BUSY_S = 0.05


class Base(NamedTuple):
    """A snapshot that the first entry of a run can be written over. `pages`: the digests of its database's pages."""

    snapshot_id: str
    pages: Fingerprints
    journal: int
    """The newest entry whose cut was before that of the snapshot."""


class Snapshots(Protocol):
    """What the journal asks of snapshots."""

    async def base(self) -> Base | None:
        """Return the newest snapshot if it is known what its database has; otherwise None."""
        ...

    async def take(self) -> None:
        """Take a checkpoint. Raises Conflict while another operation runs, and what a snapshot raises."""
        ...


@dataclass(frozen=True)
class JournalOptions:
    """`interval_s` 0 turns the journal off. `ack_timeout_s`: how long a write waits to be stored."""

    interval_s: float
    ack_timeout_s: float
    recovery_s: float
    history_s: float


@dataclass
class JournalCounts:
    """What happened since this process began."""

    entries: int = 0
    stored_bytes: int = 0
    pages: int = 0
    failures: int = 0
    cuts: Durations = field(default_factory=Durations)
    puts: Durations = field(default_factory=Durations)
    requests: LastHour = field(default_factory=LastHour)


def _parsed(position: str) -> tuple[int, int]:
    epoch, _, number = position.partition("-")
    if not (epoch.isdecimal() and number.isdecimal() and int(number)):
        raise InvalidRequest(f"{position!r} is no position", "use the value of the header X-Gateway-Position")
    return int(epoch), int(number)


class Journal:
    """`run` it; `stored` waits until all that was written before is in the store."""

    def __init__(
        self,
        sequence: Sequence,
        tracker: PageTracker,
        leader: LeaderElection,
        snapshots: Snapshots,
        serves: Callable[[], bool],
        has_data: Callable[[], bool],
        options: JournalOptions,
        *,
        where: str,
    ) -> None:
        """`serves` tells whether Chroma runs on these data; `has_data`, which blocks, whether they are worth a cut."""
        self.sequence, self._tracker, self._leader, self._snapshots = sequence, tracker, leader, snapshots
        self._serves, self._has_data, self.options, self._where = serves, has_data, options, where
        self.counts = JournalCounts()
        self.problem: GatewayError | None = None
        """Why the newest attempt to store a cut failed; None if it did not."""
        self.unsupported: str | None = None
        """Why there can be no journal on this disk; None if there can."""
        self._busy = asyncio.Lock()
        self._wake = asyncio.Event()
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._epoch: int | None = None
        self._unsealed = secrets.randbits(48) + 1
        """Stands for a position of this process before it has the lease."""
        self._newest: Entry | None = None
        """The newest entry that is known to be stored; None as long as it is not known, or there is none."""
        self._number = 0
        """Of the newest entry that was begun. It changes before its cut: a write that was answered before is in it."""
        self._covered = 0
        """Of the newest cut that is stored."""
        self._pending: Entry | None = None
        self._run, self._snapshot = 0, ""
        self._over: Fingerprints | None = None
        self._now: Fingerprints | None = None
        self._runs_ended = 0  # may end while a thread makes a cut
        self._digest = ""
        self._unsaved_since_s: float | None = None
        self._anew = False
        self._since_snapshot = (0, 0)  # entries and their bytes
        self._rows_at_snapshot = self._rows = 0
        self.restored_to: datetime | None = None
        """The moment that was restored, until the first cut of these data is stored."""
        self.is_behind: Callable[[Head], Awaitable[str | None]] | None = None
        """Why the data here lack what an entry has; None if they do not."""

    # ------------------------------------------------------------------ for writes

    @property
    def is_on(self) -> bool:
        """Whether cuts are made at all."""
        return bool(self.options.interval_s) and self.unsupported is None

    @property
    def position(self) -> str:
        """Where everything that was written so far will be, as `{epoch}-{number}`. It need not be stored yet."""
        return f"{self._epoch}-{self._number + 1}" if self._epoch else f"0-{self._unsealed}"

    @property
    def stored_position(self) -> str:
        """Up to where everything is stored."""
        return f"{self._epoch or 0}-{self._covered}"

    async def stored(self, position: str | None = None) -> str:
        """Wait until the store has everything that was written before, or up to `position`. Return its position.

        Raises NotStored if it could not be stored in time, LeaseLost if another gateway writes now: then it will not
        be stored. Raises InvalidRequest if `position` is none, Conflict if nothing is or will be stored under it.
        """
        if not self.is_on:
            raise Conflict(
                self.unsupported or "the journal is off, as GATEWAY_JOURNAL_INTERVAL_S says",
                "take a snapshot: POST /admin/snapshot",
            )
        wanted, leads = self._number + 1, self._leader.epoch
        if position is not None:
            epoch, number = _parsed(position)
            if not epoch:
                if number != self._unsealed:
                    raise Conflict(
                        f"position {position} was given by another process before it had the lease: whether that was"
                        " stored cannot be told",
                        "read what was written; a flush without a position stores everything that is here",
                    )
                number = wanted
            elif epoch != self._epoch:
                await self._require_stored(epoch, number, position)
                return self.stored_position
            wanted = min(number, wanted)
        if wanted > self._covered:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting[waiter] = wanted
            self._wake.set()
            try:
                async with asyncio.timeout(self.options.ack_timeout_s):
                    await waiter
            except TimeoutError:
                why = f": {self.problem.message}" if self.problem else ""
                raise NotStored(
                    f"it was applied, and could not be stored within {self.options.ack_timeout_s:g} s{why}",
                    "it is stored once the store answers again; see lag_s in GET /admin/status",
                ) from None
            finally:
                self._waiting.pop(waiter, None)
            if leads is not None and leads != self._leader.epoch:
                raise _lost()  # what was stored since may be of other data
        return self.stored_position

    async def _require_stored(self, epoch: int, number: int, position: str) -> None:
        """Raise Conflict unless the entry of an earlier writer is in the store."""
        for each in await self.sequence.entries(number - 1):
            if each.first <= number <= each.last:
                head = await self.sequence.head(each.key)
                if head.kind is Kind.PAGES and head.epoch == epoch:
                    return
                break
        raise Conflict(
            f"what was written at position {position} was never stored, and this gateway does not have it",
            "write it again",
        )

    @property
    def lag_s(self) -> float:
        """Seconds since the oldest change that was noticed and is not stored; 0 if there is none, or none is ours."""
        if self._unsaved_since_s is None or self._leader.role in (LeaderRole.READER, LeaderRole.BEHIND):
            return 0.0
        return time.monotonic() - self._unsaved_since_s

    @property
    def waiting(self) -> int:
        """How many wait for `stored`."""
        return len(self._waiting)

    @property
    def at(self) -> datetime | None:
        """The moment of the newest entry that is stored."""
        return self._newest.head.at if self._newest else None

    def moment(self) -> datetime:
        """A moment whose state is what is stored now, if nothing is written meanwhile: that of now, or a later one."""
        return moment_after(self.at, datetime.now(UTC))

    @property
    def recovery_s(self) -> float:
        """About how much longer than that of the newest snapshot a restore would take now."""
        entries, size_bytes = self._since_snapshot
        return recovery_s(entries, size_bytes, max(0, self._rows - self._rows_at_snapshot))

    def status(self) -> dict[str, Any]:
        """For `/admin/status`."""
        counts = self.counts
        requests = counts.requests.count(time.monotonic())
        return {
            "on": self.is_on,
            "position": self.stored_position,
            "at": self.at.isoformat() if self.at else None,
            "lag_s": round(self.lag_s, 3),
            "unstored_bytes": self._unstored_bytes() if self.is_on else None,
            "recovery_s": round(self.recovery_s, 1),
            "waiting": self.waiting,
            "cut_p50_s": counts.cuts.p50_s,
            "put_p50_s": counts.puts.p50_s,
            "entries": counts.entries,
            "stored_bytes": counts.stored_bytes,
            "failures": counts.failures,
            "requests_last_hour": requests,
            "requests_last_hour_usd": round(requests * PUT_USD, 6),
            "problem": (self.problem.message if self.problem else None) or self.unsupported,
        }

    def _unstored_bytes(self) -> int | None:
        """An upper bound for what the store lacks, before compression; None if unknown."""
        if self._pending is not None:
            return self._pending.head.changed * self._pending.head.page_bytes
        return self._tracker.changed_bytes(Mark.JOURNAL) if self._now is not None else None

    # ------------------------------------------------------------------ for snapshots

    async def require_sealed(self) -> None:
        """Before a snapshot: know the number of the newest entry. Raises LeaseLost, StorageError."""
        async with self._busy:
            await self._seal()

    def number(self) -> int:
        """The number of the newest cut. Called within the cut of a snapshot: none of the journal is made meanwhile."""
        return self._number

    def snapshot_taken(self) -> None:
        """A snapshot was published: a restore needs only what comes after it."""
        self._since_snapshot, self._rows_at_snapshot = (0, 0), self._rows
        if not self._run:
            self.end_run()  # A run that has no entry yet is to stand on the newest snapshot.

    def needs(self, snapshot_id: str) -> bool:
        """Whether the newest state is restored from this snapshot, or from one before it."""
        return self.is_on and snapshot_id >= self._snapshot

    def end_run(self) -> None:
        """The snapshot under the present run will not do any more. The next cut begins a run on another one."""
        self._over = self._now = None
        self._runs_ended += 1

    @contextlib.asynccontextmanager
    async def new_run(self, *, replaces: bool = True) -> AsyncIterator[None]:
        """Enclose what makes the data differ from those that the entries so far lead to.

        No cut is made meanwhile, and the next one begins a new run. `replaces`: the data are replaced by others.
        """
        async with self._busy:
            if replaces:
                # A restore goes back on purpose: a restart must not take its data for ones that were left behind.
                if self._epoch is not None:
                    await self._leader.note_journal(self._number, once_settled=True)
                self._fail_waiting(_replaced())  # what is stored from now on is of other data
            try:
                yield
            finally:
                self.end_run()
                if replaces:
                    self._fail_waiting(_replaced())
                    self._mark_replacement()

    def _mark_replacement(self) -> None:
        """A number of its own tells snapshots of the new data from the newest cut of the old ones."""
        if self.is_on and self._newest is not None and self._pending is None and self._epoch is not None:
            self._number += 1
            self._pending = self._void_after(self._newest)

    # ------------------------------------------------------------------ for the lease

    def begin_anew(self) -> None:
        """The data here do not come from the store, and are to be the next ones all the same."""
        self._anew = True

    async def seal(self) -> None:
        """Take the fence: nothing of an earlier writer comes after this.

        Safe to retry. Raises LeaseLost, StorageError.
        """
        async with self._busy:
            await self._seal()

    async def why_behind(self) -> str | None:
        """Why these data lack something that the journal has; None if they lack nothing, as far as that can be told."""
        newest = await self.sequence.newest()
        return await self.is_behind(newest.head) if newest and self.is_behind else None

    async def _seal(self) -> None:
        epoch = self._leader.epoch
        if epoch is None:
            raise _lost()
        if self._epoch == epoch:
            return
        if not self.is_on and await self.sequence.newest() is None:
            self._epoch = epoch
            return
        home = await self._leader.home()
        sealed = await self.sequence.seal(epoch, home, self._where, anew=self._anew)
        looks = self._leader.had_data and self._leader.role is LeaderRole.WRITER
        # The one before may have stored something between the look at its entries and this seal.
        if looks and self.is_behind and (why := await self.is_behind(sealed.head)):
            self._leader.fall_behind(why)
            raise LeaseLost(why, 'POST /admin/restore {"at": "latest"}')
        if self._leader.role is not LeaderRole.BEHIND:  # else only what is restored comes after it
            await self._leader.note_journal(sealed.head.number)
        self.end_run()
        self._newest, self._pending, self._epoch = sealed, None, epoch
        self._number, self._covered, self._anew = sealed.head.number, 0, False

    # ------------------------------------------------------------------ the loop

    async def run(self) -> None:
        """Make cuts until cancelled. An error is told by `problem`, and the next turn tries again."""
        failures = 0
        while True:
            await self._until_due(failures)
            waited = {*self._waiting}
            try:
                async with self._busy:
                    needs_snapshot = await self._advance()
                if needs_snapshot:
                    await self._snapshots.take()
                    self._wake.set()
                elif waited & self._waiting.keys():
                    await asyncio.sleep(_BUSY_S)  # nothing can be stored now
                self.problem, failures = None, 0
            except Superseded as error:
                self._leader.lose(error.message)
                self._fail_waiting(error)
            except LeaseLost as error:
                self._fail_waiting(error)
            except Conflict:
                await asyncio.sleep(_BUSY_S)  # another operation runs, and a checkpoint is needed first
            except Exception as unknown:  # any, such as of a disk that fails: it is told, and tried again
                failure = (
                    unknown if isinstance(unknown, GatewayError) else GatewayError(f"no cut can be made: {unknown}")
                )
                if self.problem is None or self.problem.message != failure.message:
                    log.warning("a cut cannot be stored, trying again", cause=str(failure))
                self.problem, failures = failure, failures + 1
                self.counts.failures += 1

    async def _until_due(self, failures: int) -> None:
        pause_s = _AGAIN_S[min(failures, len(_AGAIN_S)) - 1] if failures else self.options.interval_s or 1.0
        if failures or not self._waiting:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    if failures:
                        await asyncio.sleep(pause_s)
                    await self._wake.wait()

    async def _advance(self) -> bool:
        """Store what changed. Return whether a snapshot must be taken first."""
        serves, waited = self.is_on and self._serves(), [*self._waiting]
        changed = serves and await asyncio.to_thread(self._may_have_changed)
        if changed and self._unsaved_since_s is None:
            self._unsaved_since_s = time.monotonic()
        if self._leader.role not in (LeaderRole.WRITER, LeaderRole.LEAVING):
            if self._waiting and not self._leader.may_write:
                raise _lost()
            return False
        await self._seal()
        return serves and await self._store_changes(waited, changed=changed)

    def _may_have_changed(self) -> bool:
        return self._has_data() if self._now is None else self._tracker.may_have_changed(Mark.JOURNAL)

    async def _store_changes(self, waited: list["asyncio.Future[None]"], *, changed: bool) -> bool:
        """`changed`: whether anything may have been written that is not stored, after `waited` began to wait."""
        if self._pending is not None:
            await self._store(self._pending)
        if self._now is None:
            is_first = self._newest is None or not self._newest.head.cut
            if is_first and self.restored_to is None and not await asyncio.to_thread(self._has_data):
                self._unsaved_since_s = None
                self._settle(waited)
                return False
            if (base := await self._snapshots.base()) is None:
                return True
            await self._begin_run(base)
            changed = await asyncio.to_thread(self._tracker.may_have_changed, Mark.JOURNAL)
        over, known = self._over, self._now
        if over is None or known is None:
            return False  # there can be no journal, or the run was ended meanwhile
        if not changed and not self._is_first_due():
            self._unsaved_since_s = None
            self._settle(waited)
            return False
        began, ended = time.monotonic(), self._runs_ended
        made = await run_in_thread_uninterrupted(self._cut, over, known)
        self.counts.cuts.add(time.monotonic() - began)
        if made is None:
            return True
        entry, now = made
        self._pending = entry
        if ended == self._runs_ended:
            self._over = self._now = now
            self._digest, self._run = entry.head.database, entry.head.run
        # What is written from here on is noticed at the next turn.
        unsaved_since_s, self._unsaved_since_s = self._unsaved_since_s, None
        try:
            await self._store(entry)
        except BaseException:
            self._unsaved_since_s = unsaved_since_s
            raise
        return False

    def _is_first_due(self) -> bool:
        """Whether the data differ from the snapshot of a run that has no entry yet, or a restore is to be marked."""
        return self._over is not self._now or self.restored_to is not None

    async def _begin_run(self, base: Base) -> None:
        """Read the whole database once, and find what differs from the snapshot."""
        ended = self._runs_ended
        now = await run_in_thread_uninterrupted(self._compare, base)
        if now is None or ended != self._runs_ended or self._newest is None:
            return
        self._run, self._snapshot, self._digest = 0, base.snapshot_id, digest_of(base.pages)
        is_same = len(now) == len(base.pages) and not len(changed_blocks(base.pages, now))
        # What the newest cut has beside the snapshot may have been put back: that takes an entry too.
        is_saved = is_same and self._newest.head.cut <= base.journal
        self._over, self._now = (now, now) if is_saved else (base.pages, now)

    def _compare(self, base: Base) -> Fingerprints | None:
        """The digests of all pages by a cut; None if there can be no journal."""
        cut = self._tracker.cut(mark=Mark.JOURNAL)
        try:
            if not cut.keeps_writers_going:
                self.unsupported = "the data directory's file system has no shared memory, so there is no journal"
                log.warning("there is no journal", cause=self.unsupported)
                return None
            cut.changed = None
            return scan_database(cut, base.pages)
        except BaseException:
            self._tracker.undo(cut)
            raise
        finally:
            cut.close()

    def _cut(self, over: Fingerprints, known: Fingerprints) -> tuple[Entry, Fingerprints] | None:
        """Make a cut and an entry of it, with its page digests. None if it does not fit: then the run has ended.

        `over`: the page digests of what the entry is written over. `known`: those of the last cut.
        """

        def begin() -> None:
            self._number += 1

        before, newest = self._number, self._newest
        assert newest is not None
        cut, made = None, None
        try:
            cut = self._tracker.cut_beside_writers(begin, Mark.JOURNAL)
            at = moment_after(newest.head.at, datetime.now(UTC))
            now = scan_database(cut, known)
            changed = changed_blocks(over, now)
            if len(changed) * cut.page_bytes <= MAX_BODY_BYTES:
                digest = changed_digest(self._digest, over, now, changed)
                run = self._run or self._number
                head = self._head(newest, at, cut, digest, run)
                made = Entry.make(head, changed + 1, cut.read((changed + 1).tolist())), now
        finally:
            if cut is not None:
                cut.close()
            if made is None:
                self.end_run()
                if self._number > before:
                    # Its number may be in a snapshot, so it must not be given to anything that holds data.
                    self._pending = self._void_after(newest)
        return made

    def _void_after(self, newest: Entry) -> Entry:
        """The mark for a number that no cut takes. `newest` is our own entry."""
        head = newest.head
        return Entry.make(newest.next_mark(Kind.VOID, head.epoch, head.writer, self._where), NO_PAGES, ())

    def _head(self, newest: Entry, at: datetime, cut: DatabaseCut, digest: str, run: int) -> Head:
        self._rows = cut.newest_log_row()
        return Head(
            number=self._number,
            first=self._number,
            epoch=newest.head.epoch,
            writer=newest.head.writer,
            where=self._where,
            kind=Kind.PAGES,
            at=at,
            previous=newest.chain,
            run=run,
            snapshot=self._snapshot,
            cut=self._number,
            author=newest.head.writer,
            restored_to=self.restored_to,
            page_bytes=cut.page_bytes,
            pages=cut.pages,
            log=self._rows,
            database=digest,
        )

    async def _store(self, entry: Entry) -> None:
        began = time.monotonic()
        self.counts.requests.add(began)
        await self.sequence.append(entry)
        await self._leader.confirm()
        self._pending, self._newest = None, entry
        counts = self.counts
        counts.puts.add(time.monotonic() - began)
        counts.entries += 1
        counts.stored_bytes += len(entry.data)
        counts.pages += entry.head.changed
        if entry.head.kind is not Kind.PAGES:
            return
        self._covered, self.restored_to = entry.head.number, None
        entries, size_bytes = self._since_snapshot
        self._since_snapshot = entries + 1, size_bytes + len(entry.data)
        self._settle([waiter for waiter, number in self._waiting.items() if number <= self._covered])
        await self._leader.note_stored(entry.head.number)

    def _settle(self, waiters: list["asyncio.Future[None]"]) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
            self._waiting.pop(waiter, None)

    def _fail_waiting(self, error: GatewayError) -> None:
        for waiter in [*self._waiting]:
            if not waiter.done():
                waiter.set_exception(error)
            self._waiting.pop(waiter, None)


def _replaced() -> NotStored:
    return NotStored("it was applied, and the data were replaced before they were stored")


def _lost() -> LeaseLost:
    return LeaseLost("this gateway does not hold the lease of its store", "see GET /admin/status")


async def why_behind(head: Head, data_dir: Path, memory: DataDirState) -> str | None:
    """Why the data in `data_dir` lack something that an entry has; None if they do not, as far as that can be told."""
    if not head.cut or await asyncio.to_thread(memory.seen_in_journal) >= head.cut:
        return None
    if not await asyncio.to_thread(memory.knows, head.author):
        return f"another gateway has written to the journal up to {head.at.isoformat()}, and these data lack that"
    older = f"these data are older than the journal, which goes to {head.at.isoformat()}"
    stored = await asyncio.to_thread(memory.stored_last)
    if stored is not None and stored < head.cut - 1:
        return older
    # The last entry may have been stored without being noted. Rows of the log vanish with a collection, so it is
    # asked only then.
    if stored is None or stored < head.cut:
        with contextlib.suppress(GatewayError):
            if await asyncio.to_thread(newest_log_row, data_dir) < head.log:
                return older
    return None
