"""Every request of a snapshot and of a restore fails in every way: nothing broken is listed, and the next one succeeds.

A real Chroma, a real S3 server, and a proxy between us and the store that misbehaves at the nth request.
The store tries every call once only, so that each fault counts.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from chromadb import Collection

from gateway.chroma import database
from gateway.chroma.directory import DataDirectory
from gateway.errors import CorruptSnapshot, GatewayError, StorageDenied, StorageUnavailable
from gateway.proxy.gate import Gate
from gateway.snapshot.create import Snapshotter
from gateway.snapshot.repository import Repository
from gateway.snapshot.restore import fetch_verified
from gateway.storage import PrefixedStorage, S3Storage
from tests.bare_chroma import bare_chroma
from tests.servers import S3Server, faults, ministack
from tests.store_faults import FaultProxy, Rule

READ_TIMEOUT_S = 0.5
# More than any of the two asks.
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


class Served:
    """A Chroma that is up, as a snapshot asks."""

    def require_served(self) -> int:
        return 1

    async def require_same_run(self, run: int) -> None:
        assert run == 1


class Place(NamedTuple):
    """A Chroma with records, what takes its snapshots, and the proxy before the store."""

    collection: Collection
    snapshotter: Snapshotter
    repository: Repository
    proxy: FaultProxy


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with ministack() as started:
        yield started


@pytest.fixture
async def place(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    bucket = f"b{abs(hash(tmp_path)) % 10**9}"
    server.make_bucket(bucket)
    with ExitStack() as stack:
        proxy = stack.enter_context(faults(server.port))
        for name, value in (server.env | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{proxy.port}"}).items():
            monkeypatch.setenv(name, value)
        directory = DataDirectory(tmp_path / "data")
        directory.make()
        database.prepare(directory.path)
        chroma = stack.enter_context(bare_chroma(directory.path))
        collection = chroma.client().create_collection(
            "notes", embedding_function=None, configuration={"hnsw": {"sync_threshold": 20, "batch_size": 10}}
        )
        store = S3Storage(bucket, attempts=1, read_timeout_s=READ_TIMEOUT_S, call_timeout_s=10)
        repository, gate = Repository(PrefixedStorage(store, "r/")), Gate(5)
        snapshotter = Snapshotter(repository, directory, Served(), lambda: gate.hold(5))
        try:
            yield Place(collection, snapshotter, repository, proxy)
        finally:
            await snapshotter.close()
            await repository.close()


async def write(collection: Collection, number: int) -> None:
    """So much that an index is synced now and then."""
    ids = [f"{number}-{each}" for each in range(7)]
    vectors = [[float(number), float(each)] for each in range(7)]
    await asyncio.to_thread(collection.add, ids=ids, embeddings=vectors, documents=["text " * 40] * 7)


async def whole(repository: Repository, target: Path) -> dict[str, int]:
    """Records by snapshot, each restored; raises if anything that is listed cannot be."""
    held = {}
    for number, snapshot in enumerate(await repository.snapshots()):
        assert snapshot.state == "complete"
        manifest = await repository.manifest(snapshot.id)
        scratch_directory = target / str(number)
        scratch_directory.mkdir(parents=True)
        await fetch_verified(repository, scratch_directory, manifest, lambda _done, _total: None)
        held[snapshot.id] = snapshot.collections[0].records
    return held


@pytest.mark.parametrize("name", FAULTS)
async def test_a_snapshot_survives_a_fault_at_any_of_its_requests(place: Place, tmp_path: Path, name: str) -> None:
    """It succeeds or says what happened; nothing that is listed is broken; the next one succeeds and holds all."""
    fault, failures = FAULTS[name], list[GatewayError]()
    await write(place.collection, 0)
    await place.snapshotter.take(None)
    for nth in range(MOST_REQUESTS):
        await write(place.collection, nth + 1)
        place.proxy.requests.clear()
        rule = Rule(fault.fault, status=fault.status, at_byte=fault.at_byte, delay_s=fault.delay_s, count=1, skip=nth)
        place.proxy.rules = [rule]
        try:
            await place.snapshotter.take("with a fault")
        except (StorageUnavailable, StorageDenied, CorruptSnapshot) as error:
            failures.append(error)
        place.proxy.rules = []
        if rule.count:
            break  # it asked less than that: every request has had its fault
        taken = await place.snapshotter.take("after the fault")
        assert taken.collections[0].records == 7 * (nth + 2)
    else:
        pytest.fail("it never ran out of requests")
    assert nth >= 4
    assert all("s3://" in error.message or "snapshot" in error.message for error in failures)
    if name in ("500", "503 SlowDown", "timeout"):  # of the others some do not matter
        assert len(failures) == nth
    held = await whole(place.repository, tmp_path / "restored")
    assert max(held.values()) == 7 * (nth + 2)


@pytest.mark.parametrize("name", FAULTS)
async def test_a_restore_survives_a_fault_at_any_of_its_requests(place: Place, tmp_path: Path, name: str) -> None:
    """It ends with everything verified, or says what happened; nothing wrong is ever taken for right."""
    fault, failures = FAULTS[name], list[GatewayError]()
    for number in range(5):
        await write(place.collection, number)
        taken = await place.snapshotter.take(None)
    for nth in range(MOST_REQUESTS):
        scratch_directory = tmp_path / f"restored-{nth}"
        scratch_directory.mkdir()
        rule = Rule(fault.fault, status=fault.status, at_byte=fault.at_byte, delay_s=fault.delay_s, count=1, skip=nth)
        place.proxy.rules = [rule]
        try:
            manifest = await place.repository.manifest(await place.repository.resolve("latest"))
            await fetch_verified(place.repository, scratch_directory, manifest, lambda _done, _total: None)
        except GatewayError as error:
            failures.append(error)
            assert rule.count == 0
        else:
            assert database.check(scratch_directory).collections[0].records == taken.collections[0].records
        place.proxy.rules = []
        if rule.count:
            break
    else:
        pytest.fail("it never ran out of requests")
    assert nth >= 3
    assert all(any(each in error.message for each in ("s3://", "pack", "manifest")) for error in failures)
    if name in ("500", "503 SlowDown", "timeout", "flipped bit", "cut body"):
        assert failures
