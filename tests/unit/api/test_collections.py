"""`/admin/collections` and `/admin/databases`: pages for people who look at their data."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.chroma import index_health
from gateway.config import Settings
from gateway.server.admin import routes_of
from gateway.server.container import Gateway
from tests.bare_chroma import bare_chroma


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three collections, of which one has an index on disk."""
    path = tmp_path_factory.mktemp("chroma")
    with bare_chroma(path) as chroma:
        client = chroma.client()
        hnsw = {"space": "cosine", "sync_threshold": 10, "batch_size": 5}
        for name, records in (("alpha", 1), ("beta", 10), ("gamma", 0)):
            collection = client.create_collection(name, embedding_function=None, configuration={"hnsw": hnsw})
            if records:
                ids = [str(each) for each in range(records)]
                collection.add(ids=ids, embeddings=[[float(each), 1.0] for each in range(records)])
    (path / ".gateway").mkdir()
    return path


@pytest.fixture
def served(written: Path, tmp_path: Path) -> Gateway:
    return Gateway(Settings(data_dir=written, store=f"file://{tmp_path}/store"), "a-token")


@pytest.fixture
async def admin(served: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    transport, headers = httpx.ASGITransport(routes_of(served)), {"Authorization": "Bearer a-token"}
    async with httpx.AsyncClient(transport=transport, base_url="http://x/admin", headers=headers) as client:
        yield client


async def test_collections_come_in_pages(admin: httpx.AsyncClient) -> None:
    """`next` leads from one to the next, and `total` counts all."""
    first = (await admin.get("/collections", params={"limit": 2})).json()
    assert ([each["name"] for each in first["collections"]], first["total"]) == (["alpha", "beta"], 3)
    second = (await admin.get("/collections", params={"limit": 2, "after": first["next"]})).json()
    assert ([each["name"] for each in second["collections"]], second["next"]) == (["gamma"], None)
    assert first["collections"][1]["space"] == "cosine"
    named = (await admin.get("/collections", params={"name": "MM"})).json()
    assert ([each["name"] for each in named["collections"]], named["total"]) == (["gamma"], 1)


@pytest.mark.parametrize("after", ["x", "[1, 2, 3]", '["a"]', "[" * 5000, "{}"])
async def test_an_invented_cursor_is_refused(admin: httpx.AsyncClient, after: str) -> None:
    for path in ("/collections", "/databases"):
        answer = await admin.get(path, params={"after": after})
        assert (answer.status_code, answer.json()["message"]) == (400, "query.after: this is no `next` of a page")


async def test_databases_are_listed(admin: httpx.AsyncClient) -> None:
    listed = (await admin.get("/databases")).json()
    assert listed == {
        "databases": [{"tenant": "default_tenant", "name": "default_database", "collections": 3}],
        "next": None,
    }


async def test_one_collection_is_shown_and_its_index_checked(
    admin: httpx.AsyncClient, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list says `changed` until somebody asks to read the files, and what was found afterwards."""
    monkeypatch.setattr(index_health, "_SETTLED_NS", 0)
    found = (await admin.get("/collections/beta")).json()
    assert (found["records"], found["index"]["state"], found["index"]["problem"]) == (10, "changed", None)
    by_id = await admin.get(f"/collections/{found['id']}", params={"check": True})
    assert by_id.json()["index"]["state"] == "sound"
    assert (await admin.get("/collections/beta")).json()["index"]["state"] == "sound"
    header = next(written.glob("*/index_metadata.pickle")).with_name("header.bin")
    sound = header.read_bytes()
    header.write_bytes(bytes(len(sound)))
    try:
        torn = (await admin.get("/collections/beta", params={"check": True})).json()["index"]
    finally:
        header.write_bytes(sound)
    assert torn["state"] == "torn"
    assert torn["problem"]
    assert (await admin.get("/collections/nothing")).status_code == 404


async def test_many_who_ask_for_one_check_share_it(served: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader's key may ask too, and each check reads all files of the index."""
    checks, check = 0, index_health.IndexHealth.check

    def counted(*args: Any) -> Any:
        nonlocal checks
        checks += 1
        return check(*args)

    monkeypatch.setattr(index_health.IndexHealth, "check", counted)
    chroma = served.vectorstore.chroma
    segment = chroma.find("beta", "default_tenant", "default_database")
    assert await asyncio.gather(*(chroma.check(segment) for _ in range(10))) == [[]] * 10
    assert checks == 2
    assert not chroma._checks, "nothing is kept of those that have ended"


async def test_what_is_worst_of_an_index_is_told(served: Gateway, admin: httpx.AsyncClient) -> None:
    """A quarantine hides that Chroma cannot read it, which hides that its files are torn."""
    store, found = served.vectorstore, (await admin.get("/collections/alpha")).json()
    assert (found["index"]["state"], found["index"]["log_backlog"]) == ("empty", 1)
    store.watch.unreadable = {"default_tenant/default_database/alpha": "torn"}
    index = (await admin.get("/collections/alpha")).json()["index"]
    assert (index["state"], index["problem"]) == ("unreadable", "torn")
    store.quarantine.put(found["id"], "Chroma ended twice")
    index = (await admin.get("/collections/alpha")).json()["index"]
    assert (index["state"], index["problem"]) == ("quarantined", "Chroma ended twice")
