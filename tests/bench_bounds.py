"""What grows with a million writes, and what does not: SQLite's log, Chroma's log, memory, objects, history, requests.

Chroma makes the collection. After that its writes are made up, by the statements that Chroma 1.5.9 itself executes: a
million in a real one would take hours. All of the gateway's parts save what is written. The clock is simulated too: a
write of 100 records each 2.5 s, so that a million take seven hours. Between, what the gateway does by itself is done
when its time has come: merges each minute, checkpoints when a restore would take too long, a garbage collection each
hour.

    scripts/bench-bounds                      a million writes, about twenty minutes
    scripts/bench-bounds --writes 100000      fewer
"""

import argparse
import asyncio
import logging
import os
import resource
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import numpy as np
import structlog

import gateway.journal.entry
import gateway.journal.history
import gateway.journal.journal
import gateway.journal.sequence
import gateway.snapshot.create
import gateway.snapshot.manifests
import gateway.vectorstore
from gateway.aio import background
from gateway.chroma.database import prepare
from gateway.chroma.log import count_log
from gateway.config import Settings
from gateway.errors import Conflict
from gateway.journal.merge import Merger
from gateway.journal.replay import find_point, replay_of
from gateway.server.container import vectorstore_of
from gateway.snapshot.fetch import fetch_contents
from gateway.snapshot.retention import OwnLabel
from gateway.storage import FileStorage, ObjectInfo
from gateway.vectorstore import VectorStore
from tests.bare_chroma import bare_chroma

RECORDS, DIMENSION = 1_000, 4
"""The collection keeps its size: what grows is not the data."""
PER_REQUEST, EVERY_S = 100, 2.5
SYNC_THRESHOLD = 1_000
"""Chroma's default: after so many records it writes an index."""
HISTORY_S = 3 * 3600
ROWS = 14
MODULES = (
    gateway.journal.entry,
    gateway.journal.history,
    gateway.journal.journal,
    gateway.journal.sequence,
    gateway.snapshot.create,
    gateway.snapshot.manifests,
    gateway.vectorstore,
)


class Clock(datetime):
    """A clock that is moved by hand."""

    moment = datetime.now(UTC)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return Clock.moment.astimezone(tz)


class SimulatedStorage(FileStorage):
    """Its times are those of the clock, and its requests are counted."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.requests = Counter[str]()
        self._stored_at: dict[str, datetime] = {}

    async def put(self, key: str, data: bytes) -> None:
        self.requests["put"] += 1
        self._stored_at[key] = Clock.moment
        await super().put(key, data)

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        self.requests["put"] += 1
        self._stored_at[key] = Clock.moment
        return await super().put_if_absent(key, data)

    async def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        self.requests["put"] += 1
        return await super().put_if_match(key, data, version)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        self.requests["get"] += 1
        return await super().get_range(key, start, length)

    async def head(self, key: str) -> ObjectInfo:
        return self._in_its_time(await super().head(key))

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        self.requests["list"] += 1
        async for info in super().list(prefix, after):
            yield self._in_its_time(info)

    async def delete_all(self, keys: Any) -> None:
        self.requests["delete"] += -(-len(keys) // 1000)
        for key in keys:
            self._stored_at.pop(key, None)
        await super().delete_all(keys)

    def _in_its_time(self, info: ObjectInfo) -> ObjectInfo:
        return ObjectInfo(info.key, info.size_bytes, self._stored_at.get(info.key, Clock.moment), info.tag)


class Served:
    """Stands for the Chroma that was started here."""

    def require_served(self) -> int:
        return 1

    async def require_same_run(self, run: int) -> None:
        pass


def vectorstore(path: Path, storage: SimulatedStorage) -> VectorStore:
    """The gateway's own parts; Chroma is started by us."""
    settings = Settings(data_dir=path / "data", store=f"file://{path}/store", history_s=HISTORY_S, gc_grace_s=60)
    built: Any = vectorstore_of(settings, storage)
    built.journal._serves = lambda: True
    built.operations.snapshotter._chroma = Served()
    found: VectorStore = built
    return found


class Writer:
    """Upserts records as Chroma does: its log, its tables of metadata, and an index whenever it is due."""

    def __init__(self, path: Path) -> None:
        self._path, self._random = path, np.random.default_rng(1)
        # Chroma waits for a thousand seconds too.
        self._database = sqlite3.connect(
            path / "chroma.sqlite3", isolation_level=None, timeout=1000, check_same_thread=False
        )
        (self._topic,) = self._database.execute("select topic from embeddings_queue").fetchone()
        self._segments = dict(self._database.execute("select scope, id from segments"))

    def write(self, number: int) -> None:
        database, first = self._database, number * PER_REQUEST % RECORDS
        vectors = self._random.standard_normal((PER_REQUEST, DIMENSION)).astype(np.float32)
        database.execute("begin immediate")
        database.executemany(
            "insert into embeddings_queue(operation, topic, id, vector, encoding, metadata)"
            " values (2, ?, ?, ?, 'FLOAT32', ?)",
            [
                (self._topic, f"r{first + each}", vectors[each].tobytes(), f'{{"request":{number}}}')
                for each in range(PER_REQUEST)
            ],
        )
        (last,) = database.execute("select max(seq_id) from embeddings_queue").fetchone()
        numbers = [(last - PER_REQUEST + 1 + each, f"r{first + each}") for each in range(PER_REQUEST)]
        database.executemany("update embeddings set seq_id = ? where embedding_id = ?", numbers)
        database.executemany(
            "update embedding_metadata set int_value = ? where id = (select id from embeddings where embedding_id = ?)",
            [(number, record) for _, record in numbers],
        )
        self._note("METADATA", last)
        database.execute("commit")
        if last % SYNC_THRESHOLD == 0:
            for file in (self._path / self._segments["VECTOR"]).iterdir():
                file.write_bytes(file.read_bytes())
            self._note("VECTOR", last)

    def _note(self, scope: str, last: int) -> None:
        self._database.execute("update max_seq_id set seq_id = ? where segment_id = ?", (last, self._segments[scope]))

    def close(self) -> None:
        self._database.close()


def make_collection(path: Path) -> None:
    """Let Chroma make a collection with all its records, and an index."""
    with bare_chroma(path) as chroma:
        collection = chroma.client().create_collection("notes", embedding_function=None)
        collection.add(
            ids=[f"r{each}" for each in range(RECORDS)],
            embeddings=np.random.default_rng(0).standard_normal((RECORDS, DIMENSION)).astype(np.float32),
            metadatas=[{"request": 0}] * RECORDS,
        )


class Run:
    def __init__(self, built: VectorStore, storage: SimulatedStorage, requests: int) -> None:
        self.built, self.storage, self.requests = built, storage, requests
        self.merger = Merger(built.journal.sequence)
        self.began, self.merged_at, self.tidied_at, self.shown_at = (Clock.moment,) * 4
        self.wal_bytes = self.checkpoints = 0
        self.recovery_s = 0.0

    async def do_what_is_due(self) -> None:
        built, now, snapshotter = self.built, Clock.moment, self.built.operations.snapshotter
        self.wal_bytes = max(self.wal_bytes, snapshotter.tracker.wal_bytes())
        await asyncio.to_thread(snapshotter._bound_wal)
        self.recovery_s = max(self.recovery_s, built.journal.recovery_s)
        if built.journal.recovery_s > built._options.journal.recovery_s:
            with suppress(Conflict):
                await built.operations.snapshot(OwnLabel.CHECKPOINT)
                self.checkpoints += 1
        if now - self.merged_at > timedelta(minutes=1):
            self.merged_at = now
            await self.merger.merge_old(now)
        if now - self.tidied_at > timedelta(hours=1):
            self.tidied_at = now
            await built.tidy(own=True)

    async def show(self, writes: int) -> None:
        """Print one line, of what there is now and of the most since the line before."""
        built, hours = self.built, (Clock.moment - self.shown_at) / timedelta(hours=1)
        keys = [(info.key, info.size_bytes) async for info in self.storage.list("")]
        folders = Counter(key.removeprefix("users/default/vectorstore/").partition("/")[0] for key, _ in keys)
        window = await built.history.window()
        asked, self.shown_at = self.storage.requests, Clock.moment
        self.storage.requests = Counter()
        cells = [
            f"{(Clock.moment - self.began) / timedelta(hours=1):.1f}",
            f"{writes:,}",
            f"{(built.directory.path / 'chroma.sqlite3').stat().st_size / 1e6:.1f}",
            f"{self.wal_bytes / 1e6:.1f}",
            f"{count_log(built.directory.path):,}",
            f"{rss_bytes() / 1e6:.0f}",
            f"{folders['journal']:,} + {folders['journal-merged']:,}",
            f"{folders['snapshots']:,}",
            f"{len(keys):,}",
            f"{sum(size for _, size in keys) / 1e6:.0f}",
            f"{(Clock.moment - window.oldest) / timedelta(hours=1):.1f}" if window else "none",
            f"{self.recovery_s:.0f}",
            f"{asked['put'] / hours:,.0f}",
            f"{(asked['get'] + asked['list'] + asked['delete']) / hours:,.0f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
        self.wal_bytes, self.recovery_s = 0, 0.0


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def measured(path: Path, writes: int) -> None:
    for module in MODULES:
        vars(module)["datetime"] = Clock
    storage = SimulatedStorage(path / "store")
    built = vectorstore(path, storage)
    built.directory.make()
    prepare(built.directory.path)
    make_collection(built.directory.path)
    await built.begin()
    await built.leader.acquire()
    writer, run = Writer(built.directory.path), Run(built, storage, writes // PER_REQUEST)
    print(
        "| hours | writes | MB database | MB WAL, most | rows of the log | MB of memory | entries + merged |"
        " snapshots | objects | MB stored | hours of history | s to recover, most | PUTs an hour |"
        " other requests an hour |"
    )
    print("| ---" * 14 + " |")
    async with background(built.journal.run()):
        for number in range(run.requests):
            Clock.moment += timedelta(seconds=EVERY_S)
            await asyncio.to_thread(writer.write, number)
            await built.journal.stored()
            await run.do_what_is_due()
            if (number + 1) % max(1, run.requests // ROWS) == 0:
                await run.show((number + 1) * PER_REQUEST)
    writer.close()
    await restored(built, path)
    print(f"{run.checkpoints} checkpoints")
    await built.close()


async def restored(built: VectorStore, path: Path) -> None:
    """Lead the database of a snapshot to the newest state, as a restore does."""
    began, sequence = time.monotonic(), built.journal.sequence
    point = await find_point(sequence, built.repository, None)
    assert point is not None
    replay = replay_of(sequence, point)
    if replay is not None:
        (path / "restored").mkdir()
        found = await fetch_contents(built.repository.get_unverified, path / "restored", point.manifest, replay)
        assert found.collections[0].records == RECORDS
    print(
        f"\nthe newest state: {len(point.entries)} entries over a snapshot, {time.monotonic() - began:.1f} s; ", end=""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writes", type=int, default=1_000_000)
    asked = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(prefix="bench-bounds-") as path:
        asyncio.run(measured(Path(path), asked.writes))


if __name__ == "__main__":
    os.environ.pop("GATEWAY_STORE", None)
    main()
