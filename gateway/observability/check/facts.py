"""What a rule may look at. A fact that could not be looked up is `Missing`, with the reason."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, TypeVar

from gateway.chroma.collection_facts import CollectionFacts
from gateway.snapshot.model import Snapshot, Verification

_T = TypeVar("_T")


@dataclass(frozen=True)
class Missing:
    """In place of a fact that could not be looked up."""

    why: str


class NotKnown(Exception):
    """A rule needs a fact that is `Missing`."""


def known(fact: _T | Missing) -> _T:
    """`fact` itself. Raises NotKnown if it is missing."""
    if isinstance(fact, Missing):
        raise NotKnown(fact.why)
    return fact


@dataclass(frozen=True)
class Readiness:
    """`reason` and `warnings` as in `/readyz`."""

    ready: bool
    reason: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Saving:
    """How what is written reaches the store.

    `schedule` names the setting that takes snapshots, None without one; `interval_s` is of GATEWAY_SNAPSHOT_INTERVAL_S.
    `same_disk`: a file:// store is on the file system of the data directory; None for other stores.
    `conditional_writes` is as in `/admin/status`.
    """

    store: str
    same_disk: bool | None
    journal_on: bool
    journal_interval_s: float
    journal_lag_s: float
    journal_problem: str | None
    acknowledges_stored: bool
    schedule: str | None
    interval_s: float
    keeps_some: bool
    may_delete: bool
    role: str
    conditional_writes: str | None


@dataclass(frozen=True)
class Access:
    """Who reaches this gateway, and how, as settings and connections since its start say.

    `is_closed`: requests to `/api/` need a key. `limited`: the settings limit requests. `unlimited` names keys without
    any limit of requests.
    The numbers are of connections, see `gateway.proxy.usage.Connections`.
    """

    host: str
    is_loopback: bool
    is_closed: bool
    limited: bool
    unlimited: tuple[str, ...]
    forwarded: int
    encrypted: int
    clear: int
    private: int

    @property
    def is_exposed(self) -> bool:
        """Whether other machines reach it."""
        return not self.is_loopback or self.forwarded > 0


class QueriedCollection(NamedTuple):
    """Answers to queries of one collection since `since`; `nothing` of them had no record."""

    facts: CollectionFacts
    total: int
    nothing: int
    since: datetime


@dataclass(frozen=True)
class Collections:
    """`looked_at` are those with the most records, of `total`."""

    total: int
    looked_at: tuple[CollectionFacts, ...]


@dataclass(frozen=True)
class Clients:
    """Connections by version of the Python client, and requests to API v1, since the gateway's start."""

    python: dict[str, int]
    retired: int


@dataclass(frozen=True)
class Writes:
    """Requests that wrote records since Chroma's start, the most of one minute, and the rows they added to its log."""

    requests: int
    busiest: int
    rows: int


@dataclass(frozen=True)
class Disk:
    """Of the data directory. `index_bytes`: what the vectors and links of all records take in memory."""

    size_bytes: int
    sqlite_bytes: int
    free_bytes: int
    log_rows: int
    index_bytes: int
    collections: int


@dataclass(frozen=True)
class Versions:
    """`supported`: the oldest chromadb that this gateway takes, and the first that it does not."""

    chroma: str
    supported: tuple[str, str]


@dataclass(frozen=True)
class Monitoring:
    """`scraped_s`: how long ago `/metrics` was read, None if never since the gateway's start."""

    alert_url: bool
    scraped_s: float | None


@dataclass(frozen=True)
class Facts:
    """All of them, at the moment `now`.

    `snapshots` are the newest ones, newest first. `verified`: the newest one that was ever verified, and with what
    result. `max_batch`: of Chroma.
    """

    now: datetime
    uptime_s: float
    readiness: Readiness
    saving: Saving
    snapshots: tuple[Snapshot, ...] | Missing
    verified: tuple[str, Verification] | Missing | None
    access: Access
    collections: Collections | Missing
    queried: tuple[QueriedCollection, ...] | Missing
    clients: Clients
    writes: Writes | Missing
    max_batch: int | Missing
    disk: Disk | Missing
    memory_bytes: int | Missing
    versions: Versions
    monitoring: Monitoring
