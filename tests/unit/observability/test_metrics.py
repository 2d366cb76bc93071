"""Metrics have the names that the dashboard and the alerts use."""

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.chroma.database import Collection as Row
from gateway.chroma.disk_usage import CollectionUsage, DiskUsage
from gateway.config import Settings
from gateway.observability.collector import MAX_COLLECTIONS, _sizes
from gateway.observability.metrics import Metrics
from gateway.proxy.counters import BOUNDS_S, Histogram, Label
from gateway.server.container import Gateway
from tests.bare_chroma import bare_chroma

DEPLOY = Path(__file__).parents[3] / "scripts/deploy"
NAME = re.compile(r"\bchroma_gateway_[a-z0-9_]+")


@pytest.fixture
async def gateway_process(tmp_path: Path) -> Gateway:
    settings = Settings(data_dir=tmp_path / "data", store=f"file://{tmp_path}/store", journal_interval_s=0)
    (tmp_path / "data").mkdir()
    built = Gateway(settings, "a-token-for-tests")
    built.data_path.policy.counters.of(Label("query", "POST", "crawler"), "read").add(200, 0.003)
    built.metrics.snapshot_failed()
    built.metrics.store_refused("get", "StorageDenied")
    built.metrics.store_asked("get")
    built.metrics.job_ended("snapshot", "ok")
    return built


async def samples(gateway_process: Gateway) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = (await gateway_process.collector.render()).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return list(group["rules"])


def expressions() -> list[str]:
    panels = json.loads((DEPLOY / "dashboard.json").read_text())["panels"]
    shown = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert len(shown) > 20
    return shown + [rule["expr"] for rule in alerts()]


async def test_every_metric_of_dashboard_and_alerts_exists(gateway_process: Gateway, tmp_path: Path) -> None:
    """Their expressions name only metrics that a scrape has."""
    with bare_chroma(tmp_path / "data"):
        names = {name for name, _ in await samples(gateway_process)}
    for expression in expressions():
        asked = set(NAME.findall(expression))
        assert asked, expression
        # This metric has a series only if there is a collection.
        assert asked - {"chroma_gateway_collection_records"} <= names, expression


def test_every_alert_is_complete() -> None:
    """It has a unique name, a severity and a summary, and the important alerts exist."""
    rules = alerts()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
    for needed in ("SnapshotTooOld", "LeaseLost", "WritesRefused", "DataDirGone", "ChromaDown", "DiskNearlyFull"):
        assert any(rule["alert"].endswith(needed) for rule in rules)


async def test_names_and_units_follow_prometheus(gateway_process: Gateway) -> None:
    """One prefix, seconds and bytes as units, and `_total` at the end of counters."""
    text = (await gateway_process.collector.render()).decode()
    for family in text_string_to_metric_families(text):
        assert family.name.startswith("chroma_gateway_")
        assert not re.search(r"_ms|millis|_kb|_mb", family.name)
        assert family.documentation.endswith(".")
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)


async def test_requests_are_counted_by_route_method_status_and_key(gateway_process: Gateway) -> None:
    """Their durations are in the right buckets of the histogram."""
    found = await samples(gateway_process)
    label = {"route": "query", "method": "POST", "status": "200", "key": "crawler"}
    assert found["chroma_gateway_requests_total", frozenset(label.items())] == 1
    name = "chroma_gateway_request_duration_seconds"
    buckets = [found[f"{name}_bucket", frozenset({"kind": "read", "le": str(bound)}.items())] for bound in BOUNDS_S]
    assert buckets == [0 if bound < 0.003 else 1 for bound in BOUNDS_S]
    assert found[f"{name}_count", frozenset({"kind": "read"}.items())] == 1
    assert found[f"{name}_sum", frozenset({"kind": "read"}.items())] == pytest.approx(0.003)


def test_a_value_at_the_bound_is_in_the_bucket() -> None:
    """In Prometheus `le` means less or equal."""
    histogram = Histogram()
    histogram.add(BOUNDS_S[0])
    histogram.add(1e9)
    assert histogram.counts == [1, *(0 for _ in BOUNDS_S[1:]), 1]


def test_the_age_of_an_unknown_snapshot_is_infinite() -> None:
    """So the alert on the age also fires if there never was a snapshot."""
    metrics = Metrics()
    assert metrics.registry.get_sample_value("chroma_gateway_last_snapshot_age_seconds") == math.inf
    metrics.snapshot_taken(at_s=1.0, duration_s=1, drain_s=0.1, freeze_s=0.01)
    age = metrics.registry.get_sample_value("chroma_gateway_last_snapshot_age_seconds")
    assert age is not None
    assert 1e9 < age < math.inf


def test_no_clock_that_is_set_back_makes_a_snapshot_younger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its age goes on growing. Of a snapshot that is later than the clock the age is negative, not 0."""
    wall_s, steady_s = 1_000_000.0, 50.0
    monkeypatch.setattr(time, "time", lambda: wall_s)
    monkeypatch.setattr(time, "monotonic", lambda: steady_s)
    metrics = Metrics()

    def age() -> float | None:
        return metrics.registry.get_sample_value("chroma_gateway_last_snapshot_age_seconds")

    metrics.last_good_snapshot(wall_s - 10)
    assert age() == 10
    wall_s, steady_s = wall_s - 86_400, steady_s + 100
    assert age() == 110
    metrics.last_good_snapshot(wall_s + 500)
    assert age() == -500
    wall_s += 3600  # the machine slept, and the steady clock did not go on
    assert age() == 3100


async def test_refused_writes_are_seen(gateway_process: Gateway) -> None:
    """Also of a gateway that never had the lease, whose epoch is 0."""
    gate, name = gateway_process.vectorstore.gate, ("chroma_gateway_writes_refused", frozenset[tuple[str, str]]())
    assert (await samples(gateway_process))[name] == 0
    gate.refuse_writes("these data are behind")
    assert (await samples(gateway_process))[name] == 1
    gate.accept_writes()
    gate.lose_writes("the directory is gone")
    assert (await samples(gateway_process))[name] == 1


async def test_an_idle_gateway_has_nothing_unsaved(gateway_process: Gateway) -> None:
    """However old its snapshot is: the alert on it must not fire."""
    (rule,) = [rule for rule in alerts() if rule["alert"] == "ChromaGatewaySnapshotTooOld"]
    assert rule["expr"].startswith("chroma_gateway_unsaved_seconds >")
    unsaved = gateway_process.vectorstore.operations.unsaved_writes
    unsaved.look(0)
    gateway_process.metrics.last_good_snapshot(1.0)
    assert (await samples(gateway_process))["chroma_gateway_unsaved_seconds", frozenset()] > 0
    unsaved.cut()
    unsaved.saved()
    assert (await samples(gateway_process))["chroma_gateway_unsaved_seconds", frozenset()] == 0


def test_the_number_of_series_for_collections_is_bounded() -> None:
    """Ten thousand collections make a hundred series and one for the rest."""
    rows = [CollectionUsage(Row("t", "d", f"c{number}", str(number), number, 3), 0) for number in range(10_000)]
    found = {metric.name: metric for metric in _sizes(DiskUsage(rows, 0, 0, 0, 0, 0, 0))}
    lines = found["chroma_gateway_collection_records"].samples
    assert len(lines) == MAX_COLLECTIONS + 1
    assert sum(line.value for line in lines) == sum(range(10_000))
    assert found["chroma_gateway_collections"].samples[0].value == 10_000


def test_an_unknown_error_makes_no_new_label() -> None:
    """A store cannot choose label values."""
    metrics = Metrics()
    metrics.store_refused("get", "SomethingThatAServerMadeUp")
    assert (
        metrics.registry.get_sample_value("chroma_gateway_store_errors_total", {"operation": "get", "error": "other"})
        == 1
    )
