"""The production check of a gateway that was just built: nothing runs, and it says so."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.chroma.routes import Action
from gateway.config import Settings
from gateway.errors import StorageUnavailable
from gateway.observability.check import gather
from gateway.observability.check.facts import Facts
from gateway.observability.check.gather import ProductionCheck, _supported
from gateway.observability.memory import limit_bytes
from gateway.proxy.counters import Label
from gateway.server.container import Gateway
from tests.keys import Keys


def check_of(gateway: Gateway) -> ProductionCheck:
    return ProductionCheck(
        gateway.settings,
        gateway.keyring,
        gateway.vectorstore,
        gateway.data_path,
        gateway.collector,
        gateway.health.started_s,
    )


async def statuses(gateway: Gateway) -> dict[str, str]:
    report = await check_of(gateway).run()
    return {each.code: each.status for each in report.findings}


def built(path: Path, **more: Any) -> Gateway:
    (path / "data").mkdir(exist_ok=True)
    (path / "store").mkdir(exist_ok=True)
    return Gateway(Settings(data_dir=path / "data", store=f"file://{path}/store", **more), "an-admin-token")


async def test_by_default_it_is_not_made_for_production(tmp_path: Path) -> None:
    """The store is on the disk of the data, there is no backup, and every process here may do everything."""
    found = await statuses(built(tmp_path))
    assert (found["store"], found["backup"], found["open-loopback"]) == ("fail", "fail", "warn")
    assert (found["keys"], found["tls"], found["limits"], found["store-reachable"]) == ("pass",) * 4


async def test_what_cannot_be_looked_up_is_not_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Chroma, its data and the store, the check answers all the same."""
    gateway = built(tmp_path)

    async def away(*_: object) -> None:
        raise StorageUnavailable("the store is away")

    monkeypatch.setattr(type(gateway.vectorstore.repository), "page", away)
    report = await check_of(gateway).run()
    unknown = {each.code for each in report.findings if each.status == "unknown"}
    of_the_data = {"embedding-function", "dimension", "distance", "index-settings", "metadata", "filters"}
    assert {"backup", "store-reachable", "memory", "disk", "log-backlog", "batches", *of_the_data} <= unknown
    assert (report.status, report.collections, report.collections_looked_at) == ("fail", None, 0)


async def test_a_store_that_does_not_answer_does_not_hold_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = built(tmp_path)
    monkeypatch.setattr(gather, "_STORE_TIMEOUT_S", 0.0)
    assert (await statuses(gateway))["store-reachable"] == "unknown"


@pytest.mark.parametrize(
    ("settings", "limits"), [({}, "warn"), ({"limit_in_flight": 8}, "pass"), ({"limit_requests_per_s": 9.5}, "pass")]
)
async def test_limits_of_all_keys(tmp_path: Path, settings: dict[str, Any], limits: str) -> None:
    """A key without limits of its own has those of the settings."""
    keys = Keys(tmp_path / "keys.json")
    keys.add("app", "writer")
    found = await statuses(built(tmp_path, keys_file=keys.path, host="0.0.0.0", **settings))
    assert (found["keys"], found["limits"]) == ("pass", limits)


async def test_limits_of_one_key(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    keys.add("app", "writer", limits={"in_flight": 8})
    assert (await statuses(built(tmp_path, keys_file=keys.path, host="0.0.0.0")))["limits"] == "pass"


async def test_an_open_gateway_with_a_proxy_in_front_fails(tmp_path: Path) -> None:
    """The setting for everybody, and a proxy on this machine, which makes everybody a local client."""
    gateway = built(tmp_path)
    gateway.data_path.policy.usage.connections.forwarded = 1
    assert (await statuses(gateway))["keys"] == "fail"
    assert (await statuses(built(tmp_path, host="0.0.0.0", allow_anonymous=True)))["keys"] == "fail"


async def test_who_reads_the_metrics_hears_of_failures(tmp_path: Path) -> None:
    gateway = built(tmp_path)
    assert (await statuses(gateway))["alerts"] == "unknown"
    await gateway.collector.render()
    assert (await statuses(gateway))["alerts"] == "pass"


@pytest.mark.parametrize(("status", "clients"), [(401, "pass"), (410, "warn")])
async def test_a_scanner_without_a_key_is_no_old_client(tmp_path: Path, status: int, clients: str) -> None:
    gateway = built(tmp_path)
    counter = gateway.data_path.policy.counters.of(Label(Action.RETIRED.value, "GET", "none"), "read")
    counter.add(status, 0.001)
    assert (await statuses(gateway))["clients"] == clients


async def test_many_who_ask_at_once_cost_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader's key may ask too, and each run reads the data directory and the store."""
    check, looks = check_of(built(tmp_path)), 0
    look = check._facts

    async def counted() -> Facts:
        nonlocal looks
        looks += 1
        return await look()

    monkeypatch.setattr(check, "_facts", counted)
    await asyncio.gather(*(check.run() for _ in range(20)))
    assert looks == 2
    await check.run()
    assert looks == 3, "one who asks later gets what is so then"


def test_the_supported_versions_are_those_of_the_package() -> None:
    assert _supported() == ("1.5.9", "1.6")


def test_there_is_memory() -> None:
    found = limit_bytes()
    assert found is not None
    assert found > 100 << 20
