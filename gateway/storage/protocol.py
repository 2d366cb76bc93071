"""The contract of an object store, in prose. `tests/contract` asks it of every implementation.

An implementation is one file of this package, and a line in `gateway.storage.registry`.

**Keys.** A key has parts with "/" between them, such as `snapshots/a/manifest.json`. It is relative to the root of
the store (`GATEWAY_STORE`), never absolute, and has no part that is empty, "." or "..". It has at most 1024
bytes of UTF-8. Methods raise InvalidRequest for anything else (`check_key`).

**Objects are whole.** A reader sees the old object or the new one, never a mixture. An object whose write has
returned survives a power cut. An upload that does not come to its end leaves nothing under its key.

**Versions and tags.** A version is an opaque token that changes whenever the bytes under a key change. Writing the
same bytes again may keep it (S3's is the ETag, a digest): states that must be told apart have to differ in their
bytes. A tag is what `list` and `head` tell of an object for free. It changes whenever the bytes change, and may
change when the same bytes are written again (S3's is the ETag, a file's is made of its inode, times and size). A
tag is not a version and cannot be given in place of one.

**Errors.** Every method raises:

- StorageUnavailable: the store cannot be reached, or answers "later", even after retries. Transient.
- StorageDenied: credentials, bucket or permission are wrong. Permanent until an operator changes them.
- DiskFull: the disk of a `file://` store is full.

A store that cannot be read raises one of these. Only a store that was read and holds nothing may answer so.

**Retries.** Implementations retry what is safe to repeat. A conditional write is sent once: after a lost answer a
repetition would report our own write as that of another writer. The loss is raised as StorageUnavailable; the
caller reads the object to learn whether it was written.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from gateway.errors import InvalidRequest

MAX_KEY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing tells it. `modified_at` is in UTC, by the clock of the store."""

    key: str
    size_bytes: int
    modified_at: datetime
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Versioned:
    """The bytes of an object and the version that they had when they were read."""

    data: bytes
    version: str


class Grant(NamedTuple):
    """What the access control of a store must allow for `operation`, in its own words: `action` on `resource`."""

    operation: str
    action: str
    resource: str


class Storage(Protocol):
    """An object store, or a part of one. Safe for concurrent use from one event loop."""

    @property
    def url(self) -> str:
        """Where it is, for people. It ends with "/" and has no credentials in it."""
        ...

    async def put(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, in place of what was there. Safe to retry."""
        ...

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """Store `data` under `key` unless the key exists. Return whether it was stored.

        Atomic across writers. Not safe to retry blindly: see "Retries" above.
        """
        ...

    async def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        """Replace the object under `key` if it still has `version`. Return whether it was replaced.

        False too if the key no longer exists. Atomic across writers. Not safe to retry blindly: see "Retries" above.
        """
        ...

    async def get(self, key: str) -> bytes:
        """Return all bytes of the object. Raises ObjectMissing. Safe to retry."""
        ...

    async def get_versioned(self, key: str) -> Versioned:
        """Return all bytes of the object with their version. Raises ObjectMissing. Safe to retry."""
        ...

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from byte `start` on: fewer where the object ends, b"" past its end.

        Raises ObjectMissing. Safe to retry.
        """
        ...

    async def head(self, key: str) -> ObjectInfo:
        """Return what a listing tells of the object. Raises ObjectMissing. Safe to retry."""
        ...

    def download(self, key: str, start: int = 0, length: int | None = None, *, tag: str) -> AsyncIterator[bytes]:
        """Yield the object that has `tag`, in pieces: `length` bytes from byte `start` on, or all to its end.

        All pieces are of one object. Raises ObjectMissing if the object is gone or has another tag, at the latest
        where bytes of another object would begin. A body that breaks off is continued from there. Safe to retry.
        """
        ...

    async def upload(
        self, key: str, pieces: AsyncIterator[bytes], *, if_absent: bool = False, if_tag: str | None = None
    ) -> ObjectInfo | None:
        """Store the bytes that `pieces` yields under `key`. Return the object, or None if a condition failed.

        With `if_absent` the key must not exist; with `if_tag` it must exist and have that tag. Both are as atomic
        as conditional puts. Where a condition fails, nothing is stored. What `pieces` raises is passed on, and nothing
        is stored then either, so a caller can refuse an upload at its last byte. It is never held in memory whole.
        Not retried as a whole, since `pieces` can be read only once.
        """
        ...

    async def copy(self, source: str, target: str, *, if_absent: bool = False) -> bool:
        """Store the bytes of `source` under `target` too, within the store. Return whether they were stored.

        False only if `if_absent` is given and `target` exists. Raises ObjectMissing. Safe to retry.
        """
        ...

    async def presign(self, key: str, expires_s: int, filename: str) -> str | None:
        """Return a URL with which anyone can get the object for `expires_s` seconds; None if the store has none.

        It does not look whether the object exists. A browser saves the object as `filename`.
        """
        ...

    def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield every object whose key starts with `prefix`, in the order of their keys.

        `prefix` is compared as a string: `a/b` finds `a/bc` too; end it with "/" for a folder. With `after`, only
        keys that come after it, which need not exist itself. Safe to retry.
        """
        ...

    def folders(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names of the folders directly below `prefix`, in order: "b" for prefix `a/` and key `a/b/c`.

        `prefix` is empty or ends with "/". Safe to retry.
        """
        ...

    async def delete(self, key: str) -> None:
        """Remove the object. A key that does not exist is no error. Safe to retry."""
        ...

    async def delete_all(self, keys: Sequence[str]) -> None:
        """Remove many objects, in any order, and with few requests where the store can. Otherwise as `delete`.

        Raises the first error; others of them may have been removed then.
        """
        ...

    async def close(self) -> None:
        """Close all connections. The store is not used afterwards."""
        ...


def check_key(key: str) -> str:
    """Return `key` if it can be a key, else raise InvalidRequest."""
    parts = key.split("/")
    if not key or "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise InvalidRequest(f"{key!r} cannot be a key: use relative names without '.', '..' or empty parts")
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"{key!r} cannot be a key: it is not valid Unicode") from None
    if size_bytes > MAX_KEY_BYTES:
        raise InvalidRequest(f"{key[:40]!r}… cannot be a key: it has {size_bytes} bytes, the most is {MAX_KEY_BYTES}")
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix` if keys can start with it, else raise InvalidRequest. Every key starts with the empty one."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix
