"""Which processes use a data directory now: a Chroma without a gateway holds no lock that lasts.

On Linux `/proc` tells: open files of processes that we may look into, and locks of all, also of other containers. A
Chroma on a database in WAL mode holds a lock as long as it runs. Elsewhere only locks on our own files are seen.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from gateway.chroma.directory import PRIVATE
from gateway.chroma.disk import DATABASE_FILES

_PROC = Path("/proc")
_LOCK_FILES = ("gateway.lock", "chroma.lock")


def users_of(data_dir: Path) -> list[str]:
    """What uses the directory, in words, each once; empty if nothing is known to."""
    found = [*_lock_holders(data_dir), *_openers(data_dir), *_database_lockers(data_dir)]
    return list(dict.fromkeys(found))


def _lock_holders(data_dir: Path) -> Iterator[str]:
    for name in _LOCK_FILES:
        try:
            descriptor = os.open(data_dir / PRIVATE / name, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            yield "a gateway" if name == "gateway.lock" else "the Chroma of a gateway"
        finally:
            os.close(descriptor)


def _openers(data_dir: Path) -> Iterator[str]:
    inside = f"{data_dir.resolve()}/"
    for process in _PROC.glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):  # it ended, or belongs to another user
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()).startswith(inside):
                        yield _named(process)
                        break


def _database_lockers(data_dir: Path) -> Iterator[str]:
    files = set()
    for name in DATABASE_FILES:
        with contextlib.suppress(OSError):
            status = (data_dir / name).stat()
            files.add(f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}")
    try:
        lines = (_PROC / "locks").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        # 1: POSIX  ADVISORY  READ 1234 fd:01:5678 128 128
        fields = line.split()
        if len(fields) >= 6 and fields[5] in files and fields[4] != str(os.getpid()):
            yield "a process outside" if fields[4] in ("0", "-1") else _named(_PROC / fields[4])


def _named(process: Path) -> str:
    try:
        return f"process {process.name} ({(process / 'comm').read_text().strip()})"
    except OSError:  # it ended
        return f"process {process.name}"
