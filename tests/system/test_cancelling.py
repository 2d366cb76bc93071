"""Long operations as jobs: started, watched and cancelled; and what is left afterwards."""

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.storage import open_storage
from tests.gateway_process import ADMIN_TOKEN, Gateway, gateway_process
from tests.servers import S3Server, faults
from tests.store_faults import FaultProxy, Rule


class Remote:
    """A gateway whose store is behind `proxy`, with one snapshot."""

    def __init__(self, built: Gateway, proxy: FaultProxy, env: dict[str, str]) -> None:
        self.gateway_process, self.proxy, self._env = built, proxy, env
        self.numbers = iter(range(1_000_000))

    def keys(self) -> set[str]:
        """The key of every object in the bucket."""

        async def listed() -> set[str]:
            store = open_storage(self.gateway_process.env["GATEWAY_STORE"].removesuffix("/jobs"))
            try:
                return {info.key async for info in store.list("")}
            finally:
                await store.close()

        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._env.items():
                patch.setenv(name, value)
            return asyncio.run(listed())

    def write(self) -> str:
        """Add a record that is in no snapshot yet."""
        number = next(self.numbers)
        notes = self.gateway_process.client().get_collection("notes")
        notes.add(ids=[f"r{number}"], embeddings=[[number, 1.0, 2.0]], documents=[f"text {number}" * 50])
        return f"r{number}"

    def arrived(self, method: str, contains: str) -> bool:
        return any(each == method and contains in target for each, target in list(self.proxy.requests))

    def start(self, method: str, path: str, **request: Any) -> str:
        """Start the operation as a job. Return the job's id."""
        answer = self.gateway_process.admin(method, f"{path}?wait=false", **request)
        assert answer.status_code == 202, answer.text
        assert answer.headers["Location"] == f"/admin/jobs/{answer.json()['id']}"
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        shown: dict[str, Any] = self.gateway_process.admin("GET", f"/jobs/{job_id}").json()
        return shown

    def ended(self, job_id: str) -> dict[str, Any]:
        self.gateway_process.until(lambda: self.job(job_id)["state"] != "running", "the job has ended")
        return self.job(job_id)

    def leftovers(self) -> set[str]:
        """What must not stay in the gateway's own part of the data directory."""
        ours = set(os.listdir(self.gateway_process.data_dir / ".gateway"))
        return ours & {"incoming", "verify", "archive", "import", "previous", "rejected", "swap.json"}

    def gate(self) -> str:
        state: str = self.gateway_process.admin("GET", "/status").json()["gate"]["state"]
        return state


@pytest.fixture(scope="module")
def shared(ministack: S3Server) -> Iterator[Remote]:
    store = f"s3://{ministack.new_bucket('vectors')}/jobs"
    with faults(ministack.port) as proxy:
        env = ministack.env_behind(proxy)
        with gateway_process(GATEWAY_STORE=store, GATEWAY_SNAPSHOT_ON_EXIT="false", **env) as built:
            built.start()
            built.client().create_collection("notes", embedding_function=None)
            remote = Remote(built, proxy, env)
            remote.write()
            built.snapshot("first")
            yield remote


@pytest.fixture
def remote(shared: Remote) -> Iterator[Remote]:
    """Afterwards the store works again."""
    shared.proxy.requests.clear()
    yield shared
    shared.proxy.rules = []
    shared.gateway_process.wait_until_ready()


def test_job_reports_its_progress_until_its_end(remote: Remote) -> None:
    """202 and the job's location. Its events end with the snapshot, which is listed then."""
    remote.write()
    job_id = remote.start("POST", "/snapshot", json={"label": "as a job"})
    events = remote.gateway_process.admin("GET", f"/jobs/{job_id}/events").text
    last = json.loads(events.strip().rpartition("data: ")[2])
    assert last["state"] == "succeeded"
    assert remote.gateway_process.admin("GET", "/snapshot/latest").json()["id"] == last["result"]["id"]
    assert remote.gateway_process.admin("GET", "/jobs").json()["jobs"][0]["kind"] == "snapshot"
    deleted = remote.ended(remote.start("DELETE", f"/snapshot/{last['result']['id']}"))
    assert deleted["state"] == "succeeded"
    assert remote.gateway_process.admin("GET", f"/snapshot/{last['result']['id']}").status_code == 404


def test_error_of_a_job_equals_the_error_of_a_request_that_waits(remote: Remote) -> None:
    """An unknown snapshot is 404 for a request that waits, and the same error in the job."""
    path = "/snapshot/20000101T000000Z-000000/restore"
    waited = remote.gateway_process.admin("POST", path)
    assert waited.status_code == 404
    assert remote.ended(remote.start("POST", path))["error"] == waited.json()


def test_client_that_disconnects_does_not_stop_a_snapshot(remote: Remote) -> None:
    """The client disconnects while packs are stored. The snapshot is listed all the same."""
    remote.write()
    before = remote.gateway_process.admin("GET", "/snapshot/latest").json()["id"]
    remote.proxy.rules = [Rule("delay", method="PUT", contains="/data/", delay_s=1.5)]
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{remote.gateway_process.url}/admin/snapshot", headers=headers, timeout=0.7)
    remote.gateway_process.until(
        lambda: remote.gateway_process.admin("GET", "/snapshot/latest").json()["id"] > before, "the snapshot is listed"
    )


@pytest.mark.parametrize("contains", ["/data/", "/manifest.json"])
def test_cancelled_snapshot_leaves_nothing_behind(remote: Remote, contains: str) -> None:
    """No orphan in the store, and the gate is open. If the manifest was being written, the snapshot is complete."""
    before = remote.keys()
    written = remote.write()
    remote.proxy.requests.clear()
    remote.proxy.rules = [Rule("delay", method="PUT", contains=contains, delay_s=1)]
    job_id = remote.start("POST", "/snapshot")
    remote.gateway_process.until(lambda: remote.arrived("PUT", contains), "it stores something")
    ended = remote.gateway_process.admin("DELETE", f"/jobs/{job_id}").json()
    remote.proxy.rules = []
    if contains == "/data/":
        assert ended["state"] == "cancelled"
        assert remote.keys() == before
    else:
        assert ended["state"] == "succeeded"
        assert remote.gateway_process.admin("POST", f"/snapshot/{ended['result']['id']}/verify").json()["ok"]
    assert remote.gate() == "open"
    remote.write()
    after = remote.gateway_process.snapshot("after a cancelled one")
    assert remote.gateway_process.admin("POST", f"/snapshot/{after['id']}/verify").json()["ok"]
    assert remote.gateway_process.client().get_collection("notes").get(ids=[written])["ids"] == [written]


def test_restore_can_be_cancelled_while_it_fetches(remote: Remote) -> None:
    """The data are as before, Chroma was not stopped, and nothing is left in the data directory."""
    remote.gateway_process.snapshot()
    written, pid = remote.write(), remote.gateway_process.pid("chroma")
    remote.proxy.requests.clear()
    remote.proxy.rules = [Rule("delay", method="GET", contains="/data/", delay_s=1)]
    job_id = remote.start("POST", "/snapshot/latest/restore")
    remote.gateway_process.until(lambda: remote.arrived("GET", "/data/"), "it fetches")
    assert remote.gateway_process.admin("DELETE", f"/jobs/{job_id}").json()["state"] == "cancelled"
    remote.proxy.rules = []
    remote.gateway_process.until(lambda: remote.leftovers() == set(), "nothing is left")
    assert (remote.gateway_process.pid("chroma"), remote.gate()) == (pid, "open")
    assert remote.gateway_process.client().get_collection("notes").get(ids=[written])["ids"] == [written]
    remote.gateway_process.snapshot("after a cancelled restore")


def test_restore_that_swaps_the_data_runs_to_its_end(remote: Remote) -> None:
    """If it is cancelled then, it answers when the restored data are served, and says that it succeeded."""
    snapshot = remote.gateway_process.snapshot()
    written, pid = remote.write(), remote.gateway_process.pid("chroma")
    job_id = remote.start("POST", f"/snapshot/{snapshot['id']}/restore")
    remote.gateway_process.until(lambda: remote.job(job_id)["phase"] == "exchanging", "the exchange began")
    assert remote.gateway_process.admin("DELETE", f"/jobs/{job_id}").json()["state"] == "succeeded"
    assert remote.gateway_process.readyz().status_code == 200
    assert remote.gateway_process.pid("chroma") != pid
    assert remote.gateway_process.client().get_collection("notes").get(ids=[written])["ids"] == []
    assert remote.leftovers() == set()
