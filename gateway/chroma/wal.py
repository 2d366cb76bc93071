"""Reads the format of SQLite's write-ahead log (WAL). Changes nothing.

https://sqlite.org/walformat.html describes it. The WAL (`-wal`) is a header of 32 bytes and then *frames*. A frame is a
header of 24 bytes, which begins with the page number, and one page. The WAL index (`-shm`), in native byte order, has
the number of committed frames, the number of frames that were copied back into the database (*backfilled*), and the
*salts*, which change whenever the WAL restarts.

SQLite's locks are POSIX locks. A process loses all its locks on a file, of any connection, as soon as it closes any
descriptor of that file (https://sqlite.org/howtocorrupt.html, 2.2). So a process that reads the database must not open
and close these files. `DatabaseFiles` keeps them open.
"""

import contextlib
import os
import struct
import threading
from pathlib import Path
from typing import NamedTuple

_INDEX = struct.Struct("=16xII8x8s56xI")  # mxFrame, nPage, aSalt, nBackfill
_COPY_BYTES = 48
_WAL_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24


class WalHead(NamedTuple):
    """The state of the WAL. `frames` are committed. The first `backfilled` of them are in the database too."""

    salts: bytes
    frames: int
    backfilled: int


class DatabaseFiles:
    """Open descriptors of a database, its WAL and its WAL index."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def database(self) -> int:
        return self._descriptor("")

    @property
    def wal(self) -> int:
        return self._descriptor("-wal")

    def head(self) -> WalHead | None:
        """The state of the WAL; None if there is no WAL. Only under the write lock does it stay true."""
        while True:
            try:
                raw = os.pread(self._descriptor("-shm"), _INDEX.size, 0)
            except FileNotFoundError:
                return None
            if len(raw) < _INDEX.size:
                return None
            if raw[:_COPY_BYTES] == raw[_COPY_BYTES : 2 * _COPY_BYTES]:  # else a writer is between the two copies
                frames, _, salts, backfilled = _INDEX.unpack(raw)
                return WalHead(salts, frames, backfilled)

    def close(self) -> None:
        """Close the descriptors. The process loses its locks on the files, so no read transaction may be open."""
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
                # The file was replaced. Locks on the old one are useless.
                del self._descriptors[suffix]
                with contextlib.suppress(OSError):
                    os.close(had)
            self._descriptors[suffix] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[suffix]


def follows(before: WalHead, now: WalHead) -> bool:
    """Whether the WAL restarted exactly once between `before` and `now` (`wal.c`, `walRestartHdr`)."""
    return int.from_bytes(now.salts[:4], "big") == (int.from_bytes(before.salts[:4], "big") + 1) % (1 << 32)


def pages_in(wal: int, first: int, last: int, page_bytes: int) -> dict[int, int]:
    """The newest frame of each page in the frames `first` to `last` (from 1, both included), by page number.

    `wal` is a descriptor of the `-wal` file. The frames must be committed, and an open read transaction must keep them.
    """
    newest = {}
    for frame in range(first, last + 1):
        header = os.pread(wal, 4, _frame_offset(frame, page_bytes))
        newest[int.from_bytes(header, "big")] = frame
    return newest


def read_frame(wal: int, frame: int, page_bytes: int) -> bytes:
    """The page in `frame`, shorter if the WAL ends within it."""
    return os.pread(wal, page_bytes, _frame_offset(frame, page_bytes) + _FRAME_HEADER_BYTES)


def _frame_offset(frame: int, page_bytes: int) -> int:
    return _WAL_HEADER_BYTES + (frame - 1) * (_FRAME_HEADER_BYTES + page_bytes)
