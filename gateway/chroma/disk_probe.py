"""What keeps Chroma from writing its files, seen before Chroma meets it. Blocks.

Chroma answers from memory while every sync of an index fails, and dies of it at its next start at the earliest. So the
gateway looks by itself: it writes a small file, asks the file system for its free space, and looks at the permissions
of every index. Both processes run as the same user with the same limits.

A data directory that is deleted or unmounted keeps Chroma from nothing: its files stay open, and what it writes to them
is lost with it. `Presence` sees that by two `stat` calls, which are cheap enough for every half second.
"""

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gateway.chroma.directory import PRIVATE
from gateway.chroma.disk import DATABASE, INDEX_FILES, is_chromas

_PROBE_BYTES = 64 * 1024
_LOW_BYTES, _LOW_PART = 100 << 20, 0.05
_MOST_NAMED = 5
# Chroma keeps four files of each synced index open. The rest is for connections and the database.
_DESCRIPTORS_AN_INDEX, _OTHER_DESCRIPTORS = 4, 200

_WAYS_OUT = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EROFS: "mount the file system for writing",
    errno.EACCES: "let the gateway's user write there",
    errno.EPERM: "let the gateway's user write there",
    errno.EMFILE: "raise the limit of open files (LimitNOFILE of the unit, `ulimit -n`)",
    errno.ENFILE: "raise the system's limit of open files (fs.file-max)",
}


def named(number: int, what: str) -> str:
    """`what`, with the name of the error `number` and what to do about it."""
    way_out = _WAYS_OUT.get(number)
    return f"{errno.errorcode.get(number, number)}: {what}" + (f"; {way_out}" if way_out else "")


class Presence:
    """Whether the data directory is still the one that Chroma uses."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._directory: _Seen | None = None
        self._database: _Seen | None = None
        self._swaps = 0

    def problem(self, swaps: int | None) -> str | None:
        """Why what Chroma writes now is lost, and the way out; None if it is not. Blocks. Raises nothing.

        `swaps` is a number that changes whenever the database may have been replaced on purpose; None while Chroma does
        not run or the database is just being replaced. The first look at the directory, and at the database after each
        change, tells what is to stay.
        """
        what = f"the data directory {self._data_dir}"
        try:
            self._directory = self._directory or _Seen(self._data_dir)
            is_there = self._directory.is_still_there()
            if is_there and swaps is not None:
                what = f"{DATABASE} in {what}"
                if self._database is None or self._swaps != swaps:
                    self._forget_database()
                    self._database, self._swaps = _Seen(self._data_dir / DATABASE), swaps
                is_there = self._database.is_still_there()
            problem = "" if is_there else "is another one now"
        except OSError as error:
            problem = f"cannot be found: {error.strerror}"
        if not problem:
            return None
        return (
            f"{what} {problem}. It was deleted, unmounted or replaced while Chroma uses it, so writes would be lost;"
            " put it back, or restart everything: an empty data directory gets the latest snapshot"
        )

    def close(self) -> None:
        """Let go of what was seen."""
        self._forget_database()
        if self._directory:
            self._directory.close()
            self._directory = None

    def _forget_database(self) -> None:
        if self._database:
            self._database.close()
            self._database = None


class _Seen:
    """A file or directory that was at `path`. Raises OSError if there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # An open descriptor keeps a deleted inode's number from being given to another file. O_PATH, since closing any
        # other descriptor of the database would release this process's locks on it. macOS gives no number twice.
        self._descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC) if hasattr(os, "O_PATH") else None
        self._status = path.stat() if self._descriptor is None else os.fstat(self._descriptor)

    def is_still_there(self) -> bool:
        """Whether it has that path. Raises OSError if nothing has."""
        return os.path.samestat(self._status, self._path.stat())

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def write_problems(data_dir: Path) -> list[str]:
    """Why Chroma cannot write, or soon cannot, one sentence each. Raises nothing.

    Costs a small write, and seven system calls for each index.
    """
    found: list[str] = []
    try:
        _write(data_dir / PRIVATE / "probe")
        found += _space(data_dir)
        found += _indexes(data_dir)
    except OSError as error:
        found.append(named(error.errno or 0, f"the data directory {data_dir} cannot be written: {error.strerror}"))
    return found


def _write(path: Path) -> None:
    try:
        path.write_bytes(bytes(_PROBE_BYTES))
    finally:
        with suppress(OSError):
            path.unlink()


def _space(data_dir: Path) -> Iterator[str]:
    usage = shutil.disk_usage(data_dir)
    if usage.free < min(_LOW_BYTES, usage.total * _LOW_PART):
        yield named(errno.ENOSPC, f"soon: the data directory has {usage.free >> 20} MiB left")
    status = os.statvfs(data_dir)
    if status.f_files and not status.f_favail:
        yield named(errno.ENOSPC, "the file system of the data directory has no inodes left")


def _indexes(data_dir: Path) -> Iterator[str]:
    indexes = [path for path in data_dir.iterdir() if is_chromas(path.name) and path.is_dir()]
    locked = [
        f"{path.name}/{name}"
        for path in indexes
        for name in ("", *sorted(INDEX_FILES))
        if not os.access(path / name, os.W_OK) and (path / name).exists()
    ]
    if locked:
        more = f" and {len(locked) - _MOST_NAMED} more" if len(locked) > _MOST_NAMED else ""
        what = f"index files cannot be written, so what comes in stays in the log: {', '.join(locked[:_MOST_NAMED])}"
        yield named(errno.EACCES, what + more)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(indexes) * _DESCRIPTORS_AN_INDEX + _OTHER_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and needed > hard:
        what = f"soon: {len(indexes)} indexes need {needed} open files, and Chroma may have {hard}"
        yield named(errno.EMFILE, what)
