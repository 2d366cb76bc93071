"""A snapshot is one cut: proved under continuous writes, and disproved for a plain copy."""

import asyncio
import random
import shutil
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from chromadb import Collection
from chromadb.api import ClientAPI

from gateway.chroma.directory import DataDirectory
from gateway.snapshot.repository import Repository
from gateway.snapshot.restore import restore_at_boot
from gateway.storage import PrefixedStorage, open_storage
from tests.bare_chroma import bare_chroma
from tests.gateway_process import gateway_process

COPIES, SLOW_FILES = 4, 20
BATCH = 25
DIMENSION = 64
# Numbers are below 2**24, so number * STEP is exact in a float32. A new number hardly changes a vector.
STEP = 2.0**-20
# A thorough search: a record that is not found is missing.
HNSW = {"sync_threshold": 150, "batch_size": 100, "ef_search": 1000, "ef_construction": 200}
# hnswlib's graph loses a few elements when vectors are updated. A live Chroma shows the same.
MISSED = 0.005
# Four writers, three collections.
WRITERS = {"w0": "one", "w1": "two", "w2": "three", "w3": "three"}


class Writers:
    """Upsert continuously: new records, and every third time an older batch again.

    Each write has its own number, which its document, metadata and embedding carry. `acknowledged` has the last number
    that Chroma acknowledged, by record id.
    """

    def __init__(self, connect: Callable[[], ClientAPI]) -> None:
        self._connect = connect
        self._stop = threading.Event()
        self.acknowledged: dict[str, int] = {}
        self.failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=each) for each in WRITERS.items()]
        self._threads.append(threading.Thread(target=self._read_unwarmed))

    @contextmanager
    def writing(self) -> Iterator[None]:
        client = self._connect()
        for name in sorted(set(WRITERS.values())):
            client.create_collection(name, embedding_function=None, configuration={"hnsw": HNSW})
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()
        assert not self.failures, self.failures

    def _run(self, writer: str, collection_name: str) -> None:
        try:
            collection = self._connect().get_collection(collection_name, embedding_function=None)
            turn = 0
            while not self._stop.is_set():
                turn += 1
                batch = turn if turn % 3 or turn < 6 else random.Random(turn).randrange(1, turn - 1)
                ids = [f"{writer}-{batch}-{j}" for j in range(BATCH)]
                numbers = [turn * BATCH + j for j in range(BATCH)]
                upsert(collection, ids, numbers)
                self.acknowledged.update(zip(ids, numbers, strict=True))
        except BaseException as error:
            self.failures.append(error)

    def _read_unwarmed(self) -> None:
        """Read new collections for the first time, continuously. Each such read writes."""
        try:
            client, turn = self._connect(), 0
            while not self._stop.is_set():
                turn += 1
                fresh = client.create_collection(
                    f"fresh-{turn}",
                    embedding_function=None,
                    configuration={"hnsw": {"sync_threshold": 10, "batch_size": 5}},
                )
                upsert(fresh, [f"f-{turn}-{j}" for j in range(BATCH)], list(range(BATCH)))
                if turn % 3 == 0:
                    fresh.count()
                elif turn % 3 == 1:
                    fresh.peek(1)
                else:
                    fresh.query([[1.0] * DIMENSION])
                time.sleep(0.1)
        except BaseException as error:
            self.failures.append(error)


def wait_until_enough(writers: Writers) -> None:
    """Wait until enough was written that a copy could be torn."""
    deadline = time.monotonic() + 60
    while len(writers.acknowledged) < 2000:
        assert time.monotonic() < deadline
        assert not writers.failures, writers.failures
        time.sleep(0.02)


def upsert(collection: Collection, ids: list[str], numbers: list[int]) -> None:
    collection.upsert(
        ids=ids,
        embeddings=[vector(id_, number) for id_, number in zip(ids, numbers, strict=True)],
        documents=[document(number) for number in numbers],
        metadatas=[{"number": number} for number in numbers],
    )


def document(number: int) -> str:
    return f"number {number} " + "of so many words " * 12


def vector(id_: str, number: int) -> list[float]:
    """The id's own vector, with the number as its first coordinate: float32, (DIMENSION,)."""
    own = np.random.default_rng(zlib.crc32(id_.encode())).random(DIMENSION, dtype=np.float32)
    own[0] = number * STEP
    return own.tolist()


def problems(path: Path, floor: dict[str, int]) -> list[str]:
    """Open the copy at `path` with a fresh Chroma. Return what is wrong; nothing if it is a cut with all of `floor`."""
    found = []
    try:
        with closing(sqlite3.connect(path / "chroma.sqlite3")) as database:
            if (verdict := database.execute("pragma integrity_check").fetchone()[0]) != "ok":
                found.append(f"integrity: {verdict}")
    except sqlite3.DatabaseError as error:
        found.append(f"integrity: {error}")
    try:
        with bare_chroma(path) as chroma:
            found += _problems_of_records(chroma.client(), floor)
    except Exception as error:
        found.append(f"unusable: {error}")
    return found


def _problems_of_records(client: ClientAPI, floor: dict[str, int]) -> list[str]:
    found, seen = [], {}
    for collection in client.list_collections():
        got = collection.get(include=["embeddings", "documents", "metadatas"])
        for id_, embedding, text, metadata in zip(
            got["ids"], got["embeddings"], got["documents"], got["metadatas"], strict=True
        ):
            if text != document(metadata["number"]) or np.float32(embedding).tolist() != vector(
                id_, metadata["number"]
            ):
                found.append(f"{collection.name}/{id_} is torn: {text[:20]}, {metadata}, {list(embedding)[:3]}")
            seen[id_] = metadata["number"]
        if collection.count() != len(got["ids"]) or len(got["ids"]) % BATCH:
            found.append(f"{collection.name}: {len(got['ids'])} records, half a batch")
        if got["ids"]:
            nearest = collection.query(query_embeddings=got["embeddings"], n_results=1, include=[])["ids"]
            missed = [id_ for id_, hit in zip(got["ids"], nearest, strict=True) if hit != [id_]]
            if len(missed) > MISSED * len(got["ids"]):
                found.append(
                    f"{collection.name}: {len(missed)} of {len(got['ids'])} are not found by vector, e.g. {missed[0]}"
                )
    lost = [id_ for id_, number in floor.items() if seen.get(id_, -1) < number]
    if lost:
        found.append(f"{len(lost)} acknowledged writes are lost, e.g. {lost[0]}")
    return found


@pytest.mark.timeout(400)
@pytest.mark.parametrize("snapshots", [1, pytest.param(5, marks=pytest.mark.soak)])
def test_every_snapshot_under_writes_is_one_cut(tmp_path: Path, snapshots: int) -> None:
    """Snapshots under four writers: each opens, holds every acknowledged write, and has no torn record."""
    with gateway_process() as built:
        writers, taken = Writers(built.start().client), []
        with writers.writing():
            wait_until_enough(writers)
            for _ in range(snapshots):
                floor = dict(writers.acknowledged)
                taken.append((built.snapshot(), floor))
        built.stop()

        async def restore(snapshot_id: str, target: Path) -> None:
            directory = DataDirectory(target)
            directory.make()
            repository = Repository(
                PrefixedStorage(open_storage(f"file://{built.store_dir}"), "users/default/vectorstore/")
            )
            await restore_at_boot(repository, directory, snapshot_id, lambda done, total: None)
            await repository.close()

        bad = {}
        for snapshot, floor in taken:
            target = tmp_path / snapshot["id"]
            asyncio.run(restore(snapshot["id"], target))
            if found := problems(target, floor):
                bad[snapshot["id"]] = found
            shutil.rmtree(target)
    freezes = sorted(snapshot["freeze_ms"] for snapshot, _ in taken)
    drains = sorted(snapshot["drain_ms"] for snapshot, _ in taken)
    print(f"freeze_ms median {median(freezes)} max {freezes[-1]}, drain_ms median {median(drains)} max {drains[-1]}")
    assert not bad


@pytest.mark.timeout(600)
@pytest.mark.soak
def test_plain_copy_of_the_live_directory_fails_the_same_check(tmp_path: Path) -> None:
    """The check can fail: it finds such copies corrupt, since each file is of another moment."""
    live = tmp_path / "live"
    live.mkdir()
    with bare_chroma(live) as chroma:
        writers, copies, copied = Writers(chroma.client), [], 0

        def copy(source: str, target: str) -> None:
            nonlocal copied
            shutil.copy2(source, target)
            copied += 1
            if copied > SLOW_FILES:
                return
            seen, deadline = len(writers.acknowledged), time.monotonic() + 10
            while len(writers.acknowledged) < seen + BATCH and time.monotonic() < deadline:
                time.sleep(0.001)

        with writers.writing():
            wait_until_enough(writers)
            for number in range(COPIES):
                copied = 0
                floor, target = dict(writers.acknowledged), tmp_path / str(number)
                # Files appear and disappear. A copy with some files missing is what a user would get, too.
                with suppress(shutil.Error):
                    shutil.copytree(live, target, copy_function=copy)
                copies.append((target, floor))
    # One corrupt copy is enough to show that a plain copy is not safe.
    assert any(problems(target, floor) for target, floor in copies)
