"""Objects as files below one directory: the default store, and a store for tests.

    <root>/<key>             an object
    <root>/.gateway/lock     locked while a process changes names below the root
    <root>/.gateway/new/     objects being written; a crash may leave files here

A write puts the bytes into a file in `new`, flushes it to the disk, and then renames it to its key under the lock.
The lock makes conditional writes atomic across processes, and it keeps a delete from removing the directory that
a put is about to use. Readers do not take it, so a store that cannot be written can still be read.
"""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from gateway.errors import (
    DiskFull,
    GatewayError,
    InvalidRequest,
    ObjectMissing,
    StorageDenied,
    StorageUnavailable,
)
from gateway.files import is_disk_full, sync_directory, sync_file
from gateway.storage.options import StoreOptions
from gateway.storage.protocol import Grant, ObjectInfo, Versioned, check_key, check_prefix

_OURS = ".gateway"
_MAX_NAME_BYTES = 255

# Time enough: the lock is held for a rename, never while bytes are written.
_LOCK_TIMEOUT_S = 30
_LOCK_POLL_S = 0.002

# Bytes read or written in one step.
_PIECE_BYTES = 1 << 20

# No write takes this long after its last byte: an older file in `new` was left by a crash.
_ABANDONED_AFTER_S = 3600

_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NOT_A_DIRECTORY = (errno.ENOTDIR, errno.EEXIST, errno.ELOOP)


def open_url(location: str, _: StoreOptions) -> "FileStorage":
    """Return the store at `file://` and `location`, which is a path; a relative one becomes absolute here."""
    return FileStorage(Path(location).absolute())


def grants(location: str, _: StoreOptions, __: str) -> list[Grant]:
    """Return the least that a gateway must be allowed to do in the store at `location`."""
    root = str(Path(location).absolute())
    writes = ("put", "upload", "abort", "copy", "delete")
    return [Grant(operation, "read", root) for operation in ("get", "list")] + [
        Grant(operation, "write", root) for operation in writes
    ]


class FileStorage:
    """The store below the directory `root`, which the first write makes.

    Three things that S3 allows raise InvalidRequest: the folder `.gateway`, a part of a key with more than 255 bytes,
    and a key that is also the folder of other keys. Symbolic links below the root are not followed. When a call is
    cancelled, its thread still finishes.
    """

    def __init__(self, root: Path) -> None:
        # Not resolved: where the root is a link to a disk that is not mounted, that must stay visible.
        self._root = Path(os.path.abspath(root))  # noqa: PTH100
        self._new = self._root / _OURS / "new"
        self._swept = False

    @property
    def url(self) -> str:
        return f"file://{self._root.as_posix().rstrip('/')}/"

    # ------------------------------------------------------------------ writing

    async def put(self, key: str, data: bytes) -> None:
        await asyncio.to_thread(self._write, key, data, lambda _: True)

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        return await asyncio.to_thread(self._write, key, data, lambda path: not path.exists())

    async def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        return await asyncio.to_thread(self._write, key, data, lambda path: _version_of_file(path) == version)

    async def upload(
        self, key: str, pieces: AsyncIterator[bytes], *, if_absent: bool = False, if_tag: str | None = None
    ) -> ObjectInfo | None:
        def may_replace(path: Path) -> bool:
            if if_absent and path.exists():
                return False
            return if_tag is None or _tag_of_file(path) == if_tag

        def open_new() -> tuple[Path, IO[bytes]]:
            with self._translated("put", key):
                self._path(key)
                new = self._name_new()
                return new, new.open("xb")

        def write(file: IO[bytes], data: bytes) -> None:
            with self._translated("put", key):
                file.write(data)

        def finish(new: Path, file: IO[bytes]) -> ObjectInfo | None:
            with self._translated("put", key):
                sync_file(file)
                status = os.fstat(file.fileno())
                if not self._put_in_place(key, new, may_replace):
                    return None
                # Of the open file: another writer may have replaced the name by now.
                return _info(key, status)

        new, file = await asyncio.to_thread(open_new)
        try:
            async for piece in _gathered(pieces, _PIECE_BYTES):
                await asyncio.to_thread(write, file, piece)
            return await asyncio.to_thread(finish, new, file)
        finally:
            # Not in a thread: a cancelled upload must clean up too.
            file.close()
            new.unlink(missing_ok=True)

    async def copy(self, source: str, target: str, *, if_absent: bool = False) -> bool:
        def copy() -> bool:
            with self._translated("copy", source):
                path = self._path(source)
                self._path(target)
                if not self._is_object(path):
                    raise self._missing(source)
                new = self._name_new()
                try:
                    try:
                        shutil.copyfile(path, new)  # in the kernel
                    except FileNotFoundError:
                        raise self._missing(source) from None
                    with new.open("rb+") as file:
                        sync_file(file)
                    return self._put_in_place(target, new, lambda path: not (if_absent and path.exists()))
                finally:
                    new.unlink(missing_ok=True)

        return await asyncio.to_thread(copy)

    async def presign(self, key: str, expires_s: int, filename: str) -> str | None:
        self._path(key)
        return None

    def _write(self, key: str, data: bytes, may_replace: Callable[[Path], bool]) -> bool:
        """Store `data` if `may_replace`, called under the lock, returns true. Return whether it was stored."""
        with self._translated("put", key):
            self._path(key)
            new = self._name_new()
            try:
                with new.open("xb") as file:
                    file.write(data)
                    sync_file(file)
                return self._put_in_place(key, new, may_replace)
            finally:
                new.unlink(missing_ok=True)

    def _put_in_place(self, key: str, new: Path, may_replace: Callable[[Path], bool]) -> bool:
        """Rename the durable file `new` to `key` if `may_replace`, called under the lock, returns true.

        Return whether it was renamed.
        """
        path = self._path(key)
        with self._locked():
            if path.is_dir():
                raise InvalidRequest(f"{key!r} is a folder of other keys in {self.url}")
            if not may_replace(path):
                return False
            try:
                _make_directories(path.parent)
            except (FileExistsError, NotADirectoryError):
                raise InvalidRequest(f"{key!r}: a part of it is an object in {self.url}") from None
            new.rename(path)
        _sync_directory(path.parent)
        return True

    def _name_new(self) -> Path:
        """A path for a new file. Removes what crashes left, at the first call."""
        _make_directories(self._new)
        if not self._swept:
            self._swept = True
            self._sweep()
        return self._new / uuid.uuid4().hex

    def _sweep(self) -> None:
        for left in self._new.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _ABANDONED_AFTER_S:
                    left.unlink()

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self._delete, key)

    async def delete_all(self, keys: Sequence[str]) -> None:
        for key in keys:
            await self.delete(key)

    def _delete(self, key: str) -> None:
        with self._translated("delete", key):
            path = self._path(key)
            if not self._is_object(path):
                return
            with self._locked():
                path.unlink(missing_ok=True)
                parent = path.parent
                while parent != self._root and _prune(parent):
                    parent = parent.parent
            # Durable like a put: a manifest is deleted before its packs, also across a power cut.
            _sync_directory(parent)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock that all processes and threads take to change names below the root."""
        _make_directories(self._new)
        lock = os.open(self._root / _OURS / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            give_up_at = time.monotonic() + _LOCK_TIMEOUT_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    # A suspended process may hold it for ever, and flock itself has no timeout.
                    if time.monotonic() > give_up_at:
                        raise StorageUnavailable(
                            f"the lock of {self.url} was held by another process for {_LOCK_TIMEOUT_S} s",
                            "look for a stopped gateway on the same GATEWAY_STORE",
                        ) from None
                    time.sleep(_LOCK_POLL_S)
            yield
        finally:
            os.close(lock)

    # ------------------------------------------------------------------ reading

    async def get(self, key: str) -> bytes:
        return await asyncio.to_thread(self._read, key)

    async def get_versioned(self, key: str) -> Versioned:
        def read() -> Versioned:
            data = self._read(key)
            return Versioned(data, _version(data))

        return await asyncio.to_thread(read)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return await asyncio.to_thread(self._read, key, start, length)

    def _read(self, key: str, start: int = 0, length: int = -1) -> bytes:
        with self._translated("get", key):
            path = self._path(key)
            if not self._is_object(path):
                raise self._missing(key)
            try:
                with path.open("rb") as file:
                    file.seek(start)
                    return file.read(length)
            except FileNotFoundError:
                raise self._missing(key) from None

    async def head(self, key: str) -> ObjectInfo:
        def head() -> ObjectInfo:
            with self._translated("head", key):
                path = self._path(key)
                if not self._is_object(path):
                    raise self._missing(key)
                try:
                    return _info(key, path.stat(follow_symlinks=False))
                except FileNotFoundError:
                    raise self._missing(key) from None

        return await asyncio.to_thread(head)

    async def download(self, key: str, start: int = 0, length: int | None = None, *, tag: str) -> AsyncIterator[bytes]:
        def open_tagged() -> IO[bytes]:
            with self._translated("get", key):
                path = self._path(key)
                if not self._is_object(path):
                    raise self._missing(key)
                try:
                    file = path.open("rb")
                except FileNotFoundError:
                    raise self._missing(key) from None
                if _tag(os.fstat(file.fileno())) != tag:
                    file.close()
                    raise self._missing(key)
                file.seek(start)
                return file

        def read(file: IO[bytes], size: int) -> bytes:
            with self._translated("get", key):
                return file.read(size)

        file = await asyncio.to_thread(open_tagged)
        try:
            left = length
            while left is None or left > 0:
                piece = await asyncio.to_thread(read, file, _PIECE_BYTES if left is None else min(left, _PIECE_BYTES))
                if not piece:
                    return
                left = None if left is None else left - len(piece)
                yield piece
        finally:
            file.close()

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        for info in await asyncio.to_thread(self._list, prefix, after):
            yield info

    def _list(self, prefix: str, after: str) -> tuple[ObjectInfo, ...]:
        with self._translated("list", prefix):
            path, folder = self._folder(prefix)
            return tuple(info for info in self._walk(path, folder, prefix, after) if info.key > after)

    async def folders(self, prefix: str) -> AsyncIterator[str]:
        def found() -> list[str]:
            with self._translated("list", prefix):
                path, folder = self._folder(prefix)
                try:
                    with os.scandir(path) as entries:
                        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
                except (FileNotFoundError, NotADirectoryError):
                    return []
                return [name for name in names if folder or name != _OURS]

        for name in await asyncio.to_thread(found):
            yield name

    def _folder(self, prefix: str) -> tuple[Path, str]:
        """Return the directory that holds all keys with `prefix`, and the part of `prefix` that names it."""
        check_prefix(prefix)
        self._check_root()
        folder = prefix[: prefix.rfind("/") + 1]
        return self._path(folder.removesuffix("/")) if folder else self._root, folder

    def _walk(self, directory: Path, folder: str, prefix: str, after: str) -> Iterator[ObjectInfo]:
        try:
            with os.scandir(directory) as found:
                entries = list(found)
        except (FileNotFoundError, NotADirectoryError):
            return  # it does not exist, or was pruned meanwhile
        # In the order of keys: "a-b" comes before "a/b", which comes before "a0".
        keyed = [
            (folder + entry.name + ("/" if entry.is_dir(follow_symlinks=False) else ""), entry) for entry in entries
        ]
        for key, entry in sorted(keyed, key=lambda pair: pair[0]):
            if not key.startswith(prefix) or key == f"{_OURS}/":
                continue
            if key < after and not after.startswith(key):
                continue  # it, and all below it, comes before
            if entry.is_symlink():
                # Leaving it out would make the store look emptier than it is.
                raise self._linked(key)
            if key.endswith("/"):
                yield from self._walk(directory / entry.name, key, prefix, after)
            elif entry.is_file(follow_symlinks=False):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # deleted meanwhile
                yield _info(key, status)

    async def close(self) -> None:
        pass

    # ------------------------------------------------------------------ names

    def _path(self, key: str) -> Path:
        """Return the path of `key`. Raises InvalidRequest, or StorageDenied if a symbolic link is on the way."""
        parts = check_key(key).split("/")
        if parts[0] == _OURS:
            raise InvalidRequest(f"{key!r} cannot be a key: the store keeps its own files in {_OURS}/")
        if any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
            raise InvalidRequest(f"{key!r} cannot be a key: a part of it has more than {_MAX_NAME_BYTES} bytes")
        path = self._root / key
        if os.path.realpath(path) != os.path.join(os.path.realpath(self._root), key):  # noqa: PTH118
            raise self._linked(key)
        return path

    def _is_object(self, path: Path) -> bool:
        """Return whether `path` is a regular file. Raises StorageDenied or OSError if the root cannot be read."""
        self._check_root()
        try:
            return stat.S_ISREG(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _check_root(self) -> None:
        """Raise StorageDenied or OSError if the root exists and cannot be read; do nothing if no write has made it."""
        try:
            self._root.stat()
        except FileNotFoundError:
            if self._root.is_symlink():
                raise StorageDenied(
                    f"{self.url} is a symbolic link to something that does not exist",
                    "mount or make what it points to, or correct GATEWAY_STORE",
                ) from None
            return
        if not self._root.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self._root))

    # ------------------------------------------------------------------ errors

    @contextlib.contextmanager
    def _translated(self, operation: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(f"{operation} {self.url}{key}: {error.strerror or error}", error) from error

    def _error(self, message: str, error: OSError) -> GatewayError:
        if is_disk_full(error):
            return DiskFull(message, "free some space where GATEWAY_STORE is, or give it more")
        if error.errno in _NOT_ALLOWED:
            return StorageDenied(message, f"let the gateway read and write {self._root}, or correct GATEWAY_STORE")
        if error.errno in _NOT_A_DIRECTORY:
            return StorageDenied(message, f"GATEWAY_STORE needs a directory, which {self._root} cannot be")
        if error.errno == errno.ENAMETOOLONG:
            return InvalidRequest(message)
        return StorageUnavailable(message)

    def _missing(self, key: str) -> ObjectMissing:
        return ObjectMissing(f"{self.url}{key} does not exist")

    def _linked(self, key: str) -> StorageDenied:
        return StorageDenied(
            f"{self.url}{key} leads through a symbolic link, which is not followed",
            "put the files themselves there, or set GATEWAY_STORE to the directory they are in",
        )


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC), _tag(status))


def _tag(status: os.stat_result) -> str:
    """The inode changes with every put, the time with every edit by another program."""
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _tag_of_file(path: Path) -> str | None:
    try:
        return _tag(path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return None


async def _gathered(pieces: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """Yield the same bytes in pieces of at least `size`, except the last one: each piece costs a thread."""
    held = bytearray()
    async for piece in pieces:
        held += piece
        if len(held) >= size:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _version_of_file(path: Path) -> str | None:
    try:
        return _version(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def _make_directories(directory: Path) -> None:
    """Make `directory` and the missing ones above it, each durably."""
    missing = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    for made in reversed(missing):
        with contextlib.suppress(FileExistsError):
            made.mkdir()
        if not made.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(made))
        # Also when another writer has just made it: our object in it must survive a power cut.
        _sync_directory(made.parent)


def _sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    # The object may have been deleted since, and its directory pruned.
    with contextlib.suppress(FileNotFoundError):
        sync_directory(directory)


def _prune(directory: Path) -> bool:
    """Remove `directory` if it is empty. Return whether it is gone."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True
