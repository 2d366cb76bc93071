"""What the gateway asks of an object store, in prose; `tests/contract` asks it of each implementation.

A *key* is `/`-separated, relative to the store's own root (`GATEWAY_STORE`), never absolute and
without `.` or `..` parts; `check_key` refuses others. Objects are written whole: a reader sees the
old object or the new one, never a mixture, and an object whose put returned survives a power cut.
A *version* is an opaque token that changes whenever a key's bytes do. Writing the same bytes again may
keep it (S3's is the ETag, a digest), so what must be told apart has to differ in its bytes.

A *tag* is what a listing or `head` tells of an object: it too changes whenever the key's bytes do, and
maybe when the same bytes are only written again. It costs the store nothing to tell (S3's is the ETag, a
file's is made of its inode, times and size), but it is not a version and cannot be given in place of one.

Large objects come and go in pieces: `upload` and `download` never hold one whole, and an upload that does
not come to its end leaves nothing under its key.

Errors of every method:

- `StorageUnavailable`: could not be reached, or said "later", even after retries. Transient.
- `StorageDenied`: credentials, bucket or permission are wrong. Permanent until somebody mends it.

A store that cannot be read raises one of these; only a store that was read and holds nothing may
answer that it holds nothing.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from gateway.errors import InvalidRequest

MAX_KEY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One listed object. `modified_at` is in UTC and of the store's own clock."""

    key: str
    size_bytes: int
    modified_at: datetime
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Versioned:
    """An object's bytes with the version they had when they were read."""

    data: bytes
    version: str


class Storage(Protocol):
    """One prefix of an object store. Safe for concurrent use from one event loop."""

    @property
    def url(self) -> str:
        """Where it is, for people: no credentials in it."""
        ...

    async def put(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, replacing what was there. Safe to retry."""
        ...

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """Store `data` under `key` unless the key exists; say whether it was stored.

        Atomic across writers. Not retried here once the request may have arrived: a retry after a
        lost answer may return False for our own write, so such a loss is raised as StorageUnavailable
        and the caller looks.
        """
        ...

    async def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        """Replace `key` if it still has `version`; say whether it was replaced.

        False too when the key is gone. Atomic across writers. Lost answers as for `put_if_absent`.
        """
        ...

    async def get(self, key: str) -> bytes:
        """The object's bytes, whole. Raises ObjectMissing. Safe to retry."""
        ...

    async def get_versioned(self, key: str) -> Versioned:
        """The object's bytes with their version. Raises ObjectMissing. Safe to retry."""
        ...

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer where the object ends; b"" past its end.

        Raises ObjectMissing. Safe to retry.
        """
        ...

    async def head(self, key: str) -> ObjectInfo:
        """The object as a listing tells it, without its bytes. Raises ObjectMissing. Safe to retry."""
        ...

    def download(self, key: str, start: int = 0, length: int | None = None, *, tag: str) -> AsyncIterator[bytes]:
        """The object that `tag` was told of, in pieces: `length` bytes from `start`, or all to its end.

        Raises ObjectMissing if it has another tag by now, at the latest where another object's bytes would
        begin: what was yielded before is of one object. Bodies that break off are gone on with from there.
        """
        ...

    async def upload(
        self, key: str, pieces: AsyncIterator[bytes], *, if_absent: bool = False, if_tag: str | None = None
    ) -> ObjectInfo | None:
        """Store what `pieces` yields, under `key`, and tell of it; None, and nothing stored, if a condition failed.

        `if_absent`: the key may not exist; `if_tag`: it must exist and have this tag. Both as atomic as
        conditional puts. What `pieces` raises is raised on, and then too nothing is stored: an upload can be
        refused at its last byte. Not retried as a whole, since `pieces` can be read only once.
        """
        ...

    async def copy(self, source: str, target: str, *, if_absent: bool = False) -> bool:
        """Store the bytes of `source` under `target` too, within the store; say whether it was done.

        False only where `if_absent` was asked for and `target` exists. Raises ObjectMissing. Safe to retry.
        """
        ...

    async def presign(self, key: str, expires_s: int, filename: str) -> str | None:
        """A URL that anybody can get the object with for `expires_s`; None where the store has no such thing.

        It does not look whether the object exists. A browser saves what it gets as `filename`.
        """
        ...

    def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, in key order. An empty store yields nothing.

        `prefix` is compared as a string: `a/b` finds `a/bc` too; end it with `/` for a folder. With
        `after`, only keys that come after it, which need not exist.
        """
        ...

    def folders(self, prefix: str) -> AsyncIterator[str]:
        """The names directly below `prefix`, in order, that are parts of longer keys: "b" for `a/` and `a/b/c`.

        `prefix` is empty or ends with `/`.
        """
        ...

    async def delete(self, key: str) -> None:
        """Remove `key`; a key that is not there is no error. Safe to retry."""
        ...

    async def close(self) -> None:
        """Give connections back. The store is not used afterwards."""
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
        raise InvalidRequest(f"{key[:40]!r}… cannot be a key: {size_bytes} bytes, S3 takes {MAX_KEY_BYTES}")
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix` if keys can start with it, else raise InvalidRequest. The empty one is of all keys."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix
