"""A collection that cannot be read is refused by name; all others are served, snapshotted and restored."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
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
BAD = ("bad", "worse", "worst")


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
    assert warning.startswith("3 collection(s)")


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
    built.client().delete_collection("worst")
    built.until(lambda: len(built.readyz().json()["unreadable"]) == 2, "the deleted collection is forgotten")
    assert is_whole(make(built, "worst"))


def test_a_repair_that_fails_leaves_everything_served(built: Gateway) -> None:
    """The error says why, and the collection stays in quarantine."""
    answer = built.admin("POST", "/collections/bad/repair")
    assert (answer.status_code, "repair" in answer.json()["message"]) == (500, True)
    built.wait_until_ready()
    assert is_whole(collection(built, "good"))
    assert ask(built, collection(built, "bad"), "get", limit=1).status_code == 503


def test_an_operator_repairs_it_with_one_restart(built: Gateway) -> None:
    """The answer says of what the index is made. Writes wait meanwhile, and none is lost."""
    (built.data_dir / ".gateway" / "repair").unlink()
    before, good, ending, written = starts(built), collection(built, "good"), threading.Event(), list[str]()

    def write() -> None:
        while not ending.is_set():
            good.upsert(ids=[f"w{len(written)}"], embeddings=VECTORS[:1], documents=["while it is repaired"])
            written.append(f"w{len(written)}")

    writing = threading.Thread(target=write)
    writing.start()
    job = built.admin("POST", f"/collections/{collection(built, 'bad').id}/repair?wait=false")
    assert job.status_code == 202
    built.until(lambda: built.admin("GET", f"/jobs/{job.json()['id']}").json()["state"] != "running", "it ended")
    ending.set()
    writing.join()
    ended = built.admin("GET", f"/jobs/{job.json()['id']}").json()
    assert ended["state"] == "succeeded", ended
    result = ended["result"]
    assert (result["collection"], result["is_sound"], result["is_readable"], result["lost"]) == ("bad", True, True, 0)
    assert result["way"] in ("copy", "log")
    assert result["from_index"] + result["from_log"] >= RECORDS
    assert starts(built) == before + 1
    assert is_whole(collection(built, "bad"))
    assert good.get(ids=written)["ids"] == written
    assert len(written) > 1
    good.delete(ids=written)


def test_the_command_leaves_what_is_sound(built: Gateway) -> None:
    """The other index was repaired by itself when Chroma started again, so nothing is left to do."""
    assert is_whole(collection(built, "worse"))
    assert built.readyz().json() == {"status": "ready", "warnings": []}
    command = [sys.executable, "-m", "gateway", "repair", "worse"]
    shown = subprocess.check_output(command, cwd=built.directory, env=built.env, text=True, timeout=120)
    assert "worse: way none" in shown
    assert is_whole(collection(built, "worse"))
    nothing = built.admin("POST", "/collections/nothing/repair")
    assert nothing.status_code == 404
