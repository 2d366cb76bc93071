"""A collection that cannot be read is refused by name; all others are served, snapshotted and restored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from chromadb.api.models.Collection import Collection

from gateway.chroma.disk import LEVEL0
from gateway.chroma.header import read_header
from tests.gateway_process import Gateway, gateway_process

DIMENSION, RECORDS = 16, 120
HNSW: Any = {"hnsw": {"sync_threshold": 50, "batch_size": 25}}
VECTORS = np.random.default_rng(1).standard_normal((RECORDS, DIMENSION)).astype(np.float32)
IDS = [f"r{number}" for number in range(RECORDS)]
BAD = ("bad", "worse")


def make(built: Gateway, name: str) -> Collection:
    collection = built.client().create_collection(name, embedding_function=None, configuration=HNSW)
    for start in range(0, RECORDS, 30):
        some = slice(start, start + 30)
        collection.add(ids=IDS[some], embeddings=VECTORS[some], documents=IDS[some])
    return collection


def collection(built: Gateway, name: str) -> Collection:
    return built.client().get_collection(name, embedding_function=None)


def is_whole(found: Collection) -> bool:
    got = found.get(include=["embeddings", "documents"])
    assert got["embeddings"] is not None
    return got["ids"] == IDS == got["documents"] and np.array_equal(np.float32(got["embeddings"]), VECTORS)


def index_of(built: Gateway, collection_id: object) -> Path:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(built.data_dir / "chroma.sqlite3")) as database:
        query = "select id from segments where collection = ? and scope = 'VECTOR'"
        (segment_id,) = database.execute(query, (str(collection_id),)).fetchone()
    return built.data_dir / str(segment_id)


def make_deadly(index: Path) -> None:
    """Let every element link to elements that do not exist: Chroma ends with a segmentation fault at a query."""
    header = read_header(index)
    assert header is not None
    elements = np.fromfile(index / LEVEL0, np.uint8).reshape(-1, header.element_bytes)
    elements[:, 4 : 4 + 4 * header.neighbors_level0] = 0x7F
    elements.tofile(index / LEVEL0)


def starts(built: Gateway) -> int:
    return int(built.admin("GET", "/status").json()["chroma"]["starts"])


def ask(built: Gateway, found: Collection, what: str, **body: Any) -> httpx.Response:
    base = "/api/v2/tenants/default_tenant/databases/default_database/collections"
    return httpx.post(f"{built.url}{base}/{found.id}/{what}", json=body, timeout=60)


@pytest.fixture(scope="module")
def built() -> Iterator[Gateway]:
    """A gateway with two indexes that end Chroma when they are read, and that could not be repaired."""
    with gateway_process() as built:
        built.start()
        make(built, "good")
        indexes = [index_of(built, make(built, name).id) for name in BAD]
        assert built.stop() == 0
        for index in indexes:
            make_deadly(index)
        # A file where a repair makes its directory.
        (built.data_dir / ".gateway" / "repair").write_text("")
        yield built.start()


def test_what_chroma_dies_of_is_quarantined_and_the_rest_is_served(built: Gateway) -> None:
    """One death, not one at every start: the process goes on, and says which collections it leaves alone."""
    assert starts(built) == 2
    good = collection(built, "good")
    assert is_whole(good)
    good.query(query_embeddings=[VECTORS[0].tolist()], n_results=1)
    answer = built.readyz()
    assert answer.status_code == 200
    assert answer.json()["unreadable"].keys() == {f"default_tenant/default_database/{name}" for name in BAD}
    (warning,) = [each for each in answer.json()["warnings"] if "cannot be read" in each]
    assert warning.startswith("2 collection(s)")


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("get", {"limit": 1}),
        ("query", {"query_embeddings": [VECTORS[0].tolist()]}),
        ("add", {"ids": ["new"], "embeddings": [VECTORS[0].tolist()]}),
        ("delete", {"ids": ["r1"]}),
    ],
)
def test_its_requests_get_503_with_the_reason_and_the_way_out(built: Gateway, what: str, body: dict[str, Any]) -> None:
    """Reads and writes, in Chroma's shape. None of them reaches Chroma."""
    before, bad = starts(built), collection(built, "bad")
    answer = ask(built, bad, what, **body)
    assert answer.status_code == 503
    assert answer.json()["error"] == "Unavailable"
    assert "torn" in answer.json()["message"]
    assert f"/admin/collections/{bad.id}/repair" in answer.json()["hint"]
    assert starts(built) == before


def test_a_snapshot_is_taken_all_the_same(built: Gateway) -> None:
    """It has every record, of the torn indexes by the log."""
    snapshot = built.snapshot()
    assert {each["name"]: each["records"] for each in snapshot["collections"]} == dict.fromkeys(("good", *BAD), RECORDS)


def test_the_next_start_leaves_it_alone(built: Gateway) -> None:
    """Chroma does not die again: the quarantine is on the disk."""
    assert built.stop() == 0
    built.start()
    assert starts(built) == 1
    assert is_whole(collection(built, "good"))
    assert ask(built, collection(built, "bad"), "get", limit=1).status_code == 503


def test_it_can_be_deleted(built: Gateway) -> None:
    """Chroma needs no index for that. It is named no more, and its name is free."""
    built.client().delete_collection("worse")
    built.until(lambda: len(built.readyz().json()["unreadable"]) == 1, "the deleted collection is forgotten")
    assert is_whole(make(built, "worse"))
