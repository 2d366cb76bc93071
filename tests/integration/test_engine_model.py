"""Whatever is written, torn, snapshotted, restored, restarted or deleted, in any order: a snapshot stays what it was.

Files of indexes are damaged while Chroma runs and while it does not. No record is lost while the log is kept; where it
was given up for an index on the disk, exactly the lost records are named. No torn index is ever in a snapshot.

A seeded random walk over a real Chroma and real `Operations`, beside a plain dictionary with the expected records. The
sizes and thresholds of the engine are made small, so that a few hundred records reach every way of storing them.
`ENGINE_MODEL_SEED` begins with another seed. A failure names its seed and
its steps.
"""

import asyncio
import contextlib
import copy
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromadb.api import ClientAPI

from gateway.chroma.database import prepare
from gateway.chroma.directory import DataDirectory
from gateway.chroma.disk import HEADER, ID_MAP, LEVEL0, LINK_LISTS
from gateway.chroma.index_health import IndexHealth
from gateway.chroma.log import keep_log
from gateway.chroma.relog import write_to_log
from gateway.chroma.segments import Segment
from gateway.errors import NotFound, StorageUnavailable
from gateway.snapshot import capture, create, packing, plan
from gateway.snapshot.create import Hold, Snapshotter
from gateway.snapshot.fetch import fetch_verified
from gateway.snapshot.index_copies import StoredCopies
from gateway.snapshot.operations import Operations
from gateway.snapshot.repository import Repository
from gateway.snapshot.retention import Keep
from gateway.storage import FileStorage
from tests.bare_chroma import BareChroma, bare_chroma

SEED = int(os.environ.get("ENGINE_MODEL_SEED", "1"))
STEPS = 40

_MOST_RECORDS = 250


@dataclass
class Collection:
    """A collection as expected. `records`: embedding, document and metadata by id."""

    dimension: int
    records: dict[str, tuple[list[float], str, dict[str, Any]]] = field(default_factory=dict)


Model = dict[str, Collection]
Damage = Callable[[Path], None]


class LossyStore(FileStorage):
    """Refuses some puts when told to, like a store whose connection breaks."""

    puts_left: int | None = None

    async def put(self, key: str, data: bytes) -> None:
        if self.puts_left is not None:
            self.puts_left -= 1
            if self.puts_left < 0:
                raise StorageUnavailable("the connection broke")
        await super().put(key, data)


class Chroma:
    """One Chroma on one directory, stopped and started as the gateway does."""

    def __init__(self, path: Path) -> None:
        self._path, self._stack, self._run, self._port = path, contextlib.ExitStack(), 0, 0
        self.client: ClientAPI = None  # type: ignore[assignment]

    def begin(self) -> None:
        prepare(self._path)
        running: BareChroma = self._stack.enter_context(bare_chroma(self._path))
        keep_log(self._path)
        self.client, self._port, self._run = running.client(), running.port, self._run + 1

    def end(self) -> None:
        """Like kill -9."""
        self._stack.close()

    # What snapshots and restores ask of it

    def require_served(self) -> int:
        return self._run

    async def require_same_run(self, run: int) -> None:
        assert run == self._run

    async def write_to_log(self, segment: Segment, ids: list[str], hold: Hold) -> list[str]:
        return await write_to_log(self._port, segment, ids, hold)

    def require_control(self) -> None:
        pass

    async def stop(self) -> None:
        self.end()

    async def start(self) -> dict[str, str]:
        self.begin()
        problems = {}
        for collection in self.client.list_collections():
            try:
                collection.get(limit=1, include=["embeddings"])
            except Exception as error:
                problems[collection.name] = str(error)
        return problems


class Leader:
    """The only gateway there is."""

    async def adopt(self) -> None: ...

    async def adopted(self) -> None: ...

    async def abort_announced(self) -> None: ...


class Walk:
    """One walk. `seed` alone decides its steps."""

    def __init__(self, path: Path, seed: int, patch: pytest.MonkeyPatch) -> None:
        self.random = random.Random(seed)
        self.path, self.steps = path, [f"seed {seed}"]
        self.directory = DataDirectory(path / "data")
        self.directory.make()
        self.chroma = Chroma(self.directory.path)
        self.store = LossyStore(path / "store")
        self.repository = Repository(self.store)
        self.gate = threading.Lock()
        self.model: Model = {}
        self.at_cut: Model = {}
        self.snapshots: dict[str, Model] = {}
        self.made = 0
        self.operations = self._operations()
        choice = self.random.choice
        for module, name, value in (
            (capture, "PIECE_BYTES", choice((16 << 10, 4 << 20))),
            (packing, "PACK_BYTES", choice((64 << 10, 8 << 20))),
            (plan, "REPLAYED_ROWS_PER_S", choice((1, 2000, 1e12))),
            (create, "_SAVE_EVERY_S", choice((0, 60))),
            (create, "_MAX_WAL_BYTES", choice((1, 64 << 20))),
            (create, "_MAX_LOG_ROWS", max_log_rows := choice((30, 25_000))),
        ):
            self.steps.append(f"{name}={value}")
            patch.setattr(module, name, value)

        self.may_lose = max_log_rows == 30

    def _operations(self) -> Operations:
        chroma: Any = self.chroma
        leader: Any = Leader()
        return Operations(self.repository, self.directory, chroma, self, leader, drain_timeout_s=1)

    admitted_writes = 0
    lost: str | None = None

    @contextlib.asynccontextmanager
    async def refuse(self, reason: str, drain_timeout_s: float) -> AsyncIterator[None]:
        yield

    @property
    def snapshotter(self) -> Snapshotter:
        return self.operations.snapshotter

    @contextlib.asynccontextmanager
    async def hold(self, drain_timeout_s: float) -> AsyncIterator[float]:
        await asyncio.to_thread(self.gate.acquire)
        try:
            self.at_cut = copy.deepcopy(self.model)
            yield 0.0
        finally:
            self.gate.release()

    # ------------------------------------------------------------------ steps

    def write(self) -> None:
        """Make one write of any kind, and update the model."""
        chance = self.random.random()
        if not self.model or (chance < 0.08 and len(self.model) < 4):
            name, dimension = f"col-{self.made}", self.random.choice((3, 8, 40))
            self.made += 1
            threshold = self.random.choice((6, 10, 25, 1000))
            hnsw = {"sync_threshold": threshold, "batch_size": self.random.randint(2, min(threshold, 10))}
            with self.gate:
                self.chroma.client.create_collection(name, embedding_function=None, configuration={"hnsw": hnsw})
                self.model[name] = Collection(dimension)
            return
        name = self.random.choice(sorted(self.model))
        expected = self.model[name]
        with self.gate:
            if chance < 0.11:
                self.chroma.client.delete_collection(name)
                del self.model[name]
                return
            collection = self.chroma.client.get_collection(name, embedding_function=None)
            if chance < 0.25 and expected.records:
                ids = self.random.sample(
                    sorted(expected.records), min(len(expected.records), self.random.randint(1, 15))
                )
                collection.delete(ids=ids)
                for each in ids:
                    del expected.records[each]
            elif chance < 0.4 and expected.records:
                ids = self.random.sample(
                    sorted(expected.records), min(len(expected.records), self.random.randint(1, 10))
                )
                metadatas = [{"n": self.random.randrange(10**6)} for _ in ids]
                vectors = [self._vector(expected.dimension) for _ in ids] if chance < 0.33 else None
                documents = [self._text() for _ in ids] if vectors else None
                collection.update(ids=ids, embeddings=vectors, documents=documents, metadatas=metadatas)
                for number, each in enumerate(ids):
                    vector, document, _ = expected.records[each]
                    if vectors and documents:
                        vector, document = vectors[number], documents[number]
                    expected.records[each] = vector, document, metadatas[number]
            else:
                fresh = [f"{name}-{self.random.randrange(_MOST_RECORDS)}" for _ in range(self.random.randint(1, 25))]
                records = {
                    each: (self._vector(expected.dimension), self._text(), {"n": self.random.randrange(10**6)})
                    for each in fresh
                }
                collection.upsert(
                    ids=list(records),
                    embeddings=[vector for vector, _, _ in records.values()],
                    documents=[text for _, text, _ in records.values()],
                    metadatas=[metadata for _, _, metadata in records.values()],
                )
                expected.records |= records

    def _vector(self, dimension: int) -> list[float]:
        return np.array([self.random.uniform(-1, 1) for _ in range(dimension)], np.float32).tolist()

    def _text(self) -> str:
        return " ".join(str(self.random.randrange(1000)) for _ in range(self.random.randint(1, 60)))

    async def several_writes(self) -> None:
        for _ in range(self.random.randint(1, 12)):
            self.write()

    async def read(self) -> None:
        """Reads let Chroma catch up with its log."""
        await asyncio.to_thread(self._read)

    def _read(self) -> None:
        for name in sorted(self.model):
            self.chroma.client.get_collection(name, embedding_function=None).count()

    async def snapshot(self) -> None:
        taken = await self.operations.snapshot()
        self.snapshots[taken.id] = self.at_cut

    async def tear_while_running(self) -> None:
        """An index is damaged while Chroma has it in memory.

        Not its id map, which Chroma reads anew, and no file goes: Chroma itself would fail at its next write.
        """
        for name in sorted(self.model):  # as the gateway does after each start
            self.chroma.client.get_collection(name, embedding_function=None).get(limit=1, include=["embeddings"])
        await self.tear((HEADER, LEVEL0, LINK_LISTS), DAMAGES[1:])

    async def tear(
        self, names: Sequence[str] = (HEADER, LEVEL0, LINK_LISTS, ID_MAP), damages: Sequence[Damage] = ()
    ) -> None:
        """Damage a file of an index."""
        indexes = [path.parent for path in self.directory.path.glob(f"*/{HEADER}")]
        if not indexes:
            return
        index, name = self.random.choice(sorted(indexes)), self.random.choice(names)
        damage = self.random.choice(damages or DAMAGES)
        self.steps.append(f"{damage.__name__} {name}")
        with contextlib.suppress(FileNotFoundError):
            damage(index / name)

    async def tear_and_restart(self) -> None:
        """Chroma is killed, and an index damaged."""
        self.chroma.end()
        await self.tear()
        await self._start_chroma()

    async def restart_chroma(self) -> None:
        self.chroma.end()
        await self._start_chroma()

    async def _start_chroma(self) -> None:
        """Repair as the gateway does before a start. Records that were lost are written again: that is enough."""
        copies = StoredCopies(self.repository, self.directory.scratch, baseline=self.directory.baseline)
        repairs = await IndexHealth(self.directory.path).repair_unsound(copies.of)
        self.chroma.begin()
        for repair in repairs:
            self.steps.append(f"{repair.way.value} lost {len(repair.lost_ids)}")
            lost = sorted({*repair.lost_ids, *repair.doubtful_ids})
            if not lost:
                continue
            assert self.may_lose, repair
            expected = self.model[repair.segment.collection].records
            collection = self.chroma.client.get_collection(repair.segment.collection, embedding_function=None)
            collection.upsert(ids=lost, embeddings=[expected[each][0] for each in lost])

    async def collect(self) -> None:
        """Apply a retention rule, and delete everything that nothing names."""
        collected = await self.operations.collect_garbage(Keep(last=self.random.randint(1, 4)), 0)
        for each in collected.dropped_snapshots:
            del self.snapshots[each]

    async def snapshot_under_writes(self) -> None:
        """Writes and reads go on, as the gate allows."""
        done = threading.Event()

        def write_on() -> None:
            while not done.is_set():
                self.write()
                self._read()

        writing = asyncio.create_task(asyncio.to_thread(write_on))
        try:
            await self.snapshot()
            await self.snapshot()
        finally:
            done.set()
            await writing

    async def failing_snapshot(self) -> None:
        self.store.puts_left = self.random.randint(0, 3)
        with contextlib.suppress(StorageUnavailable):
            await self.snapshot()
        self.store.puts_left = None

    async def delete(self) -> None:
        if self.snapshots:
            doomed = self.random.choice([*sorted(self.snapshots), max(self.snapshots)])
            await self.repository.delete(doomed)
            del self.snapshots[doomed]
            with pytest.raises(NotFound):
                await self.repository.manifest(doomed)

    async def bound_logs(self) -> None:
        await asyncio.to_thread(self.snapshotter._bound_wal)
        await self.snapshotter._bound_log()

    async def restart_gateway(self) -> None:
        """The gateway ends as it should, or is killed. What it saved may be lost."""
        how = self.random.choice(("closed", "killed", "baseline lost"))
        self.steps.append(how)
        if how == "closed":
            await self.snapshotter.close()
        else:
            self.snapshotter.tracker.forget()  # the kernel closes the files of a killed process
        if how == "baseline lost":
            self.directory.baseline.unlink(missing_ok=True)
        self.repository = Repository(self.store)
        self.operations = self._operations()

    async def restore(self) -> None:
        """Restore while running, and continue from there."""
        if not self.snapshots:
            return
        snapshot_id = self.random.choice(sorted(self.snapshots))
        await self.operations.restore(snapshot_id)
        self.model = copy.deepcopy(self.snapshots[snapshot_id])
        self.compare(self.chroma.client, self.model)

    async def open_one(self) -> None:
        """Fetch a snapshot into a fresh directory, and open it with Chroma alone."""
        if self.snapshots:
            await self.open(self.random.choice([*sorted(self.snapshots), max(self.snapshots)]))

    async def open(self, snapshot_id: str) -> None:
        self.steps.append(snapshot_id)
        target = Path(tempfile.mkdtemp(dir=self.path))
        manifest = await self.repository.manifest(snapshot_id)
        keep_log = self.random.random() < 0.5
        staged = await fetch_verified(self.repository, target, manifest, lambda done, total: None, keep_log=keep_log)
        assert staged.unsound == []
        with bare_chroma(target) as chroma:
            self.compare(chroma.client(), self.snapshots[snapshot_id])
        shutil.rmtree(target)

    # ------------------------------------------------------------------ what is expected

    def compare(self, client: ClientAPI, model: Model) -> None:
        assert {each.name for each in client.list_collections()} == set(model)
        for name, expected in model.items():
            collection = client.get_collection(name, embedding_function=None)
            held = collection.get(include=["embeddings", "documents", "metadatas"])
            records = {
                id_: (np.float32(vector).tolist(), document, metadata)
                for id_, vector, document, metadata in zip(
                    held["ids"], held["embeddings"], held["documents"], held["metadatas"], strict=True
                )
            }
            assert records.keys() == expected.records.keys(), name
            assert records == expected.records, name
            assert collection.count() == len(records)
            if records:
                ids = sorted(records)
                vectors = [expected.records[each][0] for each in ids]
                found = collection.query(query_embeddings=vectors, n_results=1, include=["distances"])
                missed = [each for each, hits in zip(ids, found["ids"], strict=True) if hits != [each]]
                # Chroma's own graph loses a few after many updates and deletions, even without a restore.
                few = max(4, len(ids) // 10)
                assert len(missed) <= few, f"{name}: {len(missed)} of {len(ids)} are not found: {missed[:5]}"

    async def run(self, steps: int) -> None:
        weighted: list[tuple[int, Callable[[], Any]]] = [
            (12, self.several_writes),
            (2, self.read),
            (8, self.snapshot),
            (3, self.snapshot_under_writes),
            (1, self.failing_snapshot),
            (2, self.delete),
            (4, self.bound_logs),
            (3, self.restart_gateway),
            (1, self.restart_chroma),
            (2, self.tear_and_restart),
            (2, self.tear_while_running),
            (1, self.collect),
            (2, self.restore),
            (3, self.open_one),
        ]
        self.chroma.begin()
        try:
            for _ in range(steps):
                (step,) = self.random.choices([each for _, each in weighted], [weight for weight, _ in weighted])
                self.steps.append(step.__name__)
                await step()
            self.steps.append("compare all")
            await self.restart_chroma()
            self.compare(self.chroma.client, self.model)
            for snapshot_id in sorted(self.snapshots):
                await self.open(snapshot_id)
        except BaseException as error:
            error.add_note(", ".join(self.steps))
            raise
        finally:
            await self.snapshotter.close()
            self.chroma.end()


def _missing(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _random(path: Path) -> None:
    path.write_bytes(np.random.default_rng(1).bytes(path.stat().st_size))


def _with_a_hole(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)
    os.truncate(path, path.stat().st_size * 1000)


DAMAGES: tuple[Damage, ...] = (_missing, _cut, _zeroed, _random, _with_a_hole)


def seeds(for_s: float) -> Iterator[int]:
    deadline, seed = time.monotonic() + for_s, SEED
    while time.monotonic() < deadline:
        yield seed
        seed += 1


@pytest.mark.timeout(600)
@pytest.mark.parametrize("for_s", [3, pytest.param(50, marks=pytest.mark.soak)])
def test_every_snapshot_equals_the_model(tmp_path: Path, for_s: float) -> None:
    """Opened by Chroma alone, each has exactly the records of its moment, and each record is found by its vector."""
    for seed in seeds(for_s):
        path = tmp_path / str(seed)
        path.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            asyncio.run(Walk(path, seed, patch).run(STEPS))
        shutil.rmtree(path)


async def test_deleted_log_rows_are_not_missed_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log was trimmed past the stored index, and the gateway ended: the next snapshot reads the index."""
    walk = Walk(tmp_path, 0, monkeypatch)
    monkeypatch.setattr(plan, "REPLAYED_ROWS_PER_S", 1e12)
    monkeypatch.setattr(create, "_MAX_LOG_ROWS", 10)
    walk.chroma.begin()
    try:
        hnsw = {"sync_threshold": 10, "batch_size": 5}
        collection = walk.chroma.client.create_collection("col", embedding_function=None, configuration={"hnsw": hnsw})
        expected = walk.model["col"] = Collection(3)

        def add(start: int) -> None:
            ids = [str(number) for number in range(start, start + 12)]
            vectors = [walk._vector(3) for _ in ids]
            collection.upsert(ids=ids, embeddings=vectors, documents=ids, metadatas=[{"n": 1} for _ in ids])
            collection.count()
            expected.records |= {each: (vector, each, {"n": 1}) for each, vector in zip(ids, vectors, strict=True)}

        add(0)
        await walk.snapshot()
        add(12)
        await walk.snapshot()
        lags = await walk.repository.manifest(max(walk.snapshots))
        assert max(lags.positions.values()) < max(lags.segments.values())
        add(24)
        await walk.bound_logs()
        await walk.snapshotter.close()
        walk.operations = walk._operations()
        await walk.snapshot()
        for snapshot_id in walk.snapshots:
            await walk.open(snapshot_id)
    finally:
        await walk.snapshotter.close()
        walk.chroma.end()


async def test_restore_begins_a_new_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it, an index may reach the position in the log that it had before, with other vectors."""
    walk = Walk(tmp_path, 0, monkeypatch)
    walk.chroma.begin()
    try:
        hnsw = {"sync_threshold": 10, "batch_size": 5}
        walk.chroma.client.create_collection("col", embedding_function=None, configuration={"hnsw": hnsw})
        walk.model["col"] = Collection(3)

        def add(start: int) -> None:
            ids = [str(number) for number in range(start, start + 10)]
            vectors = [walk._vector(3) for _ in ids]
            collection = walk.chroma.client.get_collection("col", embedding_function=None)
            collection.upsert(ids=ids, embeddings=vectors, documents=ids, metadatas=[{"n": 1} for _ in ids])
            collection.count()
            walk.model["col"].records |= {
                each: (vector, each, {"n": 1}) for each, vector in zip(ids, vectors, strict=True)
            }

        async def positions() -> list[int]:
            await walk.snapshot()
            return list((await walk.repository.manifest(max(walk.snapshots))).positions.values())

        add(0)
        before = await positions()
        back_to = max(walk.snapshots)
        add(10)
        first = await positions()
        await walk.operations.restore(back_to)
        walk.model = copy.deepcopy(walk.snapshots[back_to])
        add(10)
        assert before < first == await positions()
        for snapshot_id in walk.snapshots:
            await walk.open(snapshot_id)
    finally:
        await walk.snapshotter.close()
        walk.chroma.end()
