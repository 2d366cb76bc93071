"""Builds what serves the data path, and what runs beside it, from the settings."""

from pathlib import Path

from gateway.auth.ack import Ack
from gateway.auth.addresses import networks
from gateway.auth.audit import Audit
from gateway.auth.keyring import Keyring
from gateway.auth.keys import parse_keys
from gateway.auth.quota import QuotaLimits
from gateway.chroma.directory import DataDirectory
from gateway.chroma.names import CollectionNames
from gateway.chroma.process import HOST, read_config
from gateway.config import Settings
from gateway.console.feed import Feed
from gateway.documents.embedding import Embedding
from gateway.errors import LeaseLost
from gateway.jobs import Jobs
from gateway.journal.journal import JournalOptions
from gateway.lease.lease import this_process
from gateway.observability.alerts import Alerts
from gateway.observability.collector import MetricsCollector
from gateway.observability.health import Health
from gateway.observability.metrics import Metrics
from gateway.observability.overview import Overview
from gateway.observability.tracing import open_tracing
from gateway.proxy.data_path import DataPath
from gateway.proxy.limits import ProxyLimits
from gateway.proxy.policy import RequestPolicy
from gateway.snapshot.model import Snapshot
from gateway.snapshot.retention import Keep
from gateway.storage import InstrumentedStorage, NoDeleteStorage, Storage, open_storage
from gateway.supervisor.client import SupervisedProcess
from gateway.vectorstore import VectorStore, VectorStoreOptions

WRITTEN_CONFIG = Path("var/chroma.yaml")
"""Chroma's configuration, which the gateway writes and supervisord.conf names."""


class Gateway:
    """What a process has once: keys, the data path, metrics, jobs, and today one vector store."""

    def __init__(self, settings: Settings, admin_token: str) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.alerts = _alerts(settings)
        self.keyring = _keyring(settings, admin_token)
        self.audit = Audit(settings.audit_file)
        self.embedding = Embedding.of(settings.embedding)
        self.storage = InstrumentedStorage(storage_of(settings), self.metrics)
        self.vectorstore = vectorstore_of(settings, self.storage)
        self.vectorstore.operations.on_outcome = self._note_snapshot
        self.tracing = open_tracing() if settings.traces else None
        self.data_path = DataPath(
            self.vectorstore.gate,
            HOST,
            settings.chroma_port,
            _proxy_limits(settings),
            _policy(settings, self.keyring),
            CollectionNames(settings.data_dir, lambda: self.vectorstore.watch.starts),
            self.audit,
            networks(settings.trusted_proxies),
            self.tracing,
            self.vectorstore.journal,
        )
        self.collector = MetricsCollector(self.metrics, self.data_path, self.vectorstore)
        self.health = Health(settings, self.vectorstore, self.collector)
        self.jobs = Jobs(lambda job: self.metrics.job_ended(job.kind, job.state))
        overview = Overview(self.health, self.vectorstore, self.data_path.policy.counters, self.jobs, self.metrics)
        self.feed = Feed(overview.make, overview.watch_store)

    def _note_snapshot(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            self.metrics.snapshot_failed()
            error = self.vectorstore.operations.last_error
            # A gateway without the lease takes no snapshots, which is as it should be.
            if error and error["error"] != LeaseLost.__name__:
                self.alerts.send("snapshot-failed", error["message"], error.get("hint"))
        else:
            self.metrics.snapshot_taken(
                at_s=snapshot.created_at.timestamp(),
                duration_s=snapshot.duration_s,
                drain_s=snapshot.drain_ms / 1e3,
                freeze_s=snapshot.freeze_ms / 1e3,
            )


def storage_of(settings: Settings) -> Storage:
    """The store that `GATEWAY_STORE` names. Nothing is touched yet. Raises ConfigError."""
    storage = open_storage(settings.store, settings.store_options)
    return NoDeleteStorage(storage) if settings.store_never_delete else storage


def vectorstore_of(settings: Settings, storage: Storage) -> VectorStore:
    """The vector store of `GATEWAY_USER_ID`, on `GATEWAY_DATA_DIR`."""
    log_as = (settings.logs_as_json, settings.log_level)
    control = SupervisedProcess(settings.supervisor_url, "chroma", log_as=log_as) if settings.supervisor_url else None
    options = VectorStoreOptions(
        restore=settings.restore,
        restore_at=settings.restore_at,
        restore_retry_s=settings.restore_retry_s,
        takeover_timeout_s=settings.takeover_timeout_s,
        drain_timeout_s=settings.drain_timeout_s,
        gate_timeout_s=settings.gate_timeout_s,
        snapshot_on_exit=settings.takes_final_snapshot,
        is_unsaved=settings.is_unsaved,
        may_delete=not settings.store_never_delete,
        keep=Keep(
            last=settings.keep_last,
            hourly=settings.keep_hourly,
            daily=settings.keep_daily,
            weekly=settings.keep_weekly,
            monthly=settings.keep_monthly,
            yearly=settings.keep_yearly,
        ),
        gc_grace_s=settings.gc_grace_s,
        journal=JournalOptions(
            interval_s=settings.journal_interval_s,
            ack_timeout_s=settings.gate_timeout_s,
            recovery_s=settings.recovery_s,
            history_s=settings.history_s,
        ),
        allow_reset=settings.allow_reset,
        ready_requires_all=settings.ready_requires_all,
        max_body_bytes=settings.max_body_bytes,
        chroma_settings=read_config(settings.chroma_config) if settings.chroma_config else {},
        written_config=WRITTEN_CONFIG,
    )
    directory = DataDirectory(settings.data_dir)
    return VectorStore(directory, settings.chroma_port, storage, settings.repository_prefix, control, options)


def _alerts(settings: Settings) -> Alerts:
    url = settings.alert_url.get_secret_value() if settings.alert_url else None
    source = {"where": this_process(), "user_id": settings.user_id, "store": settings.store}
    return Alerts(url, source)


def _keyring(settings: Settings, admin_token: str) -> Keyring:
    given = settings.keys.get_secret_value() if settings.keys else None
    return Keyring(admin_token, parse_keys(given, "GATEWAY_KEYS") if given else (), settings.keys_file)


def _policy(settings: Settings, keyring: Keyring) -> RequestPolicy:
    return RequestPolicy(
        keyring,
        anonymous=not settings.is_closed,
        local_hosts_only=settings.local_hosts_only,
        allow_reset=settings.allow_reset,
        max_body_bytes=settings.max_body_bytes,
        limits=QuotaLimits(
            requests_per_s=settings.limit_requests_per_s,
            in_flight=settings.limit_in_flight,
            records=settings.limit_records,
        ),
        origins=settings.origins,
        traced=settings.traces,
        ack=Ack(settings.ack),
    )


def _proxy_limits(settings: Settings) -> ProxyLimits:
    return ProxyLimits(
        client_timeout_s=settings.client_timeout_s,
        queue_timeout_s=settings.gate_timeout_s,
        read_timeout_s=settings.read_timeout_s,
        max_body_bytes=settings.max_body_bytes,
        max_in_flight=settings.max_in_flight,
        max_queued=settings.max_queued,
    )
