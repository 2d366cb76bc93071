"""Any request of a snapshot or a restore may fail in any way. Nothing broken is listed, and the next one succeeds.

A real Chroma, a real S3 server, and between the gateway and the store a proxy that misbehaves at the nth request.
The store tries every call only once, so that each fault takes effect.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from chromadb import Collection

from gateway.chroma import database
from gateway.chroma.directory import DataDirectory
from gateway.errors import CorruptSnapshot, GatewayError, StorageDenied, StorageUnavailable
from gateway.proxy.gate import Gate
from gateway.snapshot.create import Snapshotter
from gateway.snapshot.fetch import fetch_verified
from gateway.snapshot.repository import Repository
from gateway.storage import PrefixedStorage
from gateway.storage.s3 import S3Storage
from tests.bare_chroma import bare_chroma
from tests.servers import S3Server, faults
from tests.store_faults import FaultProxy, Rule

READ_TIMEOUT_S = 0.5
# More than either of the two makes.
MOST_REQUESTS = 60

FAULTS = {
    "500": Rule("status", status=500),
    "503 SlowDown": Rule("status", status=503),
    "reset": Rule("reset"),
    "timeout": Rule("stall"),
    "lost answer": Rule("drop_reply"),
    "cut body": Rule("truncate", at_byte=10),
    "flipped bit": Rule("flip", at_byte=40),
    "slow drip": Rule("drip", delay_s=READ_TIMEOUT_S),
}


def faults_of(*quick: str) -> list[object]:
    """All faults; those that are not `quick` in the soak.

    "503 SlowDown" and "slow drip" take the same path through the client as "500" and "timeout". Each of the others is
    quick for a snapshot or for a restore.
    """
    return [pytest.param(name, marks=[pytest.mark.soak] * (name not in quick)) for name in FAULTS]


class Served:
    """A Chroma that serves, as a snapshot asks."""

    def require_served(self) -> int:
        return 1

    async def require_same_run(self, run: int) -> None:
        assert run == 1


class Engine(NamedTuple):
    """A Chroma with records, its snapshotter, and the proxy before the store."""

    collection: Collection
    snapshotter: Snapshotter
    repository: Repository
    proxy: FaultProxy


class Prepared(NamedTuple):
    """A Chroma with an empty collection, and a bucket behind a proxy, to which the environment leads."""

    directory: DataDirectory
    collection: Collection
    bucket: str
    proxy: FaultProxy


@contextmanager
def prepared(server: S3Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Prepared]:
    bucket = server.new_bucket("faults")
    with faults(server.port) as proxy:
        for name, value in server.env_behind(proxy).items():
            monkeypatch.setenv(name, value)
        directory = DataDirectory(path / "data")
        directory.make()
        database.prepare(directory.path)
        with bare_chroma(directory.path) as chroma:
            collection = chroma.client().create_collection(
                "notes", embedding_function=None, configuration={"hnsw": {"sync_threshold": 20, "batch_size": 10}}
            )
            yield Prepared(directory, collection, bucket, proxy)


@pytest.fixture
async def engine(ministack: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    with prepared(ministack, tmp_path, monkeypatch) as made:
        store = S3Storage(made.bucket, attempts=1, read_timeout_s=READ_TIMEOUT_S, call_timeout_s=10)
        repository, gate = Repository(PrefixedStorage(store, "r/")), Gate(5)
        snapshotter = Snapshotter(repository, made.directory, Served(), lambda: gate.hold(5))
        try:
            yield Engine(made.collection, snapshotter, repository, made.proxy)
        finally:
            await snapshotter.close()
            await repository.close()


async def write(collection: Collection, number: int) -> None:
    """Enough that an index is synced now and then."""
    ids = [f"{number}-{each}" for each in range(7)]
    vectors = [[float(number), float(each)] for each in range(7)]
    await asyncio.to_thread(collection.add, ids=ids, embeddings=vectors, documents=["text " * 40] * 7)


async def restore_all(repository: Repository, target: Path) -> dict[str, int]:
    """Restore every listed snapshot. Return the records by snapshot. Raises if one cannot be restored."""
    held = {}
    for number, snapshot in enumerate(await repository.snapshots()):
        assert snapshot.state == "complete"
        manifest = await repository.manifest(snapshot.id)
        scratch_directory = target / str(number)
        scratch_directory.mkdir(parents=True)
        await fetch_verified(repository, scratch_directory, manifest, lambda _done, _total: None)
        held[snapshot.id] = snapshot.collections[0].records
    return held


@pytest.mark.parametrize("name", faults_of("500", "lost answer", "cut body"))
async def test_snapshot_survives_a_fault_at_any_request(engine: Engine, tmp_path: Path, name: str) -> None:
    """It succeeds or raises the fault. No broken snapshot is listed. The next one succeeds and holds everything."""
    fault, failures = FAULTS[name], list[GatewayError]()
    await write(engine.collection, 0)
    await engine.snapshotter.take(None)
    for nth in range(MOST_REQUESTS):
        await write(engine.collection, nth + 1)
        engine.proxy.requests.clear()
        rule = Rule(fault.fault, status=fault.status, at_byte=fault.at_byte, delay_s=fault.delay_s, count=1, skip=nth)
        engine.proxy.rules = [rule]
        try:
            await engine.snapshotter.take("with a fault")
        except (StorageUnavailable, StorageDenied, CorruptSnapshot) as error:
            failures.append(error)
        engine.proxy.rules = []
        if rule.count:
            break  # it made fewer requests: each one has had its fault
        taken = await engine.snapshotter.take("after the fault")
        assert taken.collections[0].records == 7 * (nth + 2)
    else:
        pytest.fail("there was a request for every fault")
    assert nth >= 4
    assert all("s3://" in error.message or "snapshot" in error.message for error in failures)
    if name in ("500", "503 SlowDown", "timeout"):  # some of the others have no effect
        assert len(failures) == nth
    held = await restore_all(engine.repository, tmp_path / "restored")
    assert max(held.values()) == 7 * (nth + 2)


@pytest.mark.parametrize("name", faults_of("reset", "timeout", "flipped bit"))
async def test_restore_survives_a_fault_at_any_request(engine: Engine, tmp_path: Path, name: str) -> None:
    """It ends with everything verified, or raises the fault. Nothing wrong passes the verification."""
    fault, failures = FAULTS[name], list[GatewayError]()
    for number in range(5):
        await write(engine.collection, number)
        taken = await engine.snapshotter.take(None)
    for nth in range(MOST_REQUESTS):
        scratch_directory = tmp_path / f"restored-{nth}"
        scratch_directory.mkdir()
        rule = Rule(fault.fault, status=fault.status, at_byte=fault.at_byte, delay_s=fault.delay_s, count=1, skip=nth)
        engine.proxy.rules = [rule]
        try:
            manifest = await engine.repository.manifest(await engine.repository.resolve("latest"))
            await fetch_verified(engine.repository, scratch_directory, manifest, lambda _done, _total: None)
        except GatewayError as error:
            failures.append(error)
            assert rule.count == 0
        else:
            assert database.check(scratch_directory).collections[0].records == taken.collections[0].records
        engine.proxy.rules = []
        if rule.count:
            break
    else:
        pytest.fail("there was a request for every fault")
    assert nth >= 3
    assert all(any(each in error.message for each in ("s3://", "pack", "manifest")) for error in failures)
    if name in ("500", "503 SlowDown", "timeout", "flipped bit", "cut body"):
        assert failures
