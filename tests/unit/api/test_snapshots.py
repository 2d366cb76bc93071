"""Lists of snapshots have pages, labels are people's own, and a damaged store is told everywhere."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.config import Settings
from gateway.server.admin import routes_of
from gateway.server.container import Gateway
from tests.unit.snapshot.manifests import ID, NEWER, OLDER, manifest, sha

TOKEN = "an-admin-token"


@pytest.fixture
async def gateway_process(tmp_path: Path) -> Gateway:
    """A gateway with three snapshots that is ready, but for its Chroma."""
    built = Gateway(Settings(data_dir=tmp_path / "data", store=f"file://{tmp_path}/store"), TOKEN)
    built.vectorstore.directory.make()
    repository = built.vectorstore.repository
    await repository.make()
    for snapshot_id in (OLDER, ID, NEWER):
        await repository.put_pack(sha(snapshot_id.encode()), snapshot_id.encode())
        await repository.publish(manifest(snapshot_id, (snapshot_id.encode(),)))
    built.vectorstore.watch.up = built.vectorstore.watch.warmed = True
    return built


@pytest.fixture
async def client(gateway_process: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    transport, headers = httpx.ASGITransport(routes_of(gateway_process)), {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as client:
        yield client


async def test_snapshots_are_listed_in_pages(client: httpx.AsyncClient) -> None:
    """Newest first; `next` gives the page after, null the end."""
    pages, after = list[list[str]](), dict[str, str]()
    while True:
        answer = (await client.get("/admin/snapshot", params={"limit": "2", **after})).json()
        pages.append([snapshot["id"] for snapshot in answer["snapshots"]])
        if answer["next"] is None:
            break
        after = {"after": answer["next"]}
    assert pages == [[NEWER, ID], [OLDER]]
    whole = (await client.get("/admin/snapshot")).json()
    assert ([snapshot["id"] for snapshot in whole["snapshots"]], whole["next"]) == ([NEWER, ID, OLDER], None)
    for wrong in ({"limit": "0"}, {"limit": "1001"}, {"after": "latest"}):
        assert (await client.get("/admin/snapshot", params=wrong)).status_code == 400


@pytest.mark.parametrize("label", ["final", "scheduled", "handover"])
async def test_labels_of_the_gateway_are_refused(client: httpx.AsyncClient, label: str) -> None:
    """Retention does not keep snapshots that have one, so a person's snapshot would be dropped."""
    for answer in (
        await client.post("/admin/snapshot", json={"label": label}),
        await client.post("/admin/snapshot/upload", params={"label": label}, content=b""),
    ):
        assert answer.status_code == 400
        assert label in answer.json()["message"]
        assert "another label" in answer.json()["hint"]


async def test_damage_of_the_store_is_told_everywhere(gateway_process: Gateway, client: httpx.AsyncClient) -> None:
    """A pack that is gone and a manifest that cannot be read: in `/readyz`, as metrics, in the status and in lists."""
    assert (await client.get("/readyz")).json()["warnings"] == []
    vectorstore = gateway_process.vectorstore
    store = Path(vectorstore.repository.url.removeprefix("file://"))
    (store / "data" / sha(NEWER.encode())).unlink()
    (store / "snapshots" / OLDER / "manifest.json").write_bytes(b"{")
    await vectorstore.operations.look_for_damage()
    warnings = (await client.get("/readyz")).json()["warnings"]
    assert any(OLDER in each for each in warnings)
    assert any(NEWER in each and sha(NEWER.encode()) in each for each in warnings)
    metrics = (await client.get("/metrics")).text.splitlines()
    for name in ("unreadable_snapshots", "broken_snapshots", "missing_packs"):
        assert f"chroma_gateway_{name} 1.0" in metrics
    status = (await client.get("/admin/status")).json()
    assert OLDER in status["last_error"]["message"]
    assert status["store"]["last_snapshot"]["state"] == "damaged"
    listed = (await client.get("/admin/snapshot")).json()["snapshots"]
    assert [snapshot["state"] for snapshot in listed] == ["damaged", "complete", "damaged"]


async def test_failed_garbage_collection_is_told_everywhere(
    gateway_process: Gateway, client: httpx.AsyncClient
) -> None:
    """In `/readyz`, as a metric and in the status, until one succeeds."""
    lease = Path(gateway_process.vectorstore.repository.url.removeprefix("file://")) / "lease.json"
    whole = lease.read_bytes()
    for data, fails in ((b"{", 1.0), (whole, 0.0)):
        lease.write_bytes(data)
        answer = await client.post("/admin/gc")
        assert answer.is_success is not bool(fails)
        warnings = (await client.get("/readyz")).json()["warnings"]
        assert any("garbage collection fails" in each for each in warnings) is bool(fails)
        assert f"chroma_gateway_gc_failing {fails}" in (await client.get("/metrics")).text.splitlines()
        assert ((await client.get("/admin/status")).json()["last_error"] is not None) is bool(fails)
