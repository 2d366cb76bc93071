"""Files and directories in the data directory: durable writes, and scratch directories.

A durable write survives a power cut: the bytes go to a temporary file, which is flushed to the disk, takes the
final name by a rename, and then the directory is flushed too. A reader sees the old file or the new one.
"""

import contextlib
import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO

from gateway.aio import run_in_thread_uninterrupted
from gateway.errors import DiskFull, GatewayError

# Some file systems (FUSE, SMB) cannot flush a directory; there a rename is as durable as it gets.
_CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)

# ---------------------------------------------------------------------- durable writes


def write_durably(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Make `data` the contents of the file at `path`; see `durable_file`."""
    with durable_file(path, replace=replace) as file:
        file.write(data)


@contextlib.contextmanager
def durable_file(path: Path, *, replace: bool = True) -> Iterator[IO[bytes]]:
    """Yield a file to write to; when the block ends, it is durable under the name `path`, with mode 0600.

    If the block raises, `path` stays as it was. With `replace=False` a file that is already there stays, and what
    was written is dropped: of many writers at once the first one wins. With `replace=True` only one may write a
    path at a time. Blocks. Raises DiskFull, or GatewayError for any other failure of the disk. Safe to retry.
    """
    # One fixed name, so that a crash leaves at most one temporary file behind.
    temporary = path.with_name(f"{path.name}.new" if replace else f"{path.name}.{uuid.uuid4().hex}")
    try:
        try:
            with os.fdopen(
                os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb"
            ) as file:
                yield file
                sync_file(file)
            if replace:
                temporary.rename(path)
            else:
                _name_first(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise write_error(f"{path} cannot be written", error) from error


def _name_first(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`, unless there is a file of that name."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            temporary.rename(path)
    temporary.unlink(missing_ok=True)


def sync_file(file: IO[bytes]) -> None:
    """Flush the bytes of `file` to the disk. Raises OSError."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Flush the names in the directory `path` to the disk, where its file system can. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------- scratch directories


@contextlib.asynccontextmanager
async def scratch_directory(parent: Path, purpose: str) -> AsyncIterator[Path]:
    """Yield an empty directory below `parent`; at the end of the block it is removed with all that is in it.

    `purpose` is the beginning of its name. Raises DiskFull, or GatewayError if it cannot be made.
    """
    path = await run_in_thread_uninterrupted(_make, parent, purpose, undo=_remove)
    try:
        yield path
    finally:
        await run_in_thread_uninterrupted(_remove, path)


def _make(parent: Path, purpose: str) -> Path:
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=parent))
    except OSError as error:
        raise write_error(f"making a directory in {parent} failed", error) from error


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


# ---------------------------------------------------------------------- errors


def write_error(what: str, error: OSError) -> GatewayError:
    """The error to raise for `error`, met while writing to the data directory: DiskFull, or else GatewayError.

    `what` says what failed, such as "writing chroma.sqlite3 failed".
    """
    if is_disk_full(error):
        return DiskFull(f"{what}: {error.strerror}", "free some space in the data directory, or give it more")
    return GatewayError(f"{what}: {error}")


def is_disk_full(error: OSError) -> bool:
    """Whether `error` says that the disk, a quota or the greatest size of a file is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
