"""The client of the admin API, for Python programs and for our own commands.

    from gateway.admin import Admin

    with Admin("http://127.0.0.1:8000", token="…") as admin:
        snapshot = admin.snapshots.take("before the import")
        admin.snapshots.restore(snapshot["id"])

`AsyncAdmin` has the same methods as coroutines. Results are dictionaries with the fields of the JSON, typed in
`answers`. docs/admin-api.md has more examples.

- `client`, `async_client`  `Admin` and `AsyncAdmin`: who sends requests, and waits for jobs
- `routes`                  every method, written once for both
- `calls`                   what makes one method a blocking and an awaitable one
- `http`                    what both make of requests and answers
- `answers`, `errors`       what methods return and raise

It imports httpx and nothing of the gateway but `gateway.errors`, so a program that uses it stays small.
"""

from gateway.admin.answers import (
    CheckFinding,
    CheckReport,
    Collection,
    CollectionList,
    Database,
    DatabaseList,
    Document,
    DocumentList,
    Flags,
    Flushed,
    GcResult,
    History,
    HistoryGap,
    HistoryHole,
    HistoryMark,
    HistoryPart,
    HistorySnapshot,
    HistoryTimeline,
    Index,
    Job,
    Link,
    Quiesced,
    Repaired,
    RestoredSnapshot,
    RestoredState,
    RestorePreview,
    Resumed,
    Snapshot,
    SnapshotCollection,
    SnapshotList,
    Verification,
)
from gateway.admin.async_client import AsyncAdmin
from gateway.admin.calls import Body
from gateway.admin.client import Admin
from gateway.admin.errors import (
    AnsweredError,
    AuthError,
    AuthorizationError,
    InternalError,
    InvalidArgumentError,
    NotAGateway,
    NotFoundError,
    RateLimitError,
    UniqueConstraintError,
)
from gateway.errors import ConfigError, GatewayError, Unavailable

__all__ = [
    "Admin",
    "AnsweredError",
    "AsyncAdmin",
    "AuthError",
    "AuthorizationError",
    "Body",
    "CheckFinding",
    "CheckReport",
    "Collection",
    "CollectionList",
    "ConfigError",
    "Database",
    "DatabaseList",
    "Document",
    "DocumentList",
    "Flags",
    "Flushed",
    "GatewayError",
    "GcResult",
    "History",
    "HistoryGap",
    "HistoryHole",
    "HistoryMark",
    "HistoryPart",
    "HistorySnapshot",
    "HistoryTimeline",
    "Index",
    "InternalError",
    "InvalidArgumentError",
    "Job",
    "Link",
    "NotAGateway",
    "NotFoundError",
    "Quiesced",
    "RateLimitError",
    "Repaired",
    "RestorePreview",
    "RestoredSnapshot",
    "RestoredState",
    "Resumed",
    "Snapshot",
    "SnapshotCollection",
    "SnapshotList",
    "Unavailable",
    "UniqueConstraintError",
    "Verification",
]
