"""What clients and operators see of snapshots, restores, stops and crashes."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import chromadb
import httpx
import pytest

from tests.gateway_process import Gateway, gateway_process


@pytest.fixture(scope="module")
def shared() -> Iterator[Gateway]:
    """One gateway for all that leaves it as it was."""
    with gateway_process() as built:
        yield built.start()


@pytest.fixture(autouse=True)
def _open_again(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "shared" in request.fixturenames:
        request.getfixturevalue("shared").admin("POST", "/resume")


def fill(client: chromadb.api.ClientAPI, name: str, records: int = 20) -> chromadb.Collection:
    collection = client.create_collection(name, embedding_function=None)
    collection.add(
        ids=[str(i) for i in range(records)],
        embeddings=[[float(i), 1.0, 2.0] for i in range(records)],
        documents=[f"number {i}" for i in range(records)],
    )
    return collection


def gate(built: Gateway) -> dict:
    return built.admin("GET", "/status").json()["gate"]


# ---------------------------------------------------------------------- while a snapshot is taken


def test_reads_of_warmed_collections_go_on_while_writes_are_held_back(shared: Gateway) -> None:
    """count, get and query answer at once with the gate closed; a write waits, and succeeds when it opens."""
    notes = fill(shared.client(), "warmed")
    notes.count()
    assert shared.admin("POST", "/quiesce", json={"ttl_s": 60}).json()["state"] == "closed"

    began = time.monotonic()
    assert notes.count() == 20
    assert notes.get(ids=["3"], include=["embeddings"])["embeddings"][0][0] == 3
    assert notes.query(query_embeddings=[[7.0, 1.0, 2.0]], n_results=1)["ids"] == [["7"]]
    assert time.monotonic() - began < 5, "a read waited for the gate"

    written = threading.Event()
    writer = threading.Thread(target=lambda: (notes.add(ids=["late"], embeddings=[[0.0, 0.0, 0.0]]), written.set()))
    writer.start()
    shared.until(lambda: gate(shared)["writes_waiting"] == 1, "the write waits")
    assert notes.count() == 20
    assert not written.is_set()
    shared.admin("POST", "/resume")
    writer.join(10)
    assert written.is_set()
    assert notes.count() == 21


def test_the_first_read_of_a_new_collection_waits_like_a_write(shared: Gateway) -> None:
    """Chroma writes on it, so it must not happen in a freeze."""
    notes = fill(shared.client(), "unread")
    shared.admin("POST", "/quiesce", json={"ttl_s": 60})
    counted: list[int] = []
    reader = threading.Thread(target=lambda: counted.append(notes.count()))
    reader.start()
    shared.until(lambda: gate(shared)["writes_waiting"] == 1, "the read waits")
    shared.admin("POST", "/resume")
    reader.join(10)
    assert counted == [20]


def test_a_quiesce_ends_by_itself(shared: Gateway) -> None:
    """Nobody resumes: after ttl_s writes go on."""
    notes = fill(shared.client(), "forgotten")
    answer = shared.admin("POST", "/quiesce", json={"ttl_s": 0.3})
    assert answer.status_code == 200, answer.text
    notes.add(ids=["late"], embeddings=[[0.0, 0.0, 0.0]])
    assert gate(shared)["state"] == "open"
    assert shared.admin("POST", "/resume").json() == {"state": "open", "was_quiesced": False}


def test_the_answer_tells_how_long_writes_were_held(shared: Gateway) -> None:
    """`drain_ms` and `freeze_ms` are there and are times."""
    snapshot = shared.snapshot("timed")
    assert 0 <= snapshot["drain_ms"] < 30_000
    assert 0 < snapshot["freeze_ms"] < 30_000


def test_a_write_whose_client_is_gone_is_waited_for(shared: Gateway) -> None:
    """The client hangs up after sending; the snapshot begins when Chroma is done, and holds the write whole."""
    collection = shared.client().create_collection(
        "abandoned", embedding_function=None, configuration={"hnsw": {"sync_threshold": 500}}
    )
    collection.count()
    records = 2000
    body = json.dumps(
        {
            "ids": [str(i) for i in range(records)],
            "embeddings": [[float(i % 97), float(i % 89)] * 96 for i in range(records)],
            "documents": ["of a client in a hurry " * 10] * records,
        }
    ).encode()
    path = f"/api/v2/tenants/default_tenant/databases/default_database/collections/{collection.id}/add"
    with socket.create_connection(("127.0.0.1", shared.port)) as client:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        # Chroma logs what it was given before it works on it: once the log has it, it cannot be recalled.
        shared.until(lambda: gate(shared)["writes_under_way"] == 1, "the write is under way")
        shared.until(lambda: logged(shared, records) or gate(shared)["writes_under_way"] == 0, "Chroma has it")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    snapshot = shared.snapshot()
    held = {each["name"]: each["records"] for each in snapshot["collections"]}
    assert held["abandoned"] == records
    assert collection.count() == records


def logged(built: Gateway, records: int) -> bool:
    with closing(sqlite3.connect(f"file:{built.data_dir}/chroma.sqlite3?mode=ro", uri=True)) as database:
        return database.execute("select count(*) from embeddings_queue").fetchone()[0] >= records


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"x" * 100_000, 413),
        (b"[" * 5000, 400),
        (b'{"label": 1}', 400),
        (b'{"lable": "x"}', 400),
        (b'{"label": "%s"}' % (b"x" * 201), 400),
        (b"\xff", 400),
    ],
)
def test_a_bad_request_to_the_gateway_itself_is_refused_in_the_error_shape(
    shared: Gateway, body: bytes, expected: int
) -> None:
    """Too long, too deep, of a wrong type, misspelt or no JSON: what and why, and no snapshot is taken."""
    before = shared.admin("GET", "/snapshot").json()
    answer = shared.admin("POST", "/snapshot", content=body, extra={"Content-Type": "application/json"})
    assert answer.status_code == expected
    assert answer.json()["error"] in ("InvalidArgumentError", "ChromaError")
    assert answer.json()["message"]
    assert shared.admin("GET", "/snapshot").json() == before
    assert "Traceback" not in shared.output()


# ---------------------------------------------------------------------- while a snapshot is restored


def test_a_restore_under_load_shows_one_state_or_the_other(shared: Gateway) -> None:
    """Readers see all of the old state or all of the new one; in the gap 503 with Retry-After, and nothing else."""
    state = fill_state(shared, "old")
    wanted = shared.snapshot("old")
    set_state(state, "new")
    stop, seen, odd = threading.Event(), set(), []
    get = f"{shared.url}/api/v2/tenants/default_tenant/databases/default_database/collections/{state.id}/get"

    def read() -> None:
        with httpx.Client(timeout=60) as http:
            while not stop.is_set():
                answer = http.post(get, json={"include": ["documents"]})
                if answer.status_code == 200:
                    seen.add(tuple(sorted(set(answer.json()["documents"]))))
                elif answer.status_code == 503 and "retry-after" in answer.headers:
                    seen.add(503)
                else:
                    odd.append((answer.status_code, answer.text))

    def write() -> None:
        upsert = get.removesuffix("/get") + "/upsert"
        with httpx.Client(timeout=60) as http:
            while not stop.is_set():
                answer = http.post(upsert, json={"ids": ["x"], "embeddings": [[0.0, 0.0]], "documents": ["new"]})
                if answer.status_code not in (200, 201, 503):
                    odd.append((answer.status_code, answer.text))

    threads = [threading.Thread(target=read) for _ in range(3)] + [threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    answer = shared.admin("POST", f"/snapshot/{wanted['id']}/restore")
    assert answer.status_code == 200, answer.text
    assert shared.readyz().status_code == 200
    stop.set()
    for thread in threads:
        thread.join()
    assert not odd
    assert 503 in seen
    # The writer adds one "new" record to whichever state it meets; the 200 others change together.
    assert ("new",) in seen
    assert seen <= {("new",), ("old",), ("new", "old"), 503}
    documents = shared.client().get_collection("state", embedding_function=None).get()["documents"]
    assert documents.count("old") == 200


def fill_state(built: Gateway, text: str) -> chromadb.Collection:
    state = built.client().create_collection(
        "state", embedding_function=None, configuration={"hnsw": {"sync_threshold": 50}}
    )
    set_state(state, text)
    return state


def set_state(state: chromadb.Collection, text: str) -> None:
    state.upsert(
        ids=[str(i) for i in range(200)], embeddings=[[float(i), 1.0] for i in range(200)], documents=[text] * 200
    )


# ---------------------------------------------------------------------- stops and crashes


class BegunAgain(NamedTuple):
    """A gateway that was stopped in the midst of writes and started again, and what the writers were told."""

    gateway: Gateway
    status: int
    took_s: float
    told: list[str]


@pytest.fixture(scope="module")
def begun_again() -> Iterator[BegunAgain]:
    with gateway_process() as built:
        client = built.start().client()
        fill(client, "first")
        fill(client, "second")
        client.create_collection("empty", embedding_function=None)
        collection = client.create_collection("acknowledged", embedding_function=None)
        told: list[str] = []

        def write(name: str) -> None:
            turn = 0
            try:
                while True:
                    turn += 1
                    collection.add(ids=[f"{name}-{turn}"], embeddings=[[float(turn), 1.0]])
                    told.append(f"{name}-{turn}")
            except Exception:
                return

        threads = [threading.Thread(target=write, args=(f"w{i}",)) for i in range(3)]
        for thread in threads:
            thread.start()
        built.until(lambda: len(told) > 50, "50 writes")
        began = time.monotonic()
        status = built.stop()
        took_s = time.monotonic() - began
        for thread in threads:
            thread.join()
        yield BegunAgain(built.start(), status, took_s, told)
        # A clean stop, with the gate closed, is still a clean stop.
        assert built.admin("POST", "/quiesce", json={"ttl_s": 60}).status_code == 200
        assert built.stop() == 0


def test_every_collection_is_warm_when_ready(begun_again: BegunAgain) -> None:
    """After a start nobody need read first: with the gate closed from the first second on, reads go on."""
    built = begun_again.gateway
    assert built.admin("POST", "/quiesce", json={"ttl_s": 60}).status_code == 200
    began = time.monotonic()
    assert [
        built.client().get_collection(name, embedding_function=None).count() for name in ("first", "second", "empty")
    ] == [20, 20, 0]
    assert time.monotonic() - began < 5
    assert built.admin("POST", "/resume").status_code == 200


def test_sigterm_ends_it_in_time_with_every_acknowledged_write_on_disk(begun_again: BegunAgain) -> None:
    """Writers work until they are cut off; supervisord ends with 0 within 10 s; all they were told is there."""
    built = begun_again.gateway
    assert begun_again.status == 0
    assert begun_again.took_s < 10
    there = set(built.client().get_collection("acknowledged", embedding_function=None).get(include=[])["ids"])
    assert set(begun_again.told) <= there


def test_a_killed_chroma_comes_back_by_itself(shared: Gateway) -> None:
    """kill -9: clients get errors in Chroma's shape meanwhile, then everything is served again."""
    notes = fill(shared.client(), "survives-chroma")
    killed = shared.pid("chroma")
    assert killed
    os.kill(killed, signal.SIGKILL)
    answers = []

    def served() -> bool:
        answer = httpx.get(f"{shared.url}/api/v2/heartbeat", timeout=10)
        answers.append(answer)
        return answer.status_code == 200 and shared.pid("chroma") not in (None, killed)

    shared.until(served, "Chroma is back")
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        assert answer.status_code in (502, 503)
        assert set(answer.json()) >= {"error", "message"}
    shared.wait_until_ready()
    assert notes.count() == 20
    assert notes.query(query_embeddings=[[7.0, 1.0, 2.0]], n_results=1)["ids"] == [["7"]]


def test_a_killed_gateway_comes_back_and_chroma_goes_on(shared: Gateway) -> None:
    """kill -9 of the gateway costs its clients a moment, and Chroma not even a restart."""
    notes = fill(shared.client(), "survives-the-gateway")
    chroma, killed = shared.pid("chroma"), shared.pid("gateway")
    assert killed
    os.kill(killed, signal.SIGKILL)
    shared.until(lambda: shared.pid("gateway") not in (None, killed), "the gateway is back")
    shared.wait_until_ready()
    assert notes.count() == 20
    assert shared.pid("chroma") == chroma
    held = {each["name"]: each["records"] for each in shared.snapshot()["collections"]}
    assert held["survives-the-gateway"] == 20


def test_the_gateway_answers_health_before_chroma_does() -> None:
    """`/healthz` is 200 while `/readyz` still says why not."""
    with gateway_process() as built:
        built.start(ready=False)
        seen = []

        def ready() -> bool:
            try:
                healthz = httpx.get(f"{built.url}/healthz", timeout=5)
            except httpx.TransportError:
                return False
            readyz = built.readyz()
            seen.append((healthz.status_code, readyz.status_code, readyz.json().get("message")))
            return readyz.status_code == 200

        built.until(ready, "it is ready")
        assert {status for status, _, _ in seen} == {200}
        assert all(status == 200 or (status == 503 and message) for _, status, message in seen)


# ---------------------------------------------------------------------- snapshots that nobody asks for


def test_a_clean_stop_leaves_a_final_snapshot() -> None:
    """With GATEWAY_SNAPSHOT_ON_EXIT the last write before SIGTERM survives the loss of the disk.

    Where nothing was written since the latest snapshot there is nothing to save, and the log says so.
    """
    with gateway_process(GATEWAY_SNAPSHOT_ON_EXIT="true") as built:
        fill(built.start().client(), "notes")
        assert built.stop() == 0
        shutil.rmtree(built.data_dir)
        built.start()
        assert built.client().get_collection("notes", embedding_function=None).count() == 20
        assert [each["label"] for each in built.admin("GET", "/snapshot").json()["snapshots"]] == ["final"]
        built.snapshot()
        assert built.stop() == 0
        assert "nothing changed since the latest snapshot" in built.output()
        assert len(list(built.store_dir.rglob("manifest.json"))) == 2


def test_a_final_snapshot_that_cannot_be_stored_is_told_by_the_exit_status() -> None:
    """The data is on disk, but the platform must not take this for a clean stop."""
    with gateway_process(GATEWAY_SNAPSHOT_ON_EXIT="true") as built:
        store, file, link = (built.directory / name for name in ("store", "file", "link"))
        store.mkdir()
        file.write_text("not a directory")
        built.store_dir.parent.mkdir()
        built.store_dir.symlink_to(store)
        fill(built.start().client(), "notes")
        # At once: the holder of the lease writes it again whenever it finds it gone.
        link.symlink_to(file)
        link.replace(built.store_dir)
        assert built.stop() == 3
        assert "needs a directory" in built.output()
        link.symlink_to(store)
        link.replace(built.store_dir)
        built.start()
        assert built.client().get_collection("notes", embedding_function=None).count() == 20
