"""Index files that a crash or a disk has torn are repaired before Chroma reads them, without a person."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromadb.api.models.Collection import Collection

from gateway.chroma.disk import HEADER, ID_MAP, LENGTH, LEVEL0, LINK_LISTS
from gateway.chroma.header import read_header
from gateway.chroma.id_map import new_id_map, read_id_map
from gateway.chroma.level0 import scan_level0
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
    }


def index_of(built: Gateway) -> Path:
    (found,) = [path.parent for path in built.data_dir.glob(f"*/{HEADER}")]
    return found


# tests/integration/test_repair.py repairs every file, torn in every way.
@pytest.mark.parametrize(
    "names", [(LEVEL0,), pytest.param((LEVEL0, HEADER, LINK_LISTS, LENGTH, ID_MAP), marks=pytest.mark.soak)]
)
def test_torn_files_are_repaired_at_the_next_start(names: tuple[str, ...]) -> None:
    """Every record has the embedding that it was acknowledged with, and the log says so."""
    with gateway_process() as built:
        built.start()
        collection = built.client().create_collection("notes", embedding_function=None, configuration=HNSW)
        expected = fill(collection, 170)
        for name in names:
            assert built.stop() == 0
            path = index_of(built) / name
            os.truncate(path, path.stat().st_size // 2)
            built.start()
            built.until_logged("an index was repaired")
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
        built.lose_disk()
        built.start()
        assert stored(built.client().get_collection("notes", embedding_function=None)) == expected
        assert built.readyz().json()["warnings"] == []


def forget_log(built: Gateway) -> None:
    """Delete all rows of Chroma's log, which indexes with the position that they have do not need."""
    with closing(sqlite3.connect(built.data_dir / "chroma.sqlite3", timeout=30)) as database, database:
        database.execute("delete from embeddings_queue")


def test_what_only_chromas_memory_has_is_saved() -> None:
    """A torn index whose vectors neither the store nor the log has: by a snapshot, and by a repair on command.

    One record has no vector even there. The snapshot is taken all the same, and exactly that record is named.
    """
    with gateway_process() as built:
        built.start()
        collection = built.client().create_collection("notes", embedding_function=None, configuration=HNSW)
        expected = fill(collection, 120)  # of which the index on the disk has every one
        forget_log(built)
        assert built.stop() == 0
        forget_record(index_of(built), "r3")
        built.start()
        path = index_of(built) / LEVEL0
        os.truncate(path, path.stat().st_size // 2)
        built.snapshot()
        built.until_logged("vectors that only Chroma's memory has are written to its log")
        built.lose_disk()
        built.start()
        (warning,) = built.readyz().json()["warnings"]
        assert "1 record(s) of notes lost their vector" in warning
        assert "among them r3:" in warning
        collection = built.client().get_collection("notes", embedding_function=None)
        collection.upsert(ids=["r3"], embeddings=[expected["r3"]])
        assert stored(collection) == expected

        forget_log(built)
        os.truncate(index_of(built) / LEVEL0, path.stat().st_size // 2)
        repaired = built.admin("POST", "/collections/notes/repair").json()
        assert (repaired["lost"], repaired["is_sound"]) == (0, True)
        assert stored(built.client().get_collection("notes", embedding_function=None)) == expected
        rebuilt = built.admin("POST", "/collections/notes/repair?rebuild=true").json()
        assert (rebuilt["way"], rebuilt["lost"], rebuilt["from_index"]) == ("rebuild", 0, 120)
        assert stored(built.client().get_collection("notes", embedding_function=None)) == expected


def forget_record(index: Path, record: str) -> None:
    """Take a record out of the id map, and its label away from its element."""
    id_map, header = read_id_map(index / ID_MAP), read_header(index)
    assert header
    labels = dict(id_map.id_to_label)
    label = labels.pop(record)
    (index / ID_MAP).write_bytes(new_id_map(labels, id_map.total_elements_added or 0))
    level0 = scan_level0(index / LEVEL0, header.layout, header.elements)
    (number,) = level0.number[level0.label == label]
    with (index / LEVEL0).open("r+b") as file:
        file.seek(int(number) * header.element_bytes + 2)
        file.write(b"\x01")  # hnswlib's mark of a deleted element (`hnswalg.h`, `markDeletedInternal`)
