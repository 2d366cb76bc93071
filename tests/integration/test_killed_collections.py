"""kill -9 of a process that takes snapshots and collects garbage, at random moments, on a real disk."""

import asyncio
import multiprocessing
import random
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from gateway.snapshot.gc import collect_garbage
from gateway.snapshot.repository import Repository
from gateway.snapshot.retention import Keep
from gateway.storage import FileStorage
from tests.unit.snapshot.leaders import candidate
from tests.unit.snapshot.manifests import manifest, sha

SEED = 20261121


async def _live(root: Path, seed: int, begun: Event) -> None:
    """Take snapshots of a few different packs, so that packs are shared, deleted and made again. Collect after each."""
    chance, store = random.Random(seed), FileStorage(root / "store")
    leader = candidate(root / "data", store)
    await leader.require()
    repository = Repository(store, leader)
    await repository.make()
    begun.set()
    while True:
        newest = await repository.newest_id() or "20261120T000000Z-000000"
        snapshot_id = f"{newest[:17]}{int(newest[17:], 16) + 1:06x}"
        existing, packs = await repository.packs(), []
        for number in chance.sample(range(8), 4):
            data = f"pack {number}".encode() * 100
            while repository.is_pending_delete(sha(data)):
                data += b"!"
            packs.append(data)
            if sha(data) not in existing:
                await repository.put_pack(sha(data), data)
        made = manifest(snapshot_id, tuple(packs))
        unlabelled = made.snapshot.model_copy(update={"label": None})
        await repository.publish(made.model_copy(update={"snapshot": unlabelled}))
        await collect_garbage(repository, leader, Keep(last=3), 0)


def live(root: Path, seed: int, begun: Event) -> None:
    asyncio.run(_live(root, seed, begun))


async def _check(root: Path) -> list[str]:
    """Read every byte of every listed snapshot. Return their ids."""
    repository = Repository(FileStorage(root / "store"))
    ids = await repository.ids()
    for snapshot_id in ids:
        for pack in (await repository.manifest(snapshot_id)).packs:
            await repository.get_pack(pack)
    return ids


@pytest.mark.parametrize("kills", [15, pytest.param(30, marks=pytest.mark.soak)])
def test_every_listed_snapshot_is_complete_after_any_kill(tmp_path: Path, kills: int) -> None:
    """Every time: no listed snapshot lacks a byte, and no published snapshot that is to be kept is missing."""
    (tmp_path / "data/.gateway").mkdir(parents=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.test_killed_collections"])
    chance, newest = random.Random(SEED), ""
    for turn in range(kills):
        begun = context.Event()
        process = context.Process(target=live, args=(tmp_path, turn, begun), daemon=True)
        process.start()
        assert begun.wait(60), "the process did not begin"
        time.sleep(chance.uniform(0, 0.25))
        process.kill()
        process.join(20)
        assert process.exitcode == -9, "the process ended by itself"
        ids = asyncio.run(_check(tmp_path))
        assert not newest or ids[0] >= newest, "a newer snapshot is missing"
        newest = ids[0] if ids else newest
    assert int(newest[17:], 16) > kills // 3, "too few snapshots were taken"
