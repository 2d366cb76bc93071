"""Any request of the journal may fail in any way: nothing stored is lost, nothing is skipped, errors name the way out.

A real Chroma, a real S3 server, and between the journal and the store a proxy that misbehaves at the nth request.
The store tries every call only once, so that each fault takes effect. Each run has another kind of fault at each
request; `EVERY_FAULT=1 scripts/test --soak tests/integration/test_journal_faults.py` has every kind at every one.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import os
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from chromadb import Collection

from gateway.aio import background
from gateway.chroma import database
from gateway.chroma.directory import DataDirectory
from gateway.chroma.disk import DATABASE
from gateway.errors import CorruptSnapshot, DiskFull, GatewayError, StorageDenied, StorageUnavailable
from gateway.journal.journal import Base, Journal, JournalOptions
from gateway.journal.merge import Merger
from gateway.journal.replay import RestorePoint, find_point, replay_of
from gateway.journal.sequence import JOURNAL, Sequence
from gateway.lease.election import LeaderElection
from gateway.proxy.gate import Gate
from gateway.snapshot.create import Snapshotter
from gateway.snapshot.fetch import fetch_contents
from gateway.snapshot.repository import Repository
from gateway.snapshot.restore import restore_at_boot
from gateway.storage import PrefixedStorage, Storage
from gateway.storage.s3 import S3Storage
from tests.integration.test_faults_everywhere import Served, prepared
from tests.servers import S3Server
from tests.small_disk import small_disk
from tests.store_faults import FaultProxy, Rule
from tests.unit.journal.test_journal import Leader

READ_TIMEOUT_S = 1.0
# More than a turn makes.
MOST_REQUESTS = 60
LATER = timedelta(hours=3)

FAULTS = [
    Rule("status", status=500),
    Rule("drop_reply"),
    Rule("truncate", at_byte=100),
    Rule("flip", at_byte=200),
    Rule("replace", status=200, body=b"<html><body>Log in</body></html>"),
    Rule("status", status=403),
    Rule("status", status=409),
    Rule("status", status=503),
    Rule("close"),
    Rule("reset"),
    Rule("stall"),
    Rule("stall", at_byte=100),
    Rule("drip", delay_s=0.3),
    Rule("delay", delay_s=0.3),
    Rule("ignore_range"),
]
# The kind at the first request; the others follow in turn.
TURNS = range(len(FAULTS)) if os.environ.get("EVERY_FAULT") else (1,)
KINDS = pytest.mark.parametrize("kind", [pytest.param(turn, marks=[pytest.mark.soak] * (turn != 1)) for turn in TURNS])


class Checkpoints:
    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    async def base(self) -> Base | None:
        found = await self._snapshotter.base()
        return Base(*found) if found else None

    async def take(self) -> None:
        await self._snapshotter.take("checkpoint")


class Engine:
    """A Chroma with records, its journal and snapshots, and the proxy before the store."""

    def __init__(self, directory: DataDirectory, bucket: str, collection: Collection, proxy: FaultProxy) -> None:
        self.bucket, self.collection, self.proxy = bucket, collection, proxy
        self.store, self.calm = self.prefixed("r/"), PrefixedStorage(S3Storage(bucket), "r/")
        self.repository, gate = Repository(self.calm), Gate(5)
        self.snapshotter = Snapshotter(Repository(self.store), directory, Served(), lambda: gate.hold(5))
        self.leader = Leader()
        self.journal = Journal(
            Sequence(self.store),
            self.snapshotter.tracker,
            cast(LeaderElection, self.leader),
            Checkpoints(self.snapshotter),
            lambda: True,
            lambda: True,
            JournalOptions(interval_s=3600, ack_timeout_s=20, recovery_s=10, history_s=3600),
            where="here",
        )
        self.snapshotter.journal = self.journal
        self.records = 0
        self.moments: dict[datetime, int] = {}
        """What was there at each moment that was acknowledged as stored: the number of records."""

    def prefixed(self, prefix: str) -> PrefixedStorage:
        return PrefixedStorage(S3Storage(self.bucket, attempts=1, read_timeout_s=READ_TIMEOUT_S), prefix)

    async def write_and_store(self) -> None:
        ids = [str(self.records + each) for each in range(3)]
        vectors = [[float(self.records), float(each)] for each in range(3)]
        await asyncio.to_thread(self.collection.add, ids=ids, embeddings=vectors, documents=["text " * 40] * 3)
        self.records += 3
        await self.journal.stored()
        assert self.journal.at is not None
        self.moments[self.journal.at] = self.records

    def restarted(self) -> None:
        """The lease is taken anew, and nothing is known of the entries."""
        self.leader.epoch += 1
        self.journal.sequence = Sequence(self.store)

    def fail_at(self, kind: int, nth: int) -> Rule:
        rule = dataclasses.replace(FAULTS[(kind + nth) % len(FAULTS)], count=1, skip=nth)
        self.proxy.rules = [rule]
        return rule

    async def point(self, at: datetime | None = None, sequence: Sequence | None = None) -> RestorePoint:
        found = await find_point(sequence or Sequence(self.calm), self.repository, at)
        assert found is not None
        return found

    async def contents(self, point: RestorePoint, sequence: Sequence, path: Path) -> int:
        """Fetch the database of `point` alone, as a preview does. Return the number of records."""
        path.mkdir()
        replay = replay_of(sequence, point)
        assert replay is not None
        found = await fetch_contents(self.repository.get_unverified, path, point.manifest, replay)
        return found.collections[0].records

    async def restored(self, path: Path, at: datetime | None = None, *, store: Storage | None = None) -> int:
        """Restore into an empty data directory, as a start does. Return the number of records."""
        directory, sequence = DataDirectory(path), Sequence(store or self.calm)
        repository = Repository(store or self.calm)
        point = await find_point(sequence, repository, at)
        assert point is not None
        await asyncio.to_thread(directory.make)
        replay = replay_of(sequence, point)
        await restore_at_boot(repository, directory, point.manifest.snapshot.id, lambda *_: None, replay)
        return database.check(path).collections[0].records

    async def close(self) -> None:
        await self.snapshotter.close()
        await self.store.close()
        await self.calm.close()


@pytest.fixture
async def engine(ministack: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    monkeypatch.setattr("gateway.journal.journal._AGAIN_S", (0.01,))
    with prepared(ministack, tmp_path, monkeypatch) as (directory, collection, bucket, proxy):
        made = Engine(directory, bucket, collection, proxy)
        try:
            async with background(made.journal.run()):
                yield made
        finally:
            await made.close()


@KINDS
async def test_a_fault_at_any_request_of_a_writer_loses_nothing(engine: Engine, tmp_path: Path, kind: int) -> None:
    """A gateway that takes the fence, stores two cuts, and takes a snapshot now and then."""
    await engine.write_and_store()
    for nth in range(MOST_REQUESTS):
        engine.restarted()
        rule = engine.fail_at(kind, nth)
        await engine.write_and_store()
        await engine.write_and_store()
        engine.proxy.rules = []
        assert engine.leader.lost is None, "its own entry was taken for another gateway's"
        assert (await engine.point()).at == engine.journal.at
        if rule.count:
            break  # it made fewer requests: each one has had its fault
        if nth % 5 == 4:
            await engine.snapshotter.take("checkpoint")
    else:
        pytest.fail("there was a request for every fault")
    assert nth >= 6
    assert await engine.restored(tmp_path / "latest") == engine.records
    for each, (at, records) in enumerate(itertools.islice(engine.moments.items(), 1, None, 8)):
        assert await engine.restored(tmp_path / f"r{each}", at) == records


@pytest.mark.soak
@KINDS
async def test_a_fault_at_any_request_of_a_merge_loses_nothing(engine: Engine, tmp_path: Path, kind: int) -> None:
    """Wherever it ends, what is left leads to the newest state, and a later merge brings the same as without it."""
    for _ in range(5):
        await engine.write_and_store()
    entries = {info.key: await engine.calm.get(info.key) async for info in engine.calm.list("journal")}
    merged = list[list[str]]()
    for nth in range(MOST_REQUESTS):
        store = PrefixedStorage(engine.calm, f"copy-{nth}/")
        for key, data in entries.items():
            await store.put(key, data)
        rule = engine.fail_at(kind, nth)
        with contextlib.suppress(StorageUnavailable, StorageDenied):
            await Merger(Sequence(PrefixedStorage(engine.store, f"copy-{nth}/"))).merge_old(datetime.now(UTC) + LATER)
        engine.proxy.rules = []
        point = await engine.point(sequence=Sequence(store))
        assert (point.at, point.entries[-1].last) == (engine.journal.at, len(entries))
        if nth % 4 == 3 or rule.count:
            assert await engine.contents(point, Sequence(store), tmp_path / f"r{nth}") == engine.records
            await Merger(Sequence(store)).merge_old(datetime.now(UTC) + LATER)
            merged.append([info.key async for info in store.list("journal")])
        if rule.count:
            break
    else:
        pytest.fail("there was a request for every fault")
    assert nth >= 10
    assert all(keys == merged[-1] for keys in merged)
    assert len(merged[-1]) < len(entries)


@KINDS
async def test_a_fault_at_any_request_of_a_restore_leaves_all_or_nothing(
    engine: Engine, tmp_path: Path, kind: int
) -> None:
    """It brings the very state back, or says what failed, and the data directory is as empty as before."""
    for _ in range(6):
        await engine.write_and_store()
    target, failures = tmp_path / "restored", list[GatewayError]()
    at, records = list(engine.moments.items())[-2]
    for nth in range(MOST_REQUESTS):
        rule = engine.fail_at(kind, nth)
        try:
            assert await engine.restored(target, at, store=engine.store) == records
        except GatewayError as error:
            failures.append(error)
            assert DataDirectory(target).is_empty()
        else:
            target = tmp_path / f"restored-{nth}"
            if rule.count:
                break
    else:
        pytest.fail("there was a request for every fault")
    assert nth >= 6
    engine.proxy.rules = []
    assert await engine.restored(target) == engine.records
    for failure in failures:
        assert "s3://" in failure.message or "snapshot" in failure.message
        assert not isinstance(failure, CorruptSnapshot) or "restore" in str(failure.hint)


async def test_a_damaged_entry_ends_a_restore_with_the_way_out(engine: Engine, tmp_path: Path) -> None:
    """The moment that the hint names can be restored; a later one cannot, and nothing is left of the attempt."""
    for _ in range(6):
        await engine.write_and_store()
    moments = sorted(engine.moments)
    keys = [info.key async for info in engine.calm.list(JOURNAL)]
    before, damaged = [await engine.calm.get(key) for key in keys[-4:-2]]
    target = tmp_path / "restored"
    for data in (
        None,  # deleted
        damaged[:-20] + bytes([damaged[-20] ^ 1]) + damaged[-19:],
        damaged[:-20],
        before,
    ):
        await engine.calm.delete(keys[-3])
        if data is not None:
            await engine.calm.put(keys[-3], data)
        for at in (None, moments[-3]):
            with pytest.raises(CorruptSnapshot) as refused:
                await engine.restored(target, at)
            assert refused.value.hint == f"restore to {moments[-4].isoformat()}, which is as far as it goes"
            assert DataDirectory(target).is_empty()
    assert await engine.restored(target, moments[-4]) == engine.moments[moments[-4]]


async def test_a_replay_onto_a_disk_that_is_too_small_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    """The snapshot fits, and the state that the journal leads to does not. With room the same restore succeeds."""
    await engine.write_and_store()
    await engine.write_and_store()
    first = engine.records
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / DATABASE, isolation_level=None)) as connection:
        connection.execute("create table filler(data blob)")
        connection.execute("insert into filler values (zeroblob(?))", (30 << 20,))
    await engine.write_and_store()
    with small_disk(24) as disk:
        with pytest.raises(DiskFull, match=r"writing .* failed: No space left|full"):
            await engine.restored(disk / "restored")
        assert DataDirectory(disk / "restored").is_empty()
        assert await engine.restored(disk / "restored", list(engine.moments)[1]) == first
    assert await engine.restored(tmp_path / "restored") == engine.records
