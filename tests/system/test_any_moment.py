"""Random moments: adds, updates, deletes, new, renamed and deleted collections, new tenants and databases."""

import asyncio
import bisect
import os
import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import chromadb
import httpx
import numpy as np
import pytest
from chromadb.api import ClientAPI

from gateway.cli.offline import OfflineRepository
from gateway.jobs import Progress
from gateway.journal import plan
from gateway.journal.merge import Merger
from gateway.journal.sequence import Sequence
from gateway.storage import PrefixedStorage, open_storage
from tests.bare_chroma import bare_chroma
from tests.gateway_process import Gateway, gateway_process

MOMENTS = int(os.environ.get("MOMENTS", "8"))
PREFIX = "users/default/vectorstore/"
DEFAULT = ("default_tenant", "default_database")
Place = tuple[str, str]
State = dict[str, Any]


def state_of(port: int, places: list[Place]) -> State:
    """Every record of every collection in these databases; what is not there is left out."""
    found: State = {}
    for tenant, database in places:
        url = f"http://127.0.0.1:{port}/api/v2/tenants/{tenant}/databases/{database}"
        if httpx.get(url).status_code != 200:
            continue
        client = chromadb.HttpClient(host="127.0.0.1", port=port, tenant=tenant, database=database)
        for collection in client.list_collections():
            got: Any = collection.get(include=["embeddings", "documents", "metadatas"])
            found[f"{tenant}/{database}/{collection.name}"] = {
                one: (np.asarray(vector, np.float32).tobytes(), document, metadata)
                for one, vector, document, metadata in zip(
                    got["ids"], got["embeddings"], got["documents"], got["metadatas"], strict=True
                )
            }
        found[f"{tenant}/{database}"] = True
    return found


class History:
    """Random changes of one gateway's data."""

    def __init__(self, built: Gateway, seed: int) -> None:
        self.built, self.random = built, random.Random(seed)
        self.places = [DEFAULT]
        self.names: dict[Place, list[str]] = {DEFAULT: []}
        self.numbers = np.random.default_rng(seed)
        self._clients: dict[Place, ClientAPI] = {}

    def client(self, place: Place) -> ClientAPI:
        if place not in self._clients:
            self._clients[place] = chromadb.HttpClient(
                host="127.0.0.1", port=self.built.port, tenant=place[0], database=place[1]
            )
        return self._clients[place]

    def change(self) -> None:
        some, place = self.random, self.random.choice(self.places)
        names, draw, client = self.names[place], self.random.random(), self.client(place)
        if draw < 0.05:
            made = (f"tenant-{len(self.places)}", f"database-{len(self.places)}")
            tenants = f"{self.built.url}/api/v2/tenants"
            httpx.post(tenants, json={"name": made[0]}).raise_for_status()
            httpx.post(f"{tenants}/{made[0]}/databases", json={"name": made[1]}).raise_for_status()
            self.places.append(made)
            self.names[made] = []
        elif draw < 0.2 or not names:
            names.append(f"collection-{some.randrange(10**9)}")
            configuration: Any = {"hnsw": {"sync_threshold": 50, "batch_size": 50}}
            client.create_collection(names[-1], embedding_function=None, configuration=configuration)
        elif draw < 0.25:
            client.delete_collection(names.pop(some.randrange(len(names))))
        else:
            name = some.choice(names)
            collection = client.get_collection(name, embedding_function=None)
            if draw < 0.3:
                renamed = f"renamed-{some.randrange(10**9)}"
                collection.modify(name=renamed)
                names[names.index(name)] = renamed
            elif draw < 0.45:
                collection.delete(ids=[f"r{number}" for number in some.sample(range(120), 20)])
            else:
                ids = [f"r{number}" for number in some.sample(range(120), 40)]
                collection.upsert(
                    ids=ids,
                    embeddings=self.numbers.standard_normal((len(ids), 8)).astype(np.float32),
                    documents=[f"{one} {some.random()}" for one in ids],
                    metadatas=[{"n": some.randrange(100)} for _ in ids],
                )


@pytest.mark.parametrize("moments", [3, pytest.param(MOMENTS, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_any_moment_comes_back(moments: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, into a directory that a bare Chroma serves; afterwards once more, of the history when it is merged."""
    known: list[tuple[datetime, State]] = []
    with gateway_process(GATEWAY_JOURNAL_INTERVAL_S="0.2", GATEWAY_RECOVERY_S="0.5") as built:
        built.start()
        history = History(built, moments)
        for _ in range(moments):
            for number in range(history.random.randrange(2, 12)):
                history.change()
                if number == 0:  # so that there are entries to merge
                    built.admin("POST", "/flush").raise_for_status()
            answer = built.admin("POST", "/flush").raise_for_status().json()
            known.append((datetime.fromisoformat(answer["at"]), state_of(built.port, history.places)))
            time.sleep(0.05)
        store = f"file://{built.store_dir}"
        assert built.stop() == 0

        def check(at: datetime, expected: State, name: str) -> None:
            target = tmp_path / name
            OfflineRepository(store, "default").restore_at(at, target, Progress())
            with bare_chroma(target) as chroma:
                found = state_of(chroma.port, history.places)
            assert found.keys() == expected.keys(), (name, at)
            for each, records in expected.items():
                assert found[each] == records, (name, at, each)

        for number, (at, expected) in enumerate(known):
            check(at, expected, f"single-{number}")
        # Coarser, as history is when it is old: here from one known moment to the next, in place of minutes.
        moments_known = [at for at, _ in known]
        monkeypatch.setattr(plan, "_minute", lambda at: bisect.bisect_left(moments_known, at))
        asyncio.run(merged(store))
        for number, (at, expected) in enumerate(known):
            check(at, expected, f"merged-{number}")


async def merged(store: str) -> None:
    storage = PrefixedStorage(open_storage(store), PREFIX)
    try:
        assert await Merger(Sequence(storage)).merge_old(datetime.now(UTC) + timedelta(hours=3)) > 1
    finally:
        await storage.close()
