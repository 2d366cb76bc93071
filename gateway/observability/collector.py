"""What Prometheus asks for: the data path's numbers, states, and sizes, made into metrics when it asks.

The data path counts plain numbers; nothing is rendered unless somebody scrapes. Sizes are looked up in a thread and
remembered for `_REMEMBERED_S`, since a scrape a second must not cost a walk through the data directory a second.
"""

import asyncio
import time
from collections.abc import Iterator

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

import gateway
from gateway.chroma.disk_usage import DiskUsage, disk_usage
from gateway.observability.memory import resident_bytes
from gateway.observability.metrics import PREFIX, Metrics
from gateway.proxy.counters import BOUNDS_S, BROKEN, CLIENT_GONE, Histogram
from gateway.proxy.data_path import DataPath
from gateway.proxy.gate import State
from gateway.vectorstore import VectorStore

log = structlog.get_logger()

CONTENT_TYPE = CONTENT_TYPE_LATEST
MAX_COLLECTIONS = 100
"""So many, the largest, have a line of their own; the others are summed up."""
_REMEMBERED_S = 15.0
_STATUSES = {BROKEN: "broken", CLIENT_GONE: "client_gone"}


class MetricsCollector:
    """A custom collector; `render` is all that `GET /metrics` answers."""

    def __init__(self, metrics: Metrics, data_path: DataPath, vectorstore: VectorStore) -> None:
        self._metrics, self._data_path, self._vectorstore = metrics, data_path, vectorstore
        self._counters = data_path.policy.counters
        self._usage: DiskUsage | None = None
        self._looked_at_s = float("-inf")
        self._looking = asyncio.Lock()
        self._started_s = time.time()
        metrics.registry.register(self)

    async def render(self) -> bytes:
        """All metrics as Prometheus text."""
        await self.disk_usage()
        leader = self._vectorstore.leader
        self._metrics.lease(held=leader.may_write, epoch=leader.epoch or 0)
        self._metrics.refresh()
        return generate_latest(self._metrics.registry)

    async def disk_usage(self) -> DiskUsage | None:
        """The sizes, of at most `_REMEMBERED_S` ago; None where they cannot be had."""
        async with self._looking:
            if time.monotonic() - self._looked_at_s >= _REMEMBERED_S:
                try:
                    self._usage = await asyncio.to_thread(disk_usage, self._vectorstore.directory.path)
                except OSError as error:
                    self._usage = None
                    log.warning("the data directory cannot be looked at", cause=str(error))
                self._looked_at_s = time.monotonic()
            return self._usage

    def describe(self) -> list[Metric]:
        """Nothing: the registry must not collect before there is something."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._requests()
        yield from self._states()
        yield from self._process()
        if self._usage is not None:
            yield from _sizes(self._usage)

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            f"{PREFIX}_requests",
            "Requests to /api/ that ended, by what they were about, method, status and the key's name.",
            labels=["route", "method", "status", "key"],
        )
        for label, counter in list(self._counters.by_label.items()):
            for status, number in list(counter.statuses.items()):
                requests.add_metric([label.route, label.method, _STATUSES.get(status, str(status)), label.key], number)
        yield requests
        for name, help_, histograms in (
            ("request", "From a request's head to the end of its answer, as the gateway saw it.", self._counters.whole),
            ("upstream", "From giving Chroma a request to the beginning of its answer.", self._counters.upstream),
        ):
            family = HistogramMetricFamily(f"{PREFIX}_{name}_duration_seconds", help_, labels=["kind"])
            for kind, histogram in list(histograms.items()):
                family.add_metric([kind], _buckets(histogram), histogram.sum_s)
            yield family

    def _states(self) -> Iterator[Metric]:
        gate, pool, watch = self._vectorstore.gate, self._data_path.pool, self._vectorstore.watch
        state = GaugeMetricFamily(f"{PREFIX}_gate_state", "1 for the state the gate is in.", labels=["state"])
        for each in State:
            state.add_metric([each.value], int(gate.state is each))
        yield state
        for name, help_, value in (
            ("gate_refusing", "Whether everything is turned away, as during a restore.", gate.refusal is not None),
            ("writes_under_way", "Writes that Chroma works on.", gate.writes),
            ("writes_waiting", "Writes that wait for the gate.", gate.waiting),
            ("requests_in_flight", "Requests that Chroma works on, health checks aside.", pool.in_flight),
            ("requests_queued", "Requests that wait for Chroma to have time.", pool.queued),
            ("connections", "Clients that are connected.", len(self._data_path.clients)),
            ("chroma_up", "Whether Chroma runs.", watch.up),
            ("unreadable_collections", "Collections that Chroma cannot read.", len(watch.unreadable)),
        ):
            yield GaugeMetricFamily(f"{PREFIX}_{name}", help_, value=float(value))
        yield CounterMetricFamily(
            f"{PREFIX}_chroma_starts", "How often Chroma came up since the gateway did.", value=watch.starts
        )

    def _process(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(f"{PREFIX}_info", "1; the version is in the label.", labels=["version"])
        info.add_metric([gateway.__version__], 1)
        yield info
        yield GaugeMetricFamily(
            f"{PREFIX}_start_time_seconds", "When the gateway started, since the epoch.", value=self._started_s
        )
        if (resident := resident_bytes()) is not None:
            yield GaugeMetricFamily(f"{PREFIX}_resident_memory_bytes", "The gateway's own memory.", value=resident)


def _sizes(found: DiskUsage) -> Iterator[Metric]:
    for name, help_, value in (
        ("data_dir_bytes", "What the data directory holds.", found.size_bytes),
        ("data_dir_free_bytes", "What is free on its file system.", found.free_bytes),
        ("sqlite_bytes", "Chroma's database with its journal.", found.sqlite_bytes),
        ("log_backlog_records", "Records in Chroma's log.", found.log_records),
        ("orphaned_directories", "Directories that deleted collections left behind.", found.orphaned_directories),
        ("orphaned_bytes", "What those hold.", found.orphaned_bytes),
        ("collections", "Collections there are.", len(found.collections)),
    ):
        yield GaugeMetricFamily(f"{PREFIX}_{name}", help_, value=value)
    records = GaugeMetricFamily(
        f"{PREFIX}_collection_records",
        f"Records of a collection; of the {MAX_COLLECTIONS} largest, the rest is in one line without names.",
        labels=["tenant", "database", "collection"],
    )
    largest = sorted((each.collection for each in found.collections), key=lambda each: -each.records)
    for each in largest[:MAX_COLLECTIONS]:
        records.add_metric([each.tenant, each.database, each.name], each.records)
    if rest := largest[MAX_COLLECTIONS:]:
        records.add_metric(["", "", ""], sum(each.records for each in rest))
    yield records


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
