"""What keeps Chroma from writing its files, seen before Chroma meets it. Blocks.

Chroma answers from memory while every sync of an index fails, and dies of it at its next start at the earliest. So the
gateway looks by itself: it writes a small file, asks the file system for its free space, and looks at the permissions
of every index. Both processes run as the same user with the same limits.
"""

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gateway.chroma.directory import PRIVATE
from gateway.chroma.disk import INDEX_FILES, is_chromas

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
