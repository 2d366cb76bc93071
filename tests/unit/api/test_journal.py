"""Flush, restore to a moment and history: what they take, what they answer, and what is refused."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.config import Settings
from gateway.errors import StorageUnavailable
from gateway.journal.entry import NO_PAGES, Entry, Head, Kind
from gateway.journal.sequence import key_of
from gateway.server.admin import routes_of
from gateway.server.container import Gateway
from gateway.vectorstore import Restored
from tests.unit.snapshot.manifests import ID, NEWER, OLDER, manifest, sha

TOKEN = "an-admin-token"
AT = datetime(2026, 11, 20, 22, 0, tzinfo=UTC)


@pytest.fixture
async def gateway_process(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Gateway]:
    """A gateway with two snapshots that is ready, but for its Chroma. The parameter has settings."""
    given = {"data_dir": tmp_path / "data", "store": f"file://{tmp_path}/store"} | getattr(request, "param", {})
    built = Gateway(Settings(**given), TOKEN)
    built.vectorstore.directory.make()
    built.vectorstore.watch.up = built.vectorstore.watch.warmed = True
    if given["store"].startswith("file"):
        repository = built.vectorstore.repository
        await repository.make()
        for snapshot_id in (OLDER, ID):
            await repository.put_pack(sha(snapshot_id.encode()), snapshot_id.encode())
            await repository.publish(manifest(snapshot_id, (snapshot_id.encode(),)))
    yield built
    await built.vectorstore.close()


@pytest.fixture
async def client(gateway_process: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    transport, headers = httpx.ASGITransport(routes_of(gateway_process)), {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as client:
        yield client


journal_off = pytest.mark.parametrize("gateway_process", [{"journal_interval_s": 0}], indirect=True)


# ---------------------------------------------------------------------- flush


@journal_off
async def test_flush_without_a_journal_says_what_to_do_instead(client: httpx.AsyncClient) -> None:
    """409: there is nothing to wait for."""
    answer = await client.post("/admin/flush")
    assert answer.status_code == 409
    assert "GATEWAY_JOURNAL_INTERVAL_S" in answer.json()["message"]
    assert answer.json()["hint"] == "take a snapshot: POST /admin/snapshot"


@pytest.mark.parametrize("gateway_process", [{"gate_timeout_s": 0.05}], indirect=True)
async def test_flush_that_cannot_be_stored_in_time_gets_503(client: httpx.AsyncClient) -> None:
    """It says that what was written is applied all the same."""
    answer = await client.post("/admin/flush")
    assert (answer.status_code, answer.json()["error"]) == (503, "NotStored")
    assert "Retry-After" in answer.headers
    assert "it was applied" in answer.json()["message"]


async def test_flush_answers_where_everything_is_stored(
    client: httpx.AsyncClient, gateway_process: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The position may be given in the body or in the URL."""
    asked: list[str | None] = []

    async def stored(position: str | None = None) -> str:
        asked.append(position)
        return "3-7"

    monkeypatch.setattr(gateway_process.vectorstore.journal, "stored", stored)
    began = datetime.now(UTC) - timedelta(milliseconds=1)
    answer = (await client.post("/admin/flush", json={"position": "3-5"})).json()
    assert (answer["position"], began < datetime.fromisoformat(answer["at"])) == ("3-7", True)
    assert (await client.post("/admin/flush", params={"position": "3-6"})).status_code == 200
    assert (await client.post("/admin/flush")).status_code == 200
    assert asked == ["3-5", "3-6", None]


# ---------------------------------------------------------------------- restore


@pytest.mark.parametrize(
    "at", ["yesterday", "2026-11-26", "2026-11-26T20:15:03", "20261120T210455Z", "-15 parsecs", "15m", "", "latestt"]
)
async def test_a_moment_that_is_none_is_refused(client: httpx.AsyncClient, at: str) -> None:
    """A misspelt one restores nothing: the answer shows it, and how one looks."""
    for body in ({"at": at}, {"at": at, "dry_run": True}):
        answer = await client.post("/admin/restore", json=body)
        assert answer.status_code == 400
        assert repr(at) in answer.json()["message"]
        assert "2026-11-26T20:15:03Z" in answer.json()["hint"]
        assert "GET /admin/history" in answer.json()["hint"]


async def test_a_moment_of_the_future_is_refused(client: httpx.AsyncClient) -> None:
    """A wrong year would else restore the newest state."""
    at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    answer = await client.post("/admin/restore", json={"at": at})
    assert answer.status_code == 400
    assert "future" in answer.json()["message"]


async def test_a_moment_before_all_history_is_told(client: httpx.AsyncClient) -> None:
    """And where to see how far it goes back."""
    answer = await client.post("/admin/restore", json={"at": "2020-01-01T00:00:00Z"})
    assert answer.status_code == 404
    assert answer.json()["hint"] == "GET /admin/history says how far back it goes"


@pytest.mark.parametrize(
    ("at", "snapshot_id"), [(ID, ID), ("latest", ID), ("2026-11-20T22:00:00+01:00", ID), (OLDER, OLDER)]
)
async def test_a_dry_run_says_what_would_be_restored(client: httpx.AsyncClient, at: str, snapshot_id: str) -> None:
    """Of a snapshot, its manifest says it: nothing else is fetched, and nothing changes."""
    if at.endswith("+01:00"):
        at = at.replace("22:00:00", "22:04:56")
    found = (await client.post("/admin/restore", json={"at": at, "dry_run": True})).json()
    assert (found["snapshot"], found["entries"], found["fetched_bytes"]) == (snapshot_id, 0, len(snapshot_id))
    assert found["collections"][0]["records"] == 3
    assert found["at"].startswith("2026-11-20T21:04:55")


async def test_a_dry_run_runs_beside_other_operations(client: httpx.AsyncClient, gateway_process: Gateway) -> None:
    """It changes nothing. A restore does not."""
    with gateway_process.vectorstore.operations.exclusively("a snapshot"):
        assert (await client.post("/admin/restore", json={"at": ID, "dry_run": True})).status_code == 200
        assert (await client.post("/admin/restore", json={"at": ID})).status_code == 409


async def test_a_restore_answers_with_the_way_back(
    client: httpx.AsyncClient, gateway_process: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment, and the very command. Restores of snapshots too."""
    asked: list[Any] = []

    async def restore(wanted: str, at: datetime | None, _progress: object) -> Restored:
        asked.append((wanted, at))
        return Restored(manifest(ID).snapshot, 4, AT, AT + timedelta(milliseconds=5), stored=True)

    monkeypatch.setattr(gateway_process.vectorstore, "restore", restore)
    answer = await client.post("/admin/restore", json={"at": "2026-11-20T23:00:00+01:00"})
    assert answer.json() == {
        "at": "2026-11-20T22:00:00Z",
        "snapshot": ID,
        "entries": 4,
        "return_to": "2026-11-20T22:00:00.005000Z",
        "undo": "chroma-gateway restore --at 2026-11-20T22:00:00.005Z",
        "stored": True,
    }
    snapshot = (await client.post(f"/admin/snapshot/{ID}/restore")).json()
    assert (snapshot["id"], snapshot["return_to"]) == (ID, "2026-11-20T22:00:00.005000Z")
    assert snapshot["undo"] == "chroma-gateway restore --at 2026-11-20T22:00:00.005Z"
    accepted = await client.post("/admin/restore", params={"wait": "false"}, json={"at": ID})
    assert (accepted.status_code, accepted.json()["kind"]) == (202, "restore")
    assert asked == [("latest", AT), (ID, None), (ID, None)]


async def test_a_restore_of_what_is_not_there_takes_the_lease_from_no_gateway(
    client: httpx.AsyncClient, gateway_process: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for before another gateway is asked to leave."""

    async def adopt() -> None:
        raise AssertionError("the lease was asked for")

    monkeypatch.setattr(gateway_process.vectorstore.leader, "adopt", adopt)
    assert (await client.post("/admin/restore", json={"at": NEWER})).status_code == 404
    assert (await client.post(f"/admin/snapshot/{NEWER}/restore")).status_code == 404
    assert (await client.post("/admin/restore", json={"at": "2020-01-01T00:00:00Z"})).status_code == 404


# ---------------------------------------------------------------------- history and status


async def test_history_is_told(client: httpx.AsyncClient, gateway_process: Gateway) -> None:
    """The window, snapshots, marks, and what is missing."""
    store = gateway_process.vectorstore.journal.sequence._store
    for number in (1, 2, 4):
        head = Head(
            number=number,
            first=number,
            epoch=2,
            writer="w",
            where="web-1:7",
            kind=Kind.SEAL if number == 1 else Kind.PAGES,
            at=AT + timedelta(seconds=number),
            previous="",
            run=0 if number == 1 else 2,
            snapshot=ID,
        )
        await store.put(key_of(number), Entry.make(head, NO_PAGES, ()).data)
    found = (await client.get("/admin/history", params={"limit": 1})).json()
    assert found["gaps"] == [{"first": 3, "last": 3}]
    assert found["timeline"] is None
    assert [each["id"] for each in found["snapshots"]] == [ID, OLDER]
    assert (found["oldest"], found["entries"], found["next"]) == (None, 3, 2)
    (mark,) = found["marks"]
    assert (mark["kind"], mark["position"], mark["snapshot"]) == ("run", "2-2", ID)
    (seal,) = (await client.get("/admin/history", params={"before": found["next"]})).json()["marks"]
    assert (seal["kind"], seal["epoch"], seal["where"]) == ("seal", 2, "web-1:7")


async def test_what_is_not_stored_is_told(
    client: httpx.AsyncClient, gateway_process: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure at once, a lag after 10 s, and an alert after a minute."""
    vectorstore = gateway_process.vectorstore
    assert (await client.get("/readyz")).json()["warnings"] == []
    vectorstore.journal.problem = StorageUnavailable("the store is away")
    assert (await client.get("/readyz")).json()["warnings"] == ["the journal cannot be written: the store is away"]
    for lag_s, is_alert in ((9.0, False), (11.0, False), (61.0, True)):
        monkeypatch.setattr(type(vectorstore.journal), "lag_s", lag_s)
        (warning,) = (await client.get("/readyz")).json()["warnings"]
        assert ("in the last" in warning) is (lag_s > 10)
        assert ("journal-behind" in vectorstore.problems) is is_alert
    status = (await client.get("/admin/status")).json()
    assert (status["journal"]["lag_s"], status["snapshots"]["unsaved_s"]) == (61, 61)
    assert status["journal"]["problem"] == "the store is away"
    assert "chroma_gateway_unsaved_seconds 61.0" in (await client.get("/metrics")).text


@pytest.mark.parametrize(
    ("gateway_process", "warned"),
    [
        ({"store": "s3://bucket", "journal_interval_s": 0}, True),
        ({"store": "s3://bucket"}, False),
        ({"store": "s3://bucket", "journal_interval_s": 0, "snapshot_cron": "0 3 * * *"}, False),
        ({"journal_interval_s": 0}, False),
    ],
    indirect=["gateway_process"],
)
async def test_what_a_kill_would_lose_is_told(client: httpx.AsyncClient, warned: bool) -> None:
    """Where the store outlives the machine and nothing is saved in it by itself."""
    warnings = (await client.get("/readyz")).json()["warnings"]
    assert any("everything written since the latest snapshot is lost" in each for each in warnings) is warned


async def test_the_picture_of_a_history(client: httpx.AsyncClient, gateway_process: Gateway) -> None:
    """How much was written when, and between which moments entries are missing."""
    store = gateway_process.vectorstore.journal.sequence._store
    for number in (1, 2, 4):
        head = Head(
            number=number,
            first=number,
            epoch=2,
            writer="w",
            where="web-1:7",
            kind=Kind.PAGES,
            at=AT,
            previous="",
            run=1,
            snapshot=ID,
        )
        await store.put(key_of(number), Entry.make(head, NO_PAGES, ()).data)
    asked = {"parts": 10, "since": "-10s", "until": "-0s"}
    timeline = (await client.get("/admin/history", params=asked)).json()["timeline"]
    assert timeline["step_s"] == pytest.approx(1, abs=0.1)
    assert sum(part["entries"] for part in timeline["parts"]) == 2, "the first one was read, and is of another time"
    assert len(timeline["holes"]) == 1
    for wrong in ({"since": "yesterday"}, {"since": "-1s", "until": "-2s"}, {"parts": 1001}):
        assert (await client.get("/admin/history", params={"parts": 10} | wrong)).status_code == 400
