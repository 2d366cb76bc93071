"""The Chroma of one data directory: prepared and started, followed, stopped, and started again when it died.

1. `start`: finish an interrupted swap → WAL mode → repair unsound indexes → check what Chroma died of →
   configuration → process → every collection is read once
2. `keep_running`: when the process ended by itself, the same again. How often that may happen is decided by the
   process manager (`gateway.supervisor.plugin`), which also ends everything when it was too often.
3. `stop`: for a restore, which swaps the files. Until `start` ended nobody else starts it.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import structlog

from gateway.aio import SharedRuns, run_in_thread_uninterrupted
from gateway.chroma import database
from gateway.chroma.directory import DataDirectory
from gateway.chroma.disk import DATABASE
from gateway.chroma.index_health import Copies, IndexHealth, no_copies
from gateway.chroma.process import merged_config, require_free_port, write_config
from gateway.chroma.quarantine import Quarantine, fingerprints
from gateway.chroma.relog import Hold, write_to_log
from gateway.chroma.repair import IndexCopy, Repair, Way, at_risk, repair_segment
from gateway.chroma.routes import parse_collection_id
from gateway.chroma.segments import Segment, read_segments
from gateway.chroma.structure import check_segment
from gateway.chroma.watch import ChromaWatch
from gateway.errors import GatewayError, NotFound, Unavailable

log = structlog.get_logger()

_STOP_TIMEOUT_S = 15.0
_START_TIMEOUT_S = 30.0
_READ_TIMEOUT_S = 600.0
_POLL_S = 0.1
# As `gateway.supervisor.plugin` counts deaths. The pauses must be so short that it still sees a crash loop.
_LONGEST_PAUSE_S = 3.0
_REMEMBERED_S = 60.0
_MOST_TRIES = 5


class ProcessControl(Protocol):
    """Starts and stops the one process that is Chroma. Every method raises Unavailable; all may be retried."""

    async def start(self, timeout_s: float) -> None:
        """Return when the process is there, which is before it answers. It may have been there already."""
        ...

    async def stop(self, timeout_s: float) -> None:
        """Return when the process has ended. It may have ended before."""
        ...

    async def is_running(self) -> bool:
        """Whether there is a process, also one that was just started or is just being stopped."""
        ...

    async def has_died(self) -> bool:
        """Whether it ended without having been told to, and was not started since."""
        ...

    async def forget_deaths(self) -> None:
        """Do not count how often it has died so far."""
        ...


class ManagedChroma:
    """Chroma on `directory` at `watch`'s port. `control` is None where something else runs it."""

    def __init__(
        self,
        directory: DataDirectory,
        watch: ChromaWatch,
        control: ProcessControl | None,
        config: Path,
        quarantine: Quarantine | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        copies: Copies = no_copies,
        lost: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`config` is the file that the process manager's command names; it is written before each start.

        `settings` are the keywords of `merged_config`.

        `copies` gives older copies of an index, for the repair of an unsound one. `lost()`: why what Chroma writes
        would be lost now, None if it would not. It is not started then.
        """
        self._directory, self._watch, self._control = directory, watch, control
        self._quarantine = quarantine or Quarantine()
        self._config, self._settings = config, settings or {}
        self._health, self._copies, self._lost = IndexHealth(directory.path), copies, lost
        self._checking = asyncio.Lock()
        self._checks: dict[str, SharedRuns[list[str]]] = {}
        """By segment, those that are asked for at this moment."""
        self._had_database = False
        self.repairs: list[Repair] = []
        """Indexes that were unsound at Chroma's last start, and what was done."""
        self._lost_on_trial: dict[str, str] = {}
        self._attended = False
        self._deaths: list[float] = []
        self._blamed = set(self._quarantine.quarantined)

    # ------------------------------------------------------------------ for snapshots and restores

    def require_served(self) -> int:
        """See `ChromaWatch.require_served`."""
        return self._watch.require_served()

    async def require_same_run(self, run: int) -> None:
        """See `ChromaWatch.require_same_run`."""
        await self._watch.require_same_run(run)

    async def write_to_log(self, segment: Segment, ids: Sequence[str], hold: Hold) -> Sequence[str]:
        """See `gateway.chroma.relog`. A collection that Chroma must not touch has nothing in its memory."""
        if self._quarantine.refuses(segment.collection_id):
            return ids
        return await write_to_log(self._watch.port, segment, ids, hold)

    def require_control(self) -> ProcessControl:
        """Raise Unavailable where Chroma cannot be stopped and started."""
        if self._control is None:
            raise Unavailable(
                "Chroma does not run under supervisord here, so it cannot be stopped for a restore",
                "start both with `chroma-gateway serve` (scripts/run)",
            )
        return self._control

    async def is_running(self) -> bool:
        """Whether there is a process. True where something else runs it."""
        return self._control is None or await self._control.is_running()

    async def stop(self) -> None:
        """Return once the process has ended; it stays so until `start`. Raises Unavailable."""
        self._attended = True
        self._quarantine.stopped()
        await self.require_control().stop(_STOP_TIMEOUT_S)
        await self._watch.until(lambda watch: not watch.up, _STOP_TIMEOUT_S)

    async def start(self) -> dict[str, str]:
        """Start it and read every collection; return what could not be read, and why, by name.

        Raises Unavailable if it does not come up or ends meanwhile, ConfigError if its port is taken.
        """
        self._attended = True
        try:
            await self.launch()
            await self._until_read()
            return self._watch.unreadable | self._lost_on_trial
        finally:
            self._attended = False

    async def repair(
        self,
        segment: Segment,
        hold: Hold,
        progress: Callable[[int, int], None],
        *,
        rebuild: bool = False,
    ) -> tuple[Repair, float]:
        """Repair one index with one restart of Chroma; return what was done, and for how many seconds Chroma was away.

        `hold` keeps writes back for the time of a block. `progress` is told from a thread how many vectors are indexed,
        of how many. `rebuild`: build a sound index anew, as is always done for one in quarantine. It ends a quarantine.
        When this ends, also by an error, Chroma has read every collection. Must not be cancelled. Raises NotFound,
        QuiesceTimeout, DiskFull, GatewayError, and what `start` raises.
        """
        rebuild = rebuild or segment.collection_id in self._quarantine.quarantined
        try:
            async with self._copies(segment) as copies:
                await self._save_from_memory(segment, copies, hold)
                async with hold():
                    began = time.monotonic()
                    await self.stop()
                    try:
                        repair = await self._repair_from(copies, segment, rebuild=rebuild, progress=progress)
                        self._quarantine.lift(segment.collection_id)
                    finally:
                        # What waits for the gate is to meet a Chroma that answers.
                        await self.launch()
                        await self._watch.until(lambda watch: watch.up, _START_TIMEOUT_S)
                    outage_s = time.monotonic() - began
        finally:
            await self.start()
        if repair.way is not Way.NONE:
            self.repairs.append(repair)
        return repair, outage_s

    async def _save_from_memory(
        self,
        segment: Segment,
        copies: Sequence[IndexCopy],
        hold: Hold,
    ) -> None:
        """Write to Chroma's log what a repair would lose and a running Chroma still has."""
        try:
            ids = await asyncio.to_thread(at_risk, self._directory.path, segment.id, copies)
        except (GatewayError, OSError, sqlite3.Error) as error:
            log.warning("it cannot be told what only Chroma has", collection=segment.name, cause=str(error))
            return
        if not ids or not self._watch.up:
            return
        # An error ends the repair: Chroma still has the vectors, and nothing has changed.
        gone = await self.write_to_log(segment, ids, hold)
        left = set(await asyncio.to_thread(at_risk, self._directory.path, segment.id, copies)) - set(gone)
        if left:
            raise GatewayError(
                f"{len(left)} vector(s) of {segment.name} are in Chroma's memory alone, and Chroma cannot write them to"
                " its log",
                "nothing was changed; see GET /readyz for what keeps Chroma from writing, and repair it again then",
            )

    def find(self, collection: str, tenant: str, database_name: str) -> Segment:
        """The vector segment of a collection, by its id or its name. Blocks. Raises NotFound, GatewayError."""
        path, wanted = self._directory.path / DATABASE, parse_collection_id(collection) or collection
        with database.translated(path), closing(database.open_database(path)) as connection:
            for segment in read_segments(connection):
                named = (segment.collection, segment.tenant, segment.database)
                if wanted == segment.collection_id or named == (collection, tenant, database_name):
                    return segment
        raise NotFound(f"there is no collection {collection} in database {database_name} of tenant {tenant}")

    async def check(self, segment: Segment) -> list[str]:
        """What is wrong with the index files of a collection; empty if nothing is. Chroma may be running.

        Reads all of them, about 500 MB in a second, one index at a time. Those who ask for the same index meanwhile
        share the next look. Raises OSError, GatewayError.
        """
        checks = self._checks.setdefault(segment.id, SharedRuns(lambda: self._check(segment)))
        try:
            return await checks.run()
        finally:
            if not checks.callers:
                self._checks.pop(segment.id, None)

    async def _check(self, segment: Segment) -> list[str]:
        def read() -> list[str]:
            health = IndexHealth(self._directory.path)
            check = health.check(segment.id, segment)
            health.save()  # so that the next look need not read them
            return [str(problem) for problem in check.problems] if check.is_torn else []

        async with self._checking:
            return await asyncio.to_thread(read)

    # ------------------------------------------------------------------ life

    async def launch(self) -> None:
        """Start the process if there is none. Returns before it answers. Raises as `start`, and DiskFull."""
        control = self.require_control()
        if not await control.is_running():
            self._quarantine.chroma_gone()
            await asyncio.to_thread(self._prepare)
            await self._repair_unsound()
            await self._settle_quarantine()
            await control.start(_START_TIMEOUT_S)

    async def keep_running(self) -> None:
        """Start it again whenever it died, until cancelled. Raises GatewayError when it cannot be started any more."""
        if self._control is None:
            return
        while True:
            await self._watch.until(lambda watch: not watch.up, None)
            try:
                if not self._attended and await self._control.has_died():
                    await self._restart()
            except Unavailable as error:
                log.debug("the state of Chroma's process is not known", cause=error.message)
            except GatewayError as error:
                # A disk that is full may be freed. A wrong setting stays wrong.
                if error.exit_code != GatewayError.exit_code or len(self._deaths) > _MOST_TRIES:
                    raise
                log.error("Chroma cannot be started, trying again", cause=str(error))
            await asyncio.sleep(_POLL_S)

    async def _restart(self) -> None:
        # The first time at once; after that a little later each time, since what killed it may pass.
        now = time.monotonic()
        blamed = set(self._quarantine.quarantined)
        if blamed - self._blamed:
            # Chroma is not to touch what it died of. However many such collections there are, it comes up at last.
            self._deaths = []
            try:
                await self.require_control().forget_deaths()
            except Unavailable as error:
                log.warning("the deaths of Chroma still count", cause=error.message)
        self._blamed = blamed
        self._deaths = [*(died for died in self._deaths if now - died < _REMEMBERED_S), now]
        pause_s = min(len(self._deaths) - 1, _LONGEST_PAUSE_S)
        log.warning("Chroma ended and is started again", pause_s=pause_s)
        await asyncio.sleep(pause_s)
        if not self._attended:
            await self.launch()

    async def _until_read(self) -> None:
        control, deadline = self.require_control(), time.monotonic() + _READ_TIMEOUT_S
        while not await self._watch.until(lambda watch: watch.warmed, _POLL_S):
            if await control.has_died():
                raise Unavailable("Chroma ended while its collections were being read", "see its last lines in the log")
            if time.monotonic() > deadline:
                raise Unavailable(f"Chroma was not ready within {_READ_TIMEOUT_S:g} s")

    def _prepare(self) -> None:
        """Make the data directory ready for a start. Blocks."""
        if why := self._lost():
            raise GatewayError(f"Chroma is not started: {why}")
        require_free_port(self._watch.port)
        self._directory.recover()
        if not self._directory.may_run_trial():
            log.error("Chroma died of the restored snapshot, rolling back", snapshot=self._directory.on_trial)
            self._directory.roll_back()
        if self._had_database and not (self._directory.path / DATABASE).exists():
            # A new one would be empty, and its snapshot would be the newest.
            raise GatewayError(
                f"the database in {self._directory.path} is gone, so Chroma is not started",
                "put it back, or restart everything: an empty data directory gets the latest snapshot",
            )
        mode = database.prepare(self._directory.path)
        self._had_database = True
        if mode != "wal":
            log.warning(
                "this file system cannot do WAL: a snapshot holds writes while the database is copied", mode=mode
            )
        write_config(self._config, merged_config(self._directory.path, self._watch.port, **self._settings))

    async def _repair_unsound(self) -> None:
        self.repairs = repairs = await self._health.repair_unsound(self._copies)
        # Data on trial has somewhere to go back to. Of the data that is served, the rest is served.
        self._lost_on_trial = {
            repair.segment.name: f"its index is torn, and {len(repair.lost_ids)} record(s) lost their vector"
            for repair in repairs
            if repair.lost_ids and repair.way is not Way.NONE and self._directory.on_trial
        }

    async def _settle_quarantine(self) -> None:
        """Check what Chroma may have died of, whatever is remembered of it, and quarantine what stays torn."""
        quarantine, path = self._quarantine, self._directory.path
        for segment in await asyncio.to_thread(self._torn, quarantine.suspects):
            try:
                self.repairs.append(await self._repair(segment))
            except (GatewayError, OSError, sqlite3.Error) as error:
                quarantine.put(segment.collection_id, f"its index is torn, and could not be repaired: {error}")
        for repair in self.repairs:
            if repair.after.is_sound:
                quarantine.lift(repair.segment.collection_id)
        files = await asyncio.to_thread(fingerprints, path, quarantine.ids)
        quarantine.settle(files, on_trial=self._directory.on_trial is not None)

    def _torn(self, collection_ids: Collection[str]) -> list[Segment]:
        """The segments of these collections whose index is torn. Blocks. Raises GatewayError."""
        path = self._directory.path
        if not collection_ids or database.is_empty(path):
            return []
        with database.translated(path / DATABASE), closing(database.open_database(path / DATABASE)) as connection:
            suspected = [each for each in read_segments(connection) if each.collection_id in collection_ids]
            checks = [(each, check_segment(path, connection, each)) for each in suspected]
        return [segment for segment, check in checks if not (check.is_sound or check.only_lacks_vectors)]

    async def _repair(self, segment: Segment) -> Repair:
        """As `repair_segment`, with the copies in the store. Chroma must be stopped."""
        async with self._copies(segment) as copies:
            return await self._repair_from(copies, segment)

    async def _repair_from(
        self,
        copies: Sequence[IndexCopy],
        segment: Segment,
        *,
        rebuild: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Repair:
        repair = partial(repair_segment, self._directory.path, segment.id, copies, rebuild=rebuild, progress=progress)
        return await run_in_thread_uninterrupted(repair)
