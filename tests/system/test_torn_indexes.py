"""Index files that a crash or a disk has torn are repaired before Chroma reads them, without a person."""

import os
import random
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromadb.api.models.Collection import Collection

from gateway.chroma.disk import HEADER, ID_MAP, LENGTH, LEVEL0, LINK_LISTS
from tests.gateway_process import Gateway, gateway_process

DIMENSION = 16
HNSW: Any = {"hnsw": {"sync_threshold": 50, "batch_size": 25}}


def vector(seed: int) -> list[float]:
    return [float(each) for each in np.random.default_rng(seed).standard_normal(DIMENSION).astype(np.float32)]


def fill(collection: Collection, count: int) -> dict[str, list[float]]:
    expected = {f"r{number}": vector(number) for number in range(count)}
    ids = list(expected)
    for start in range(0, count, 30):
        some = ids[start : start + 30]
        collection.upsert(ids=some, embeddings=[expected[each] for each in some], documents=some)
    return expected


def stored(collection: Collection) -> dict[str, list[float]]:
    found = collection.get(include=["embeddings", "documents"])
    assert found["documents"] == found["ids"]
    return {
        each: [float(np.float32(value)) for value in row]
        for each, row in zip(found["ids"], found["embeddings"], strict=True)
    }  # type: ignore[arg-type]


def starts(built: Gateway) -> int:
    """How often Chroma came up since this gateway started."""
    return int(built.admin("GET", "/status").json()["chroma"]["starts"])


def index_of(built: Gateway) -> Path:
    (found,) = [path.parent for path in built.data_dir.glob(f"*/{HEADER}")]
    return found


@pytest.mark.parametrize(
    "names", [(LEVEL0, ID_MAP), pytest.param((LEVEL0, HEADER, LINK_LISTS, LENGTH, ID_MAP), marks=pytest.mark.soak)]
)
def test_torn_files_are_repaired_at_the_next_start(names: tuple[str, ...]) -> None:
    """Whichever file it is: every record has the embedding that it was acknowledged with, and the log says so."""
    with gateway_process() as built:
        built.start()
        collection = built.client().create_collection("notes", embedding_function=None, configuration=HNSW)
        expected = fill(collection, 170)
        for name in names:
            assert built.stop() == 0
            path = index_of(built) / name
            os.truncate(path, path.stat().st_size // 2)
            built.start()
            assert "an index was repaired" in built.output()
            assert stored(built.client().get_collection("notes", embedding_function=None)) == expected, name


def test_a_torn_index_is_never_stored_and_costs_no_record() -> None:
    """The snapshot relies on the log instead, says so, and brings every record back on an empty disk."""
    with gateway_process() as built:
        built.start()
        collection = built.client().create_collection("notes", embedding_function=None, configuration=HNSW)
        expected = fill(collection, 170)
        path = index_of(built) / LEVEL0
        os.truncate(path, path.stat().st_size // 2)
        snapshot = built.snapshot()
        assert snapshot["state"] == "complete"
        (warning,) = built.readyz().json()["warnings"]
        assert "is torn on disk" in warning
        built.kill()
        shutil.rmtree(built.data_dir)
        built.start()
        assert stored(built.client().get_collection("notes", embedding_function=None)) == expected
        assert built.readyz().json()["warnings"] == []


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.soak)])
def test_kills_of_chroma_under_writes_leave_every_record_and_index_whole(kills: int) -> None:
    """kill -9 of Chroma at random moments: it comes back, with every acknowledged record as it was written."""
    chooser = random.Random(kills)
    with gateway_process() as built:
        built.start()
        collection = built.client().create_collection("notes", embedding_function=None, configuration=HNSW)
        expected = fill(collection, 60)
        uncertain: set[str] = set()
        for kill in range(kills):
            ending = threading.Event()

            def write(kill: int = kill, ending: threading.Event = ending) -> None:
                turn = 0
                while not ending.is_set():
                    turn += 1
                    seeds = {f"r{chooser.randrange(400)}": kill * 10_000 + turn * 100 + each for each in range(20)}
                    try:
                        collection.upsert(
                            ids=list(seeds), embeddings=list(map(vector, seeds.values())), documents=list(seeds)
                        )
                    except Exception:  # applied or not: the next one decides
                        uncertain.update(seeds)
                        return
                    expected.update({each: vector(seed) for each, seed in seeds.items()})
                    uncertain.difference_update(seeds)

            writing = threading.Thread(target=write)
            writing.start()
            ending.wait(chooser.random() * 0.5)
            before = starts(built)
            os.kill(built.pid("chroma") or 0, signal.SIGKILL)
            ending.set()
            writing.join()
            built.until(lambda: starts(built) > before, "Chroma is back")  # noqa: B023
            built.wait_until_ready()
            found = stored(collection)
            assert {each for each in expected if each not in uncertain and found.get(each) != expected[each]} == set()
            if kill % 4 == 3:  # supervisord gives up on a program that dies more often than five times a minute
                assert built.stop() == 0
                built.start()
        known = [each for each in expected if each not in uncertain][:50]
        nearest = [collection.query(query_embeddings=[expected[each]], n_results=1)["ids"][0][0] for each in known]
        assert sum(map(str.__eq__, nearest, known)) >= len(known) - 1
