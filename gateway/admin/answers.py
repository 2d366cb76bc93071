"""What the admin API answers, as the JSON says it: dictionaries with known fields. Moments are RFC 3339 strings in UTC.

`/docs` on a running gateway describes every field. A newer gateway may add fields.
"""

from typing import Any, Literal, TypedDict


class SnapshotCollection(TypedDict):
    """A collection as it is in a snapshot."""

    tenant: str
    database: str
    name: str
    id: str
    records: int
    dimension: int | None


class Verification(TypedDict):
    """What a verification found. A damaged snapshot has `ok` false and its `problems`."""

    ok: bool
    level: Literal["data", "boot"]
    at: str
    duration_s: float
    problems: list[str]


class Snapshot(TypedDict):
    """A snapshot. Its `id` sorts by the time of creation."""

    id: str
    label: str | None
    created_at: str
    state: Literal["complete", "damaged"]
    problem: str | None
    verified: Verification | None
    size_bytes: int
    uploaded_bytes: int
    files: int
    collections: list[SnapshotCollection]
    chroma_version: str | None
    duration_s: float
    drain_ms: float
    freeze_ms: float


class CheckFinding(TypedDict):
    """What one rule of the production check says. `unknown`: it could not be looked up, which is not a pass."""

    code: str
    status: Literal["pass", "unknown", "warn", "fail"]
    where: str
    message: str
    advice: str


class CheckReport(TypedDict):
    """The findings of the production check, the worst first. `status` is that of the worst."""

    status: Literal["pass", "unknown", "warn", "fail"]
    at: str
    duration_s: float
    collections: int | None
    collections_looked_at: int
    findings: list[CheckFinding]


class RestoredSnapshot(Snapshot):
    """A snapshot that is served now. `undo` is the command that goes back to the moment `return_to`."""

    return_to: str | None
    undo: str | None


class RestoredState(TypedDict):
    """The state that is served now. `stored`: whether the store knows already that these are the data now."""

    at: str
    snapshot: str
    entries: int
    return_to: str | None
    undo: str | None
    stored: bool


class RestorePreview(TypedDict):
    """What a restore would bring back."""

    at: str
    snapshot: str
    entries: int
    fetched_bytes: int
    duration_s: float
    collections: list[SnapshotCollection]
    now: list[SnapshotCollection]


class Flushed(TypedDict):
    """Everything up to `position` is stored, and comes back from the moment `at`."""

    position: str
    at: str
    waited_s: float


class HistorySnapshot(TypedDict):
    """A snapshot of the history."""

    id: str
    at: str
    label: str | None


class HistoryMark(TypedDict):
    """Where the line of the history changes."""

    kind: Literal["seal", "restore", "run"]
    at: str
    position: str
    epoch: int
    where: str
    snapshot: str | None
    restored_to: str | None


class HistoryGap(TypedDict):
    """Numbers of entries that are missing."""

    first: int
    last: int


class HistoryPart(TypedDict):
    """What was written from `at` on, in one part of the time."""

    at: str
    entries: int
    stored_bytes: int


class HistoryHole(TypedDict):
    """Between which moments entries are missing."""

    after: str | None
    before: str | None


class HistoryTimeline(TypedDict):
    """How much was written when. Parts without a write are left out."""

    begin: str
    end: str
    step_s: float
    parts: list[HistoryPart]
    holes: list[HistoryHole]


class History(TypedDict):
    """Which moments can be restored. `next` is the `before` of the following page of marks, None at the end."""

    oldest: str | None
    newest: str | None
    full_since: str | None
    merged_resolution_s: float
    snapshots: list[HistorySnapshot]
    marks: list[HistoryMark]
    gaps: list[HistoryGap]
    entries: int
    stored_bytes: int
    next: int | None
    timeline: HistoryTimeline | None


class SnapshotList(TypedDict):
    """A page of snapshots, newest first. `next` is the `after` of the following page, None at the end."""

    snapshots: list[Snapshot]
    next: str | None


class GcResult(TypedDict):
    """What a garbage collection deleted and kept."""

    dropped_snapshots: list[str]
    kept_snapshots: dict[str, list[str]]
    deleted_packs: int
    deleted_bytes: int
    young_packs: int
    held_packs: int
    missing_packs: int
    broken_snapshots: list[str]
    deleted_directories: int
    freed_bytes: int
    problem: str | None


class Job(TypedDict):
    """A long operation: how far it is, or how it ended. `done` and `total` are of the present phase, in `unit`."""

    id: str
    kind: str
    subject: str
    state: Literal["running", "succeeded", "failed", "cancelled"]
    phase: str | None
    done: int
    total: int | None
    unit: str
    rate_per_s: float | None
    remaining_s: float | None
    started_at: str
    ended_at: str | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    exit_code: int | None


class Quiesced(TypedDict):
    """Writes are held back until `expires_at`."""

    state: str
    expires_at: str
    drain_ms: float


class Resumed(TypedDict):
    """Writes go on. `was_quiesced` says whether they had been held back."""

    state: str
    was_quiesced: bool


class Index(TypedDict):
    """The files of one index. docs/admin-api.md explains `state`."""

    state: Literal["empty", "sound", "changed", "torn", "unreadable", "quarantined"]
    problem: str | None
    size_bytes: int
    log_backlog: int


class Collection(TypedDict):
    """A collection with what is known of its index. `dimension` is None before the first record."""

    tenant: str
    database: str
    name: str
    id: str
    records: int
    dimension: int | None
    space: str
    max_neighbors: int
    ef_construction: int
    index: Index


class CollectionList(TypedDict):
    """One page of collections, by tenant, database and name. `next` is None on the last one."""

    collections: list[Collection]
    total: int
    next: str | None


class Database(TypedDict):
    """A database, with the number of its collections."""

    tenant: str
    name: str
    collections: int


class DatabaseList(TypedDict):
    """One page of databases, by tenant and name. `next` is None on the last one."""

    databases: list[Database]
    next: str | None


class Repaired(TypedDict):
    """What the repair of one index found and did. docs/index-repair.md explains `way`."""

    collection: str
    collection_id: str
    way: str
    problems: list[str]
    is_sound: bool
    is_readable: bool
    unreadable_because: str | None
    from_index: int
    from_torn_files: int
    from_log: int
    lost: int
    lost_ids: list[str]
    doubtful_ids: list[str]
    duration_s: float
    outage_s: float


class Document(TypedDict):
    """A training document. `used` is its flag, None in folders without flags."""

    name: str
    size_bytes: int
    type: str
    modified_at: str
    etag: str
    digest: str
    used: bool | None


class DocumentList(TypedDict):
    """A page of documents, by name. `next` is the `after` of the following page, None at the end."""

    documents: list[Document]
    next: str | None


class Flags(TypedDict):
    """Whether each document of a folder is used, by name."""

    flags: dict[str, bool]


class Link(TypedDict):
    """A URL that downloads a document without a key."""

    url: str
    expires_in_s: int
