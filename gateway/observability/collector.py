"""Metrics that are read when Prometheus scrapes: requests, states, sizes.

The data path counts plain numbers, and only a scrape renders them. Sizes are read in a thread and are cached for
`_CACHED_S`: reading them walks through the data directory, which is too slow for every scrape.
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
"""The largest collections have a series each. The others are added up in one."""
_CACHED_S = 15.0
_STATUSES = {BROKEN: "broken", CLIENT_GONE: "client_gone"}


class MetricsCollector:
    """A custom collector for `prometheus_client`. `render` is the response of `GET /metrics`."""

    def __init__(self, metrics: Metrics, data_path: DataPath, vectorstore: VectorStore) -> None:
        self._metrics, self._data_path, self._vectorstore = metrics, data_path, vectorstore
        self._counters = data_path.policy.counters
        self._usage: DiskUsage | None = None
        self._measured_at_s = float("-inf")
        self._measuring = asyncio.Lock()
        self._started_s = time.time()
        self.scraped_at_s: float | None = None
        """When `render` was last called, on the monotonic clock."""
        metrics.registry.register(self)

    async def render(self) -> bytes:
        """All metrics as Prometheus text."""
        self.scraped_at_s = time.monotonic()
        await self.disk_usage()
        return generate_latest(self._metrics.registry)

    async def disk_usage(self, age_s: float | None = None) -> DiskUsage | None:
        """Sizes that are at most `age_s` old, `_CACHED_S` if that is None; None if they cannot be read."""
        async with self._measuring:
            if time.monotonic() - self._measured_at_s >= (_CACHED_S if age_s is None else age_s):
                try:
                    self._usage = await asyncio.to_thread(disk_usage, self._vectorstore.directory.path)
                except OSError as error:
                    self._usage = None
                    log.warning("the data directory cannot be read", cause=str(error))
                self._measured_at_s = time.monotonic()
            return self._usage

    def describe(self) -> list[Metric]:
        """Nothing, so that the registry does not call `collect` when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._requests()
        yield from self._states()
        yield from self._journal()
        yield from self._process()
        if self._usage is not None:
            yield from _sizes(self._usage)

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            f"{PREFIX}_requests",
            "Finished requests to /api/, by route, method, status and name of the key.",
            labels=["route", "method", "status", "key"],
        )
        for label, counter in list(self._counters.by_label.items()):
            for status, number in list(counter.statuses.items()):
                requests.add_metric([label.route, label.method, _STATUSES.get(status, str(status)), label.key], number)
        yield requests
        for name, help_, histograms in (
            (
                "request",
                "Time from the head of a request to the end of its response, in the gateway.",
                self._counters.whole,
            ),
            (
                "upstream",
                "Time from sending a request to Chroma to the beginning of the response.",
                self._counters.upstream,
            ),
        ):
            family = HistogramMetricFamily(f"{PREFIX}_{name}_duration_seconds", help_, labels=["kind"])
            for kind, histogram in list(histograms.items()):
                family.add_metric([kind], _buckets(histogram), histogram.sum_s)
            yield family

    def _states(self) -> Iterator[Metric]:
        gate, pool, watch = self._vectorstore.gate, self._data_path.pool, self._vectorstore.watch
        leader = self._vectorstore.leader
        repository = self._vectorstore.repository
        state = GaugeMetricFamily(
            f"{PREFIX}_gate_state", "1 for the present state of the gate, 0 for the others.", labels=["state"]
        )
        for each in State:
            state.add_metric([each.value], int(gate.state is each))
        yield state
        for name, help_, value in (
            ("gate_refusing", "Whether every request is refused, as during a restore.", gate.refusal is not None),
            ("writes_under_way", "Writes in progress in Chroma.", gate.writes),
            ("writes_waiting", "Writes that wait for the gate.", gate.waiting),
            ("requests_in_flight", "Requests in progress in Chroma, without health checks.", pool.in_flight),
            ("requests_queued", "Requests that wait because Chroma has as many as it may have.", pool.queued),
            ("connections", "Connected clients.", len(self._data_path.clients)),
            ("chroma_up", "Whether Chroma runs.", watch.up),
            ("unreadable_collections", "Collections that Chroma cannot read.", len(watch.unreadable)),
            ("lease_held", "Whether this gateway holds the lease of its store prefix.", leader.may_write),
            ("lease_epoch", "The lease's epoch, 0 if there is none.", leader.epoch or 0),
            ("writes_refused", "Whether writes are refused while reads go on.", gate.rejects_writes),
            (
                "data_dir_gone",
                "Whether the data directory was deleted, unmounted or replaced while Chroma uses it.",
                gate.lost is not None,
            ),
            (
                "unsaved_seconds",
                "Time since the oldest write that the journal lacks; without a journal, that the last snapshot lacks.",
                self._vectorstore.unsaved_s,
            ),
            (
                "gc_failing",
                "Whether the last garbage collection failed.",
                self._vectorstore.operations.gc_problem is not None,
            ),
            ("unreadable_snapshots", "Snapshots whose manifests cannot be read.", len(repository.unreadable)),
            ("broken_snapshots", "Snapshots that need packs which are not in the store.", len(repository.broken)),
            (
                "missing_packs",
                "Packs that a snapshot needs and that are not in the store.",
                len(repository.missing_packs),
            ),
        ):
            yield GaugeMetricFamily(f"{PREFIX}_{name}", help_, value=float(value))
        yield CounterMetricFamily(
            f"{PREFIX}_chroma_starts", "Starts of Chroma since the gateway started.", value=watch.starts
        )

    def _journal(self) -> Iterator[Metric]:
        journal, window = self._vectorstore.journal, self._vectorstore.history.known
        counts = journal.counts
        for name, help_, value in (
            ("journal_on", "Whether what is written goes to the journal.", journal.is_on),
            ("journal_lag_seconds", "Time since the oldest write that the journal lacks, 0 if none.", journal.lag_s),
            ("journal_waiting", "Requests that wait until the journal has what they wrote.", journal.waiting),
            (
                "journal_recovery_seconds",
                "About how much longer than that of the newest snapshot a restore would take now.",
                journal.recovery_s,
            ),
            (
                "journal_restorable_from_timestamp_seconds",
                "The oldest moment from which on any moment can be restored, 0 if none is known.",
                window.oldest.timestamp() if window else 0,
            ),
        ):
            yield GaugeMetricFamily(f"{PREFIX}_{name}", help_, value=float(value))
        for name, help_, value in (
            ("journal_entries", "Entries stored.", counts.entries),
            ("journal_stored_bytes", "Bytes of these entries.", counts.stored_bytes),
            ("journal_failures", "Attempts to store an entry that failed.", counts.failures),
            ("journal_cut_seconds", "Time spent making cuts.", counts.cuts.total_s),
            ("journal_put_seconds", "Time spent storing entries.", counts.puts.total_s),
        ):
            yield CounterMetricFamily(f"{PREFIX}_{name}", help_, value=float(value))

    def _process(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(f"{PREFIX}_info", "Always 1. The label has the version.", labels=["version"])
        info.add_metric([gateway.__version__], 1)
        yield info
        yield GaugeMetricFamily(
            f"{PREFIX}_start_time_seconds", "Start of the gateway, in seconds since the epoch.", value=self._started_s
        )
        if (resident := resident_bytes()) is not None:
            yield GaugeMetricFamily(
                f"{PREFIX}_resident_memory_bytes", "Resident memory of the gateway process.", value=resident
            )


def _sizes(found: DiskUsage) -> Iterator[Metric]:
    for name, help_, value in (
        ("data_dir_bytes", "Size of the data directory.", found.size_bytes),
        ("data_dir_free_bytes", "Free space on its file system.", found.free_bytes),
        ("sqlite_bytes", "Size of Chroma's database with its journal.", found.sqlite_bytes),
        ("log_backlog_records", "Rows in Chroma's log.", found.log_records),
        ("orphaned_directories", "Index directories of deleted collections.", found.orphaned_directories),
        ("orphaned_bytes", "Size of those directories.", found.orphaned_bytes),
        ("collections", "Number of collections.", len(found.collections)),
    ):
        yield GaugeMetricFamily(f"{PREFIX}_{name}", help_, value=value)
    records = GaugeMetricFamily(
        f"{PREFIX}_collection_records",
        f"Records of each of the {MAX_COLLECTIONS} largest collections. The series without names is the rest.",
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
