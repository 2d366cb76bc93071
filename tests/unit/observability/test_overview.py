"""The overview of the console: what is counted between two turns, and what is said of each warning."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.config import Settings
from gateway.observability import advice
from gateway.observability import overview as overview_module
from gateway.observability.advice import PHRASES, advice_on
from gateway.observability.overview import Overview
from gateway.proxy.counters import Counters, Label
from gateway.server.container import Gateway


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    (tmp_path / "data").mkdir()
    return Gateway(Settings(data_dir=tmp_path / "data", store=f"file://{tmp_path}/store"), "a-token")


async def test_it_has_what_the_first_page_shows(gateway: Gateway) -> None:
    """Of a gateway that has just been built: what is not known yet is null."""
    made = await Overview(gateway.health, gateway.vectorstore, Counters(), gateway.jobs, gateway.metrics).make()
    assert (made["ready"], made["phase"]) == (False, "preparing")
    assert made["totals"] == {"collections": 0, "records": 0, "hnsw_bytes": 0}
    assert made["requests"] == {"reads_per_s": None, "writes_per_s": None, "failed_per_s": None}
    assert (made["store"], made["restore_s"]) == (None, None)
    assert "collections" not in made, "it may be a long list, and comes once a second"


async def test_requests_a_second_are_those_of_the_last_seconds(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads, writes, and those that failed: by the gateway or Chroma, not by the client."""
    now_s = 0.0
    monkeypatch.setattr(overview_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    counters = Counters()
    overview = Overview(gateway.health, gateway.vectorstore, counters, gateway.jobs, gateway.metrics)
    reads, writes = (counters.of(Label(kind, "POST", "none"), kind) for kind in ("read", "write"))

    async def rates() -> tuple[float, float, float]:
        found = (await overview.make())["requests"]
        return found["reads_per_s"], found["writes_per_s"], found["failed_per_s"]

    await overview.make()
    for status in (200,) * 6 + (404, 503):
        reads.add(status, 0.001)
    writes.add(200, 0.001)
    now_s = 2.0
    assert await rates() == (4.0, 0.5, 0.5)
    for _ in range(8):
        now_s += 1
        last = await rates()
    assert last == (0.0, 0.0, 0.0), "what was before the last five seconds does not count"
    for _ in range(100):
        now_s += 1
        await rates()
    assert len(overview._counts) < 20


async def test_the_store_is_looked_at_after_each_snapshot_and_job(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a snapshot is seen soon, and an idle store is asked seldom."""
    looks = 0

    async def look() -> dict[str, object]:
        nonlocal looks
        looks += 1
        return {"reachable": True, "last_snapshot": {"size_bytes": 10**9}}

    monkeypatch.setattr(gateway.health, "store", look)
    monkeypatch.setattr(overview_module, "_LOOK_AGAIN_S", 0.01)
    overview = Overview(gateway.health, gateway.vectorstore, Counters(), gateway.jobs, gateway.metrics)
    watching = asyncio.create_task(overview.watch_store())

    async def until(number: int) -> None:
        deadline = time.monotonic() + 10
        while looks < number:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert looks == number

    await until(1)
    gateway.metrics.last_good_snapshot(1_795_000_000.0)
    await until(2)

    async def verify(_progress: object) -> None:
        """However short it is."""

    gateway.jobs.start("verify", "latest", verify)
    await until(3)
    assert (await overview.make())["restore_s"] > 0
    watching.cancel()


@pytest.mark.parametrize("phrase", PHRASES)
def test_the_warnings_with_advice_are_those_of_the_code(phrase: str) -> None:
    """A warning that is reworded is found here."""
    package = Path(advice.__file__).parents[1]
    assert any(phrase in path.read_text() for path in package.rglob("*.py") if path != Path(advice.__file__))


@pytest.mark.parametrize(
    ("warning", "way_out"),
    [
        (
            "no fencing: the store's conditional writes are broken, so never let two gateways use it at once",
            "Use a store",
        ),
        ("ENOSPC: soon: the data directory has 5 MiB left; free some space", "Free some space"),
        (
            "EROFS: the data directory /data cannot be written: x; mount the file system for writing",
            "Make the data dir",
        ),
        ("EACCES: index files cannot be written, so what comes in stays in the log: a/b", "Let the user"),
        ("EMFILE: soon: 900 indexes need 4500 open files, and Chroma may have 4096", "Raise the limit"),
        ("what was written in the last 12 s is not in the store yet: a/b cannot be written: denied", "Bring the store"),
        ("the journal cannot be written: x", "Bring the store back"),
        ("2 snapshot(s) cannot be read, among them x (y): packs that they may name are kept", "Put the manifests back"),
        ("2 snapshot(s) need packs that are missing in the store, not the latest one: x", "Look for what deletes"),
        ("1 collection(s) cannot be read, see `unreadable`; all others are served", "Repair the collection"),
        ("something new", "See docs/troubleshooting.md"),
    ],
)
def test_each_warning_has_a_way_out(warning: str, way_out: str) -> None:
    """Of its own, and not that of another whose words it has too."""
    assert advice_on(warning).startswith(way_out)


async def test_every_warning_is_shown_with_its_way_out(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Message and hint, as an error has them."""
    monkeypatch.setattr(type(gateway.vectorstore), "warnings", ["garbage collection fails, so nothing is deleted: x"])
    made = await Overview(gateway.health, gateway.vectorstore, Counters(), gateway.jobs, gateway.metrics).make()
    (warning,) = made["warnings"]
    assert warning["message"].startswith("garbage collection fails")
    assert warning["hint"].startswith("Allow the gateway to delete")
