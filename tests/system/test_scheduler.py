"""What happens without being asked for: schedules, retention, garbage, and the last seconds."""

import gzip
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import chromadb
import pytest

from tests.gateway_process import Gateway, gateway_process
from tests.servers import S3Server, faults
from tests.store_faults import Rule


def notes(built: Gateway) -> chromadb.Collection:
    return built.client().get_or_create_collection("notes", embedding_function=None)


def write(built: Gateway, one: str) -> None:
    notes(built).upsert(ids=[one], embeddings=[[1.0, 2.0]])


def snapshots(built: Gateway) -> list[dict]:
    found: list[dict] = built.admin("GET", "/snapshot").json()["snapshots"]
    return found


@contextmanager
def switch() -> Iterator[tuple[str, list[str]]]:
    """A dead man's switch, and what it heard."""
    heard: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/ping", heard
    finally:
        server.shutdown()
        server.server_close()


def test_a_schedule_skips_what_is_not_needed_and_tells_of_success() -> None:
    """While nothing is written there is no snapshot, and the switch hears of each that there is."""
    with (
        switch() as (url, heard),
        gateway_process(GATEWAY_SNAPSHOT_CRON="* * * * * *", GATEWAY_SNAPSHOT_PING_URL=url) as built,
    ):
        built.start()
        write(built, "first")
        built.until(lambda: len(snapshots(built)) >= 1, "the first one")
        time.sleep(1.5)  # what was written beside the first one is in the next
        taken = len(snapshots(built))
        time.sleep(2.5)  # two turns
        assert len(snapshots(built)) == taken
        write(built, "a")
        built.until(lambda: len(snapshots(built)) == taken + 1, "another one")
        built.until(lambda: heard == ["/ping"] * (taken + 1), "the switch hears")
        assert {each["label"] for each in snapshots(built)} == {"scheduled"}
        assert url not in built.output()


def test_retention_and_garbage_follow_each_scheduled_snapshot() -> None:
    """The newest stays, and what a person labelled; what they do not need goes, and they can be restored."""
    with gateway_process(GATEWAY_SNAPSHOT_INTERVAL_S="1", GATEWAY_KEEP_LAST="1", GATEWAY_GC_GRACE_S="0") as built:
        built.start()
        write(built, "kept")
        labelled = when_free(built, "/snapshot", json={"label": "before the import"})
        for number in range(3):
            before = snapshots(built)[0]["id"]
            write(built, f"{number}")
            built.until(lambda: snapshots(built)[0]["id"] > before, "another one")  # noqa: B023
        built.until(lambda: len(snapshots(built)) == 2, "the others are dropped")
        collected = when_free(built, "/gc")
        assert collected["problem"] is None
        assert list(collected["kept_snapshots"].values())[-1] == ["labelled"]
        assert [each["label"] for each in snapshots(built)] == ["scheduled", "before the import"]
        packs = {path.name for path in built.store_dir.rglob("data/*")}
        manifests = [json.loads(path.read_text())["manifest"] for path in built.store_dir.rglob("manifest.json")]
        assert packs == {pack["sha256"] for manifest in manifests for pack in manifest["packs"]}
        when_free(built, f"/snapshot/{labelled['id']}/restore")
        assert notes(built).get()["ids"] == ["kept"]


def when_free(built: Gateway, path: str, **kwargs: Any) -> dict[str, Any]:
    """What POST `path` answers, once no scheduled work is in its way."""
    answers = []

    def is_free() -> bool:
        answers.append(built.admin("POST", path, **kwargs))
        return answers[-1].status_code != 409

    built.until(is_free, f"no 409 to {path}")
    assert answers[-1].is_success, answers[-1].text
    return answers[-1].json()


def test_a_store_that_is_never_deleted_from() -> None:
    """Every snapshot that ever was there is there at the end. They are listed with the newest first."""
    with gateway_process(GATEWAY_STORE_NEVER_DELETE="true", GATEWAY_KEEP_LAST="1", GATEWAY_GC_GRACE_S="0") as built:
        built.start()
        for number in range(3):
            write(built, f"{number}")
            built.snapshot()
        answer = built.admin("POST", "/gc").json()
        assert "NEVER_DELETE" in answer["problem"]
        refused = built.admin("DELETE", "/snapshot/latest")
        assert (refused.status_code, "NEVER_DELETE" in refused.json()["message"]) == (502, True)
        taken = snapshots(built)
        assert len(taken) == 3
        assert taken == sorted(taken, key=lambda each: each["created_at"], reverse=True)
        assert taken == sorted(taken, key=lambda each: each["id"], reverse=True)


@pytest.mark.parametrize("budget_s", [3, pytest.param(6, marks=pytest.mark.soak)])
def test_a_stop_keeps_its_budget_when_the_store_is_slow(ministack: S3Server, budget_s: int) -> None:
    """The final snapshot does not fit: the gateway ends in time all the same, and says what was not saved."""
    with faults(ministack.port) as proxy:
        store = f"s3://{ministack.new_bucket('slow')}"
        env = ministack.env_behind(proxy)
        with gateway_process(GATEWAY_STORE=store, GATEWAY_EXIT_BUDGET_S=str(budget_s), **env) as built:
            built.start()
            write(built, "saved")
            built.snapshot()
            write(built, "not saved")
            proxy.rules = [Rule("delay", method="PUT", contains="data/", delay_s=30)]
            began = time.monotonic()
            assert built.stop() != 0
            assert time.monotonic() - began < budget_s + 5, "Chroma's own stop comes on top"
            assert "did not fit" in built.output()
            assert "what was written since the latest snapshot is not in the store" in built.output()
            proxy.rules = []
            built.start()
            assert set(notes(built).get()["ids"]) == {"saved", "not saved"}


# A short test keeps the budget of a final snapshot, above; tests/unit/server/test_lifecycle.py that of a stuck task.
@pytest.mark.soak
def test_a_stop_keeps_its_budget_while_a_scheduled_snapshot_is_stuck(ministack: S3Server) -> None:
    """Its bytes are on their way to a store that does not answer: the gateway ends in time, and says what was lost."""
    with faults(ministack.port) as proxy:
        store = f"s3://{ministack.new_bucket('stuck')}"
        env = ministack.env_behind(proxy)
        settings = {"GATEWAY_EXIT_BUDGET_S": "3", "GATEWAY_SNAPSHOT_INTERVAL_S": "1"}
        with gateway_process(GATEWAY_STORE=store, **settings, **env) as built:
            built.start()
            proxy.rules = [Rule("delay", method="PUT", contains="data/", delay_s=30)]
            write(built, "not saved")
            built.until(
                lambda: any(method == "PUT" and "data/" in target for method, target in list(proxy.requests)),
                "a scheduled snapshot is on its way",
            )
            began = time.monotonic()
            assert built.stop() != 0
            assert time.monotonic() - began < 3 + 4, "Chroma's own stop comes on top"
            assert "what was written since the latest snapshot is not in the store" in built.output()


def test_what_is_acknowledged_during_a_stop_is_in_the_final_snapshot(ministack: S3Server) -> None:
    """A write whose last bytes come after the cut is not acknowledged any more: nothing would save it."""
    with faults(ministack.port) as proxy:
        store = f"s3://{ministack.new_bucket('late')}"
        env = ministack.env_behind(proxy)
        with gateway_process(GATEWAY_STORE=store, **env) as built:
            built.start()
            write(built, "early")
            body = json.dumps({"ids": ["late"], "embeddings": [[2.0, 1.0]]}).encode()
            path = f"/api/v2/tenants/default_tenant/databases/default_database/collections/{notes(built).id}/upsert"
            with socket.create_connection(("127.0.0.1", built.port), 20) as client:
                head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:5])
                proxy.requests.clear()
                proxy.rules = [Rule("delay", method="PUT", contains="data/", delay_s=1.5)]
                stopping = threading.Thread(target=built.stop)
                stopping.start()
                built.until(
                    lambda: any(method == "PUT" and "data/" in target for method, target in list(proxy.requests)),
                    "the final snapshot is on its way",
                )
                client.sendall(body[5:])
                try:
                    acknowledged = client.recv(65536).split(b" ")[1:2] == [b"200"]
                except ConnectionError:
                    acknowledged = False
            stopping.join()
            proxy.rules = []
            shutil.rmtree(built.data_dir)
            built.start()
            assert set(notes(built).get()["ids"]) == ({"early", "late"} if acknowledged else {"early"})


def test_an_upload_does_not_take_the_place_of_what_is_served() -> None:
    """It is the newest snapshot until the end; a new container finds what was acknowledged, not the upload."""
    archive = gzip.decompress((Path(__file__).parents[1] / "data/chroma-0.5.23.tar.gz").read_bytes())
    with gateway_process(GATEWAY_SNAPSHOT_ON_EXIT="true") as built:
        built.start()
        write(built, "a")
        built.snapshot()
        assert built.admin("POST", "/snapshot/upload", content=archive).status_code == 201
        assert built.stop() == 0
        shutil.rmtree(built.data_dir)
        built.start()
        assert notes(built).get()["ids"] == ["a"]
