"""What SQLite's write-ahead log says of the database beside it. Reads bytes; changes nothing.

Of the formats in https://sqlite.org/walformat.html: the log (`-wal`) is a header of 32 bytes and then
*frames*, each a header of 24 bytes (page number first) and one page. The index of it (`-shm`), in the
machine's byte order, says how many frames are committed, how many of them were copied back into the
database (*backfilled*), and has the *salts*, which change whenever the log begins anew.
"""

import os
import struct
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


def head_of(database: Path) -> WalHead | None:
    """Where `database`'s log stands; None if it has none.

    Only to be relied on while nobody can commit: under the write lock.
    """
    try:
        with database.with_name(f"{database.name}-shm").open("rb") as index:
            raw = index.read(_INDEX.size)
    except FileNotFoundError:
        return None
    if len(raw) < _INDEX.size:
        return None
    frames, _, salts, backfilled = _INDEX.unpack(raw)
    return WalHead(salts, frames, backfilled)


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
