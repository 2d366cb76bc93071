"""What SQLite's write-ahead log says of the database beside it. Reads bytes; changes nothing.

Of the formats in https://sqlite.org/walformat.html: the log (`-wal`) is a header of 32 bytes and then
*frames*, each a header of 24 bytes (page number first) and one page. The index of it (`-shm`), in the
machine's byte order, says how many frames are committed, how many of them were copied back into the
database (*backfilled*), and has the *salts*, which change whenever the log begins anew.

SQLite's locks are POSIX locks: a process loses all that it has on a file, whichever connection they are
of, as soon as it closes any descriptor of that file (https://sqlite.org/howtocorrupt.html, 2.2). Nobody
may open these files and close them again in a process that reads the database; `Files` keeps them open.
"""

import contextlib
import os
import struct
import threading
from pathlib import Path
from typing import NamedTuple

_INDEX = struct.Struct("=16xII8x8s56xI")  # mxFrame, nPage, aSalt, nBackfill
_LOG_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24


class WalHead(NamedTuple):
    """Where the log stands. `frames` are committed; the first `backfilled` of them are in the database too."""

    salts: bytes
    frames: int
    backfilled: int


class Files:
    """A database, its log and its log's index, opened once."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def database(self) -> int:
        return self._descriptor("")

    @property
    def log(self) -> int:
        return self._descriptor("-wal")

    def head(self) -> WalHead | None:
        """Where the log stands; None if there is none.

        Only to be relied on while nobody can commit: under the write lock.
        """
        try:
            raw = os.pread(self._descriptor("-shm"), _INDEX.size, 0)
        except FileNotFoundError:
            return None
        if len(raw) < _INDEX.size:
            return None
        frames, _, salts, backfilled = _INDEX.unpack(raw)
        return WalHead(salts, frames, backfilled)

    def close(self) -> None:
        """Only where no lock is held that matters."""
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def _descriptor(self, suffix: str) -> int:
        path = f"{self._database}{suffix}"
        with self._lock:
            now, had = os.stat(path), self._descriptors.get(suffix)  # noqa: PTH116  # as os.fstat
            if had is not None:
                if os.path.samestat(os.fstat(had), now):
                    return had
                # Of a file that is gone: locks on it are of no use to anybody.
                del self._descriptors[suffix]
                with contextlib.suppress(OSError):
                    os.close(had)
            self._descriptors[suffix] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[suffix]


def follows(before: WalHead, now: WalHead) -> bool:
    """Whether `now` is of the log that began right after the one of `before` (`wal.c`, `walRestartHdr`)."""
    return int.from_bytes(now.salts[:4], "big") == (int.from_bytes(before.salts[:4], "big") + 1) % (1 << 32)


def pages_in(log: int, first: int, last: int, page_bytes: int) -> dict[int, int]:
    """The newest frame of every page that frames `first` to `last` (from 1, both included) hold.

    `log` is a descriptor of the `-wal` file. The frames must be committed, and kept by a reader.
    """
    newest = {}
    for frame in range(first, last + 1):
        header = os.pread(log, 4, _frame_offset(frame, page_bytes))
        newest[int.from_bytes(header, "big")] = frame
    return newest


def read_frame(log: int, frame: int, page_bytes: int) -> bytes:
    """The page in `frame`."""
    return os.pread(log, page_bytes, _frame_offset(frame, page_bytes) + _FRAME_HEADER_BYTES)


def _frame_offset(frame: int, page_bytes: int) -> int:
    return _LOG_HEADER_BYTES + (frame - 1) * (_FRAME_HEADER_BYTES + page_bytes)
