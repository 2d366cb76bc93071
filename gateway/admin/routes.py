"""Every method of the admin API, written once for `Admin` and `AsyncAdmin`.

All raise the errors of `gateway.admin.errors`. A method that starts a job waits for its end. If the waiting is
interrupted (Ctrl-C, a cancelled task), the job is cancelled. If the connection breaks, the job goes on: see `jobs`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import quote

from gateway.admin.answers import (
    CheckReport,
    Collection,
    CollectionList,
    DatabaseList,
    Document,
    DocumentList,
    Flags,
    Flushed,
    GcResult,
    History,
    Job,
    Link,
    Quiesced,
    Repaired,
    RestoredSnapshot,
    RestoredState,
    RestorePreview,
    Resumed,
    Snapshot,
    SnapshotList,
    Verification,
)
from gateway.admin.calls import Body, Call, OnBytes, OnJob, call, ignore, never

# In the classes below `list` is a method.
_Jobs = list[Job]
_Names = list[str]


class GatewayRoutes:
    """Methods about the gateway as a whole."""

    @call
    def request(self, method: str, path: str, *, params: dict[str, Any] | None = None, json: Any = None) -> Call[Any]:
        """Send any request and return the JSON of the answer, None if it has no body."""
        return Call(method, path, params=params or {}, json=json)

    @call
    def status(self) -> Call[dict[str, Any]]:
        """Health, sizes, collections, lease, store and last error. Safe to retry."""
        return Call("GET", "/admin/status")

    @call
    def check(self) -> Call[CheckReport]:
        """What production asks for, looked up on the live system. Takes up to 5 s; safe to retry."""
        return Call("GET", "/admin/check")

    @call
    def flush(self, position: str | None = None) -> Call[Flushed]:
        """Wait until everything that was acknowledged before is stored, or up to `position`. Safe to retry.

        Raises UniqueConstraintError where the journal is off, and where what was written at `position` was lost.
        """
        return Call("POST", "/admin/flush", json={"position": position})

    @call
    def restore(self, at: str, *, on_job: OnJob = ignore) -> Call[RestoredState]:
        """Go back to a moment (RFC 3339, or `-15m`), a snapshot's id, or `latest`, the newest state that is stored.

        What is served now is stored first: `return_to` is the moment that undoes the restore. After an error the data
        are as before. A retry after a success changes `return_to`.
        """
        return Call("POST", "/admin/restore", json={"at": at}, on_job=on_job)

    @call
    def preview(self, at: str, *, on_job: OnJob = ignore) -> Call[RestorePreview]:
        """Say what `restore` would bring back, and how long it would take. Changes nothing. Safe to retry."""
        return Call("POST", "/admin/restore", json={"at": at, "dry_run": True}, on_job=on_job)

    @call
    def history(
        self,
        *,
        limit: int = 100,
        before: int | None = None,
        parts: int = 0,
        since: str | None = None,
        until: str | None = None,
    ) -> Call[History]:
        """Which moments can be restored, and at most `limit` marks below the number `before`. Safe to retry.

        With `parts` the answer has a `timeline`: the time from `since` to `until` in so many parts.
        """
        given = _given(limit=limit, before=before, parts=parts or None, since=since, until=until)
        return Call("GET", "/admin/history", params=given)

    @call
    def quiesce(self, ttl_s: float = 60) -> Call[Quiesced]:
        """Hold writes back until `resume`, for `ttl_s` at most. Returns when no write is under way; reads go on.

        A retry raises UniqueConstraintError if the first one succeeded.
        """
        return Call("POST", "/admin/quiesce", json={"ttl_s": ttl_s})

    @call
    def resume(self) -> Call[Resumed]:
        """End a quiesce. Safe to retry."""
        return Call("POST", "/admin/resume")

    @call
    def databases(self, *, limit: int = 100, after: str | None = None) -> Call[DatabaseList]:
        """One page of all databases: at most `limit`, after `next` of the page before. Safe to retry."""
        return Call("GET", "/admin/databases", params=_given(limit=limit, after=after))

    @call
    def collections(
        self,
        *,
        tenant: str | None = None,
        database: str | None = None,
        name: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> Call[CollectionList]:
        """One page of the collections: at most `limit`, after `next` of the page before. Safe to retry.

        Only those of `tenant`, of databases named `database`, and whose name contains `name`, where these are given.
        """
        given = _given(tenant=tenant, database=database, name=name, limit=limit, after=after)
        return Call("GET", "/admin/collections", params=given)

    @call
    def collection(
        self,
        collection: str,
        *,
        tenant: str = "default_tenant",
        database: str = "default_database",
        check: bool = False,
    ) -> Call[Collection]:
        """One collection, an id or a name. With `check` the files of its index are read now. Safe to retry."""
        path = f"/admin/collections/{quote(collection, safe='')}"
        return Call("GET", path, params={"tenant": tenant, "database": database, "check": check})

    @call
    def repair(
        self,
        collection: str,
        *,
        tenant: str = "default_tenant",
        database: str = "default_database",
        rebuild: bool = False,
        on_job: OnJob = ignore,
    ) -> Call[Repaired]:
        """Check and repair the index of a collection, an id or a name, with one restart of Chroma. Safe to retry.

        With `rebuild` the index is made anew although nothing is wrong with it.
        """
        path = f"/admin/collections/{quote(collection, safe='')}/repair"
        return Call("POST", path, params={"tenant": tenant, "database": database, "rebuild": rebuild}, on_job=on_job)

    @call
    def gc(self, *, on_job: OnJob = ignore) -> Call[GcResult]:
        """Apply the retention rules, then delete data that no snapshot needs. Safe to retry."""
        return Call("POST", "/admin/gc", on_job=on_job)


def _given(**params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


class SnapshotRoutes:
    """Snapshots. A name is an id, or `latest` where it may be left out."""

    @call
    def take(self, label: str | None = None, *, on_job: OnJob = ignore) -> Call[Snapshot]:
        """Take a snapshot of every write that was acknowledged before. A retry may take a second one."""
        return Call("POST", "/admin/snapshot", json={"label": label}, on_job=on_job)

    @call
    def list(self, *, limit: int = 1000, after: str | None = None) -> Call[SnapshotList]:
        """One page of the snapshots, newest first: at most `limit`, those that come after the one `after`.

        `all` yields those of all pages. Safe to retry.
        """
        return Call("GET", "/admin/snapshot", params=_given(limit=limit, after=after))

    @call
    def get(self, snapshot: str = "latest") -> Call[Snapshot]:
        """One snapshot. Raises NotFoundError if it does not exist. Safe to retry."""
        return Call("GET", _snapshot(snapshot))

    @call
    def delete(self, snapshot: str, *, on_job: OnJob = ignore) -> Call[None]:
        """Delete a snapshot. Data that others share stay, and the moments that need it go.

        A retry raises NotFoundError if the first one succeeded.
        """
        return Call("DELETE", _snapshot(snapshot), on_job=on_job)

    @call
    def restore(self, snapshot: str = "latest", *, on_job: OnJob = ignore) -> Call[RestoredSnapshot]:
        """Serve a snapshot in place of the present data. `return_to` is the moment that undoes it, if there is one.

        Returns when the restored data are served. After an error the data are as before. A retry of `latest` restores
        what is the latest snapshot then.
        """
        return Call("POST", f"{_snapshot(snapshot)}/restore", on_job=on_job)

    @call
    def verify(
        self, snapshot: str = "latest", level: Literal["data", "boot"] = "data", *, on_job: OnJob = ignore
    ) -> Call[Verification]:
        """Read every byte of a snapshot; with `boot`, also start a Chroma on a copy. Safe to retry.

        Returns also for a damaged snapshot: see `ok` and `problems`.
        """
        return Call("POST", f"{_snapshot(snapshot)}/verify", json={"level": level}, on_job=on_job)

    @call
    def upload(
        self, archive: Path | Body, label: str | None = None, *, on_job: OnJob = ignore, on_bytes: OnBytes = ignore
    ) -> Call[Snapshot]:
        """Make a snapshot of a plain tar of a Chroma directory. The served data do not change.

        `on_bytes` reports what is sent, `on_job` what the gateway makes of it. A retry may make a second snapshot. A
        `Body` can be sent once.
        """
        body = archive if isinstance(archive, Body) else Body.of_file(archive)
        return Call(
            "POST",
            "/admin/snapshot/upload",
            params={"label": label} if label else {},
            body=body.counted(on_bytes),
            headers={"Content-Type": "application/x-tar"},
            on_job=on_job,
        )

    @call
    def download(self, snapshot: str, file: IO[bytes], *, on_bytes: OnBytes = ignore) -> Call[None]:
        """Write a snapshot to `file` as a plain tar of a directory that Chroma opens without a gateway.

        Safe to retry with an empty file. After an error `file` has a part of it.
        """
        return Call("GET", f"{_snapshot(snapshot)}/archive", into=file, on_bytes=on_bytes)


class JobRoutes:
    """Long operations, since the start of the gateway."""

    @call
    def list(self) -> Call[_Jobs]:
        """The running jobs and the last hundred ended ones, newest first. Safe to retry."""
        return Call("GET", "/admin/jobs", key="jobs")

    @call
    def get(self, job_id: str) -> Call[Job]:
        """One job. Raises NotFoundError if the gateway does not remember it. Safe to retry."""
        return Call("GET", _job(job_id))

    @call
    def cancel(self, job_id: str) -> Call[Job]:
        """Cancel a job, and return when it has cleaned up. A job that has ended stays as it is. Safe to retry."""
        return Call("DELETE", _job(job_id))


class DocumentRoutes:
    """The training documents of one user. Paths are AVATAR/FOLDER or AVATAR/FOLDER/NAME."""

    user_id: str

    @call
    def avatars(self) -> Call[_Names]:
        """The ids of all avatars that have documents. Safe to retry."""
        return Call("GET", self._path(), key="avatars")

    @call
    def list(
        self, folder: str, *, prefix: str = "", after: str = "", limit: int = 1000, digests: bool = False
    ) -> Call[DocumentList]:
        """One page of a folder, by name: at most `limit` documents whose names begin with `prefix` and follow `after`.

        With `digests` the gateway reads those whose SHA-256 it does not know. Safe to retry.
        """
        return Call(
            "GET",
            self._path(folder),
            params={"prefix": prefix, "after": after, "limit": limit, "digests": digests},
        )

    @call
    def put(
        self,
        path: str,
        content: Path | Body,
        *,
        used: bool | None = None,
        sha256: str | None = None,
        defer_flag: bool = False,
        on_bytes: OnBytes = ignore,
    ) -> Call[Document]:
        """Store a document, in place of one of that name. `used` sets its flag.

        A body that has not the digest `sha256`, in hex, is not stored. With `defer_flag` the next training writes the
        flag. Safe to retry. A `Body` can be sent once.
        """
        params = {name: value for name, value in (("used", used), ("sha256", sha256)) if value is not None}
        params |= {"defer_flag": True} if defer_flag else {}
        body = content if isinstance(content, Body) else Body.of_file(content)
        return Call("PUT", self._path(path), params=params, body=body.counted(on_bytes))

    @call
    def get(self, path: str, file: IO[bytes], *, on_bytes: OnBytes = ignore) -> Call[None]:
        """Write a document to `file`. Safe to retry with an empty file. After an error `file` has a part of it."""
        return Call("GET", self._path(path), into=file, on_bytes=on_bytes)

    @call
    def delete(self, path: str) -> Call[None]:
        """Delete a document and its flag. A retry raises NotFoundError if the first one succeeded."""
        return Call("DELETE", self._path(path))

    @call
    def copy(self, path: str, to: str, *, replace: bool = False) -> Call[Document]:
        """Copy a document within the store. Without `replace` a retry raises an error if the first one succeeded."""
        avatar, _, target = to.partition("/")
        return Call("POST", self._path(path), json={"avatar_id": avatar, "path": target, "replace": replace})

    @call
    def flag(self, path: str, used: bool) -> Call[Document | Flags]:
        """Set whether training uses a document, or every document of a folder. Safe to retry."""
        return Call("PATCH", self._path(path), json={"used": used})

    @call
    def link(self, path: str, expires_s: int = 3600) -> Call[Link]:
        """A URL that downloads a document without a key. Safe to retry. Not every store has such URLs."""
        return Call("GET", self._path(path), params={"link_s": expires_s})

    @call
    def train(
        self,
        avatar: str,
        request: dict[str, Any] | None = None,
        *,
        on_job: OnJob = ignore,
        goes_on: Callable[[], bool] = never,
    ) -> Call[dict[str, Any]]:
        """Make the collection of an avatar hold exactly its used documents. Returns what changed. Safe to retry.

        If the waiting is interrupted, the training is cancelled unless `goes_on` returns true.
        """
        path = f"{self._path(avatar)}/vectorstore/train"
        return Call("POST", path, json=request or {}, on_job=on_job, goes_on=goes_on, always_a_job=True)

    @call
    def delete_avatar(self, avatar: str, *, on_job: OnJob = ignore) -> Call[dict[str, Any]]:
        """Delete an avatar with all its documents and its collection. Safe to retry until it raises NotFoundError."""
        return Call("DELETE", self._path(avatar), json={"avatar_id": avatar}, on_job=on_job, always_a_job=True)

    def _path(self, path: str = "") -> str:
        avatars = f"/admin/users/{quote(self.user_id, safe='')}/avatars"
        return f"{avatars}/{quote(path)}" if path else avatars


def _snapshot(name: str) -> str:
    return f"/admin/snapshot/{quote(name, safe='')}"


def _job(job_id: str) -> str:
    return f"/admin/jobs/{quote(job_id, safe='')}"
