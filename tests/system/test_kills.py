"""kill -9 of the gateway at random moments of snapshots, restores, deletions and garbage collections.

The whole gateway: supervisord starts it again each time. At any moment, what is listed is complete, the next snapshot
succeeds, and an acknowledged write is lost only by a restore that was asked for.
"""

import asyncio
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from chromadb import Collection

from gateway.errors import GatewayError
from gateway.snapshot.fetch import fetch_verified
from gateway.snapshot.repository import Repository
from gateway.storage import FileStorage
from tests.gateway_process import Gateway, gateway_process

SEED = int(os.environ.get("KILLS_SEED", "7"))
BATCH = 20
# supervisord gives up on a program that ends more often than five times a minute.
KILLS_AT_ONCE = 5
# An operation on this little data takes about this long.
LONGEST_S = 0.35


@pytest.fixture(scope="module")
def built() -> Iterator[Gateway]:
    with gateway_process(GATEWAY_KEEP_LAST="3", GATEWAY_GC_GRACE_S="0", GATEWAY_LOG_LEVEL="info") as made:
        yield made.start()


class Records:
    """The acknowledged records, by id: a number that the document and the vector carry."""

    def __init__(self, collection: Collection, chooser: random.Random) -> None:
        self._collection, self._chooser = collection, chooser
        self.acknowledged: dict[str, int] = {}
        self._turn = 0

    def write(self) -> None:
        """Upsert some records, new and old."""
        self._turn += 1
        ids = sorted({f"r{self._chooser.randrange(40 * BATCH)}" for _ in range(BATCH)})
        self._collection.upsert(
            ids=ids,
            embeddings=[[float(self._turn), float(number)] + [0.5] * 14 for number in range(len(ids))],
            documents=[f"turn {self._turn} " + "of many words " * 20] * len(ids),
            metadatas=[{"turn": self._turn}] * len(ids),
        )
        self.acknowledged |= dict.fromkeys(ids, self._turn)

    def read(self) -> dict[str, Any]:
        """What Chroma has. Document, vector and metadata of every record must agree."""
        got = self._collection.get(include=["embeddings", "documents", "metadatas"])
        held = {}
        for id_, vector, text, metadata in zip(
            got["ids"], got["embeddings"], got["documents"], got["metadatas"], strict=True
        ):
            assert text.startswith(f"turn {metadata['turn']} ")
            assert vector[0] == metadata["turn"]
            held[id_] = metadata["turn"]
        return held


def begin_operation(built: Gateway, operation: str) -> None:
    """Begin the operation. Its answer is ignored."""

    def post() -> None:
        with suppress(httpx.HTTPError):
            match operation:
                case "snapshot":
                    built.admin("POST", "/snapshot", json={"label": "killed?"})
                case "restore":
                    built.admin("POST", "/snapshot/latest/restore")
                case "collect":
                    built.admin("POST", "/gc")
                case "delete":
                    found = built.admin("GET", "/snapshot").json()["snapshots"]
                    if len(found) > 1:
                        built.admin("DELETE", f"/snapshot/{found[-1]['id']}")

    threading.Thread(target=post, daemon=True).start()


async def problems(store_dir: Path, target: Path) -> dict[str, str]:
    """Why listed snapshots cannot be restored, by id."""
    repository, found = Repository(FileStorage(store_dir / "users/default/vectorstore")), {}
    for number, snapshot in enumerate(await repository.snapshots()):
        scratch_directory = target / str(number)
        scratch_directory.mkdir(parents=True)
        try:
            await fetch_verified(
                repository, scratch_directory, await repository.manifest(snapshot.id), lambda _done, _total: None
            )
        except GatewayError as error:
            found[snapshot.id] = error.message
    await repository.close()
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [3, pytest.param(12, marks=pytest.mark.soak)])
def test_sigkill_never_loses_an_acknowledged_write(built: Gateway, tmp_path: Path, kills: int) -> None:
    """No broken snapshot is ever listed, the next snapshot succeeds, and acknowledged writes are there."""
    chooser = random.Random(SEED)
    collection = built.client().create_collection(
        f"notes-{kills}", embedding_function=None, configuration={"hnsw": {"sync_threshold": 60, "batch_size": 30}}
    )
    records = Records(collection, chooser)
    at_snapshot: dict[str, int] = {}
    for number in range(kills):
        for _ in range(chooser.randrange(1, 4)):
            records.write()
        operation = chooser.choice(["snapshot", "snapshot", "restore", "collect", "delete"]) if number else "snapshot"
        begin_operation(built, operation)
        time.sleep(chooser.random() * LONGEST_S)
        built.kill_gateway()
        built.wait_until_ready()
        held = records.read()
        # If the restore was completed, Chroma has what the latest snapshot held. There is nothing in between.
        assert held in ([records.acknowledged, at_snapshot] if operation == "restore" else [records.acknowledged]), (
            f"kill {number}, of a {operation}"
        )
        records.acknowledged = held
        if number % KILLS_AT_ONCE == KILLS_AT_ONCE - 1:
            assert built.stop() == 0
            built.start()
            bad = asyncio.run(problems(built.store_dir, tmp_path / str(number)))
            assert not bad, f"kill {number}, of a {operation}: {bad}"
        taken = built.snapshot(f"after kill {number}")
        assert len(held) in [each["records"] for each in taken["collections"] if each["name"] == f"notes-{kills}"]
        at_snapshot = dict(held)
    assert not {"incoming", "previous", "rejected", "swap.json"} & set(os.listdir(built.data_dir / ".gateway"))
