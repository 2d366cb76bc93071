"""Two gateways on one store: one writer at a time, and no acknowledged write is lost between them."""

import itertools
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway_process import Gateway, gateway_process
from tests.servers import S3Server, rclone

RECORDS = "/api/v2/tenants/default_tenant/databases/default_database/collections"


class Writer:
    """Adds records through one gateway, one after the other, and remembers the acknowledged ones."""

    def __init__(self, built: Gateway, name: str) -> None:
        self.built, self.name = built, name
        self.acknowledged: list[str] = []
        self.refusals: set[str] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _write(self) -> None:
        with httpx.Client(base_url=self.built.url, timeout=60) as http:
            collection = None
            for number in itertools.count():
                if self._done.is_set():
                    return
                try:
                    if collection is None:
                        collection = http.get(f"{RECORDS}/notes").raise_for_status().json()["id"]
                    one = f"{self.name}-{number}"
                    answer = http.post(
                        f"{RECORDS}/{collection}/add", json={"ids": [one], "embeddings": [[float(number), 1.0]]}
                    )
                except httpx.HTTPError:
                    time.sleep(0.05)  # the gateway is starting or stopping
                    continue
                if answer.is_success:
                    self.acknowledged.append(one)
                    time.sleep(0.01)  # others need the processor too
                else:
                    self.refusals.add(answer.json()["message"])
                    time.sleep(0.05)


def ids(built: Gateway) -> set[str]:
    return set(built.client().get_collection("notes", embedding_function=None).get(include=[])["ids"])


def lease(built: Gateway) -> dict[str, Any]:
    answer: dict[str, Any] = built.admin("GET", "/status").json()["lease"]
    return answer


@pytest.fixture(params=[pytest.param("file", marks=pytest.mark.soak), "s3"])
def shared(request: pytest.FixtureRequest, ministack: S3Server, tmp_path: Path) -> dict[str, str]:
    """The settings of gateways that share an empty store."""
    if request.param == "file":
        return {"GATEWAY_STORE": f"file://{tmp_path}/store"}
    return {"GATEWAY_STORE": f"s3://{ministack.new_bucket('shared')}/some/prefix", **ministack.env}


def begin(built: Gateway) -> None:
    built.start().client().create_collection("notes", embedding_function=None)


def test_new_gateway_takes_over_with_every_acknowledged_write(shared: dict[str, str]) -> None:
    """The old one refuses writes, says why, and serves reads. It can publish nothing. The new one has every write."""
    with gateway_process(**shared) as old, gateway_process(**shared) as new:
        begin(old)
        with Writer(old, "old") as writer:
            old.until(lambda: len(writer.acknowledged) > 20, "some records are written")
            new.start()
            old.until(lambda: bool(writer.refusals), "the old gateway refuses writes")
        assert ids(new) >= set(writer.acknowledged)
        assert any("another gateway" in refusal for refusal in writer.refusals)
        # The old gateway still serves reads, with the same records.
        assert ids(old) == ids(new)
        assert old.admin("POST", "/snapshot").status_code == 503
        assert "another gateway" in old.readyz().json()["message"]
        assert (lease(old)["role"], lease(new)["role"]) == ("reader", "writer")
        # The new gateway writes and takes snapshots.
        new.client().get_collection("notes", embedding_function=None).add(ids=["new"], embeddings=[[0.0, 1.0]])
        taken = new.snapshot()
        assert new.admin("GET", "/snapshot").json()["snapshots"][0]["id"] == taken["id"]
        assert old.stop() == 0
        assert new.admin("GET", "/snapshot/latest").json()["id"] == taken["id"]


@pytest.mark.timeout(300)
@pytest.mark.soak
def test_gateways_that_replace_each_other_lose_no_acknowledged_write(shared: dict[str, str]) -> None:
    """Each replaces the other in turn, three times or more, with writers on both: the history does not fork."""
    shared |= {"GATEWAY_SNAPSHOT_INTERVAL_S": "1", "GATEWAY_SNAPSHOT_ON_EXIT": "true"}
    acknowledged: set[str] = set()
    turns = 0
    with gateway_process(**shared) as one, gateway_process(**shared) as other, gateway_process(**shared) as last:
        begin(one)
        until = time.monotonic() + 15
        with ExitStack() as writing:
            writers = {one: writing.enter_context(Writer(one, "one-0"))}
            old, new = one, other
            while turns < 3 or time.monotonic() < until:
                turns += 1
                new.start()
                before = set(writers[old].acknowledged)  # all of them: the old gateway refuses writes by now
                writers[new] = Writer(new, f"turn-{turns}")
                writers[new].__enter__()
                for each in (old, new):
                    assert "by force" not in each.output(), "this machine is too slow for this test"
                    assert "the last snapshot failed" not in each.output()
                missing = before - ids(new)
                assert not missing, f"turn {turns} lost {sorted(missing)[:5]}\n{new.output()[-3000:]}"
                new.until(lambda: len(writers[new].acknowledged) > 10, "the new gateway accepts writes")  # noqa: B023
                writers[old].__exit__()
                acknowledged |= set(writers[old].acknowledged)
                assert old.stop() == 0
                shutil.rmtree(old.data_dir)
                old, new = new, old
            writers[old].__exit__()
            acknowledged |= set(writers[old].acknowledged)
            assert old.stop() == 0
        last.start()
        assert ids(last) >= acknowledged
        snapshots = last.admin("GET", "/snapshot").json()["snapshots"]
        assert {each["state"] for each in snapshots} == {"complete"}
        held = [each["collections"][0]["records"] if each["collections"] else 0 for each in reversed(snapshots)]
        assert held == sorted(held), "a snapshot has less than the one before it: the history forked"
        assert len(acknowledged) > 100


@pytest.mark.soak
def test_killed_holder_is_succeeded_within_seconds(shared: dict[str, str]) -> None:
    """It cannot hand over, so its silence must suffice. What it published is there."""
    with gateway_process(**shared) as old, gateway_process(**shared) as new:
        begin(old)
        old.client().get_collection("notes", embedding_function=None).add(ids=["kept"], embeddings=[[0.0, 1.0]])
        old.snapshot()
        old.kill()
        began = time.monotonic()
        new.start()
        assert time.monotonic() - began < 25
        assert ids(new) == {"kept"}
        assert lease(new)["role"] == "writer"
        new.until_logged("by force")


def test_holder_that_hangs_is_fenced(shared: dict[str, str]) -> None:
    """Stopped, succeeded by force, and continued: it notices, accepts no write and publishes nothing.

    Not even the write that arrived while it was stopped, and that it sees before anything else.
    """
    with gateway_process(**shared) as old, gateway_process(GATEWAY_TAKEOVER_TIMEOUT_S="3", **shared) as new:
        begin(old)
        notes = old.client().get_collection("notes", embedding_function=None)
        notes.add(ids=["kept"], embeddings=[[0.0, 1.0]])
        old.snapshot()
        pid = old.pid("gateway")
        assert pid
        add, body = f"{old.url}{RECORDS}/{notes.id}/add", {"ids": ["late"], "embeddings": [[0.0, 1.0]]}
        with ThreadPoolExecutor(1) as sending:
            os.kill(pid, signal.SIGSTOP)
            try:
                late = sending.submit(httpx.post, add, json=body, timeout=120)
                new.start()
            finally:
                os.kill(pid, signal.SIGCONT)
            assert late.result().status_code == 503, late.result().text
        before = [each["id"] for each in new.admin("GET", "/snapshot").json()["snapshots"]]
        assert old.admin("POST", "/snapshot").status_code == 503
        old.until(lambda: lease(old)["role"] == "reader", "the old gateway noticed")
        assert old.admin("POST", "/snapshot").status_code == 503
        assert [each["id"] for each in new.admin("GET", "/snapshot").json()["snapshots"]] == before


def test_data_that_are_behind_do_not_become_the_history(shared: dict[str, str]) -> None:
    """An old disk comes back after another gateway went on: no writes until the latest snapshot is restored."""
    with gateway_process(**shared) as old, gateway_process(**shared, GATEWAY_SNAPSHOT_ON_EXIT="true") as new:
        begin(old)
        old.client().get_collection("notes", embedding_function=None).add(ids=["old"], embeddings=[[0.0, 1.0]])
        new.start()
        new.client().get_collection("notes", embedding_function=None).add(ids=["new"], embeddings=[[0.0, 1.0]])
        assert old.stop() == 0
        assert new.stop() == 0
        old.start(ready=False)
        old.until(lambda: "lack what it wrote" in old.readyz().text, "/readyz says what is wrong")
        assert ids(old) == {"old"}
        assert old.admin("POST", "/snapshot").status_code == 503
        assert old.admin("POST", "/snapshot/latest/restore").status_code == 200
        old.wait_until_ready()
        assert ids(old) == {"old", "new"}
        old.client().get_collection("notes", embedding_function=None).add(ids=["on"], embeddings=[[0.0, 1.0]])
        old.snapshot()


def test_restarted_gateway_continues_without_waiting(shared: dict[str, str]) -> None:
    """kill -9 of everything, and the same disk: no wait for another gateway, and no write is refused for long."""
    with gateway_process(**shared) as built:
        begin(built)
        built.snapshot()
        built.kill()
        began = time.monotonic()
        built.start()
        built.client().get_collection("notes", embedding_function=None).add(ids=["on"], embeddings=[[0.0, 1.0]])
        assert time.monotonic() - began < 15
        built.snapshot()


def test_store_without_conditional_writes_is_reported(tmp_path: Path) -> None:
    """/readyz and the log warn. With GATEWAY_REQUIRE_FENCING the start fails with status 2."""
    with rclone() as server:
        server.make_bucket("shared")
        settings = {"GATEWAY_STORE": "s3://shared/both", **server.env}
        with gateway_process(**settings) as built:
            built.start()
            assert "no fencing" in built.readyz().json()["warnings"][0]
            built.until_logged("are not fenced")
            begin_again = built.client().create_collection("notes", embedding_function=None)
            begin_again.add(ids=["a"], embeddings=[[0.0, 1.0]])
            built.snapshot()
            with gateway_process(**settings) as new:
                new.start()
                assert ids(new) == {"a"}
        with gateway_process(GATEWAY_REQUIRE_FENCING="true", **settings) as built:
            built.start(ready=False)
            assert built.wait() == 2
            assert "GATEWAY_REQUIRE_FENCING" in built.output()
