"""The facts of a gateway on which every rule passes, and ways to change them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.chroma.collection_facts import CollectionFacts, EmbeddingFunction
from gateway.chroma.database import Collection
from gateway.chroma.segments import IndexSettings
from gateway.observability.check.facts import (
    Access,
    Clients,
    Collections,
    Disk,
    Facts,
    Missing,
    Monitoring,
    QueriedCollection,
    Readiness,
    Saving,
    Versions,
    Writes,
)
from gateway.snapshot.model import Snapshot, Verification

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
SNAPSHOT_ID = "20261127T110000Z-3f9a1c"


def snapshot(**changes: Any) -> Snapshot:
    return Snapshot(
        **{
            "id": SNAPSHOT_ID,
            "created_at": NOW - timedelta(hours=1),
            "chroma_version": "1.5.9",
            **changes,
        }
    )


def verified(*, ok: bool = True, age: timedelta = timedelta(days=1)) -> tuple[str, Verification]:
    return SNAPSHOT_ID, Verification(ok=ok, level="boot", at=NOW - age)


def collection(records: int = 1000, dimension: int | None = 1536, **changes: Any) -> CollectionFacts:
    """Texts with a model of OpenAI, compared by cosine, with metadata."""
    return CollectionFacts(
        **{
            "collection": Collection("default_tenant", "default_database", "notes", "id", records, dimension),
            "function": EmbeddingFunction("openai", "text-embedding-3-small"),
            "settings": IndexSettings(space="cosine"),
            "keys": ("source",),
            "has_metadata": True,
            "has_documents": True,
            "oldest": NOW - timedelta(days=1),
            "norms": (1.0,) * 16,
            **changes,
        }
    )


def queried(total: int = 100, nothing: int = 5, since: datetime | None = None, **changes: Any) -> QueriedCollection:
    return QueriedCollection(collection(**changes), total, nothing, since or NOW - timedelta(hours=1))


CLEAN = Facts(
    now=NOW,
    uptime_s=3600,
    readiness=Readiness(True, "everything is served", ()),
    saving=Saving(
        store="s3://bucket/prefix",
        same_disk=None,
        journal_on=True,
        journal_interval_s=1,
        journal_lag_s=0.5,
        journal_problem=None,
        acknowledges_stored=False,
        schedule="GATEWAY_SNAPSHOT_INTERVAL_S=3600",
        interval_s=3600,
        keeps_some=True,
        may_delete=True,
        role="writer",
        conditional_writes="kept",
    ),
    snapshots=(snapshot(),),
    verified=verified(),
    access=Access(
        host="0.0.0.0",  # nothing listens
        is_loopback=False,
        is_closed=True,
        limited=True,
        unlimited=(),
        forwarded=10,
        encrypted=10,
        clear=0,
        private=0,
    ),
    collections=Collections(1, (collection(),)),
    queried=(queried(),),
    clients=Clients({"1.5.9": 10}, 0),
    writes=Writes(requests=1000, busiest=600, rows=100_000),
    max_batch=5461,
    disk=Disk(1 << 30, 1 << 29, 10 << 30, 500, 1 << 20, 1),
    memory_bytes=4 << 30,
    versions=Versions("1.5.9", ("1.5.9", "1.6")),
    monitoring=Monitoring(True, None),
)


def changed(**groups: Any) -> Facts:
    """`CLEAN` with other facts: a dictionary changes the fields of a group, everything else takes its place."""
    return replace(
        CLEAN,
        **{
            name: replace(getattr(CLEAN, name), **value) if isinstance(value, dict) else value
            for name, value in groups.items()
        },
    )


def of(*collections: CollectionFacts) -> dict[str, Any]:
    """These collections in place of the clean one."""
    return {"collections": Collections(len(collections), collections)}


MISSING = Missing("the store does not answer")
