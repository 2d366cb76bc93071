"""The pages of chroma.sqlite3 at one moment, and which of them changed since an earlier one. All of it blocks.

SQLite's write-ahead log (WAL) lists the pages that each commit changed. So a cut finds the changed pages without a read
of the whole database. The WAL restarts when all of it was copied back into the database and no reader needs it. An
unnoticed restart would lose changes, so `PageTracker` keeps a reader open from one cut to the next:

- A reader that needs the WAL prevents its restart.
- A reader that was opened when all of the WAL was copied back reads the database alone. The WAL may restart once beside
  it, because nothing can be copied back under that reader (`wal.c`, `walTryBeginRead`, `walRestartLog`,
  `walCheckpoint`). Then all frames of the new WAL are newer than the reader.

The open reader makes the WAL grow. `bound` replaces it by a newer one, remembers the pages that changed in between, and
so lets the WAL restart.

Snapshots and the journal each ask what changed since their own last cut. A `Mark` tells them apart.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from enum import Enum
from pathlib import Path

from gateway.chroma import wal
from gateway.chroma.database import ReadTransaction, open_database, write_lock
from gateway.chroma.disk import DATABASE
from gateway.chroma.wal import DatabaseFiles, WalHead
from gateway.errors import GatewayError

_READ_BYTES = 4 << 20
_ATTEMPTS = 5


class Mark(Enum):
    """For whom a cut is made: its `changed` pages are those since the last cut with the same mark."""

    SNAPSHOT = "snapshot"
    JOURNAL = "journal"


class DatabaseCut(ReadTransaction):
    """One state of the database, with its pages. It stays readable until `close`."""

    def __init__(self, data_dir: Path, files: DatabaseFiles, mark: Mark) -> None:
        super().__init__(data_dir)
        self._files, self.mark = files, mark
        self.page_bytes = self._number("pragma page_size")
        self.pages = self._number("pragma page_count")
        self.changed: set[int] | None = None
        """Numbers (from 1) of the pages that may differ from those of the mark's last kept cut. None: any may."""
        self.frames: dict[int, int] = {}
        """Frames of the WAL that are newer than the database file, by page number."""

    @property
    def size_bytes(self) -> int:
        return self.pages * self.page_bytes

    def read(self, numbers: Iterable[int]) -> Iterator[bytes]:
        """The pages with these numbers, in this order. Raises GatewayError if a page is incomplete."""
        for number in numbers:
            if frame := self.frames.get(number):
                yield self._whole(wal.read_frame(self._files.wal, frame, self.page_bytes), self.page_bytes)
            else:
                yield bytes(self._in_database(number, 1))

    def read_all(self) -> Iterator[bytes]:
        """All pages in order, in pieces of at most 4 MiB. Raises GatewayError if a page is incomplete."""
        at_once = _READ_BYTES // self.page_bytes
        newer = sorted(self.frames)
        position = 0
        for first in range(1, self.pages + 1, at_once):
            count = min(at_once, self.pages + 1 - first)
            piece = self._in_database(first, count)
            while position < len(newer) and newer[position] < first + count:
                number, position = newer[position], position + 1
                offset = (number - first) * self.page_bytes
                page = wal.read_frame(self._files.wal, self.frames[number], self.page_bytes)
                piece[offset : offset + self.page_bytes] = self._whole(page, self.page_bytes)
            yield bytes(piece)

    def _in_database(self, first: int, count: int) -> bytearray:
        """Pages of the database file. Zeros past its end, for pages that are only in the WAL or that nothing uses.

        SQLite never writes the page at 1 GiB (https://sqlite.org/fileformat.html, 1.4).
        """
        pages = bytearray(os.pread(self._files.database, count * self.page_bytes, (first - 1) * self.page_bytes))
        return pages + bytes(count * self.page_bytes - len(pages))

    def _number(self, pragma: str) -> int:
        return int(self._connection.execute(pragma).fetchone()[0])

    @staticmethod
    def _whole(page: bytes, page_bytes: int) -> bytes:
        if len(page) != page_bytes:
            raise GatewayError(f"a page of {DATABASE} has {len(page)} bytes, not {page_bytes}")
        return page


class PageTracker:
    """Makes cuts of one database and knows which pages changed between them.

    For threads, one call at a time. `bound` may be called beside the others.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._path = data_dir / DATABASE
        self._files = DatabaseFiles(self._path)
        self._lock = threading.Lock()
        self._reader: ReadTransaction | None = None
        self._seen = WalHead(b"", 0, 0)
        # The newest frame of each page in the present WAL.
        self._frames: dict[int, int] = {}
        self._passed: dict[Mark, set[int] | None] = dict.fromkeys(Mark)
        """Pages that changed since the last cut of a mark. None: unknown."""

    def cut(self, and_then: Callable[[DatabaseCut], None] = lambda _: None, mark: Mark = Mark.SNAPSHOT) -> DatabaseCut:
        """Take SQLite's write lock, open a read transaction, call `and_then`, release the lock. Takes milliseconds.

        The caller closes the cut. A caller that does not use the cut passes it to `undo`, so that the next one
        contains its changes. Raises QuiesceTimeout if the lock is not free; a retry is safe.
        """
        with self._lock:
            return self._marked(self._cut(and_then, mark=mark))

    def cut_beside_writers(self, begin: Callable[[], None], mark: Mark) -> DatabaseCut:
        """As `cut`, without the write lock where it can be had so: nobody waits for it, and it waits for nobody.

        Calls `begin` before: what was committed by then is in the cut.
        """
        with self._lock:
            begin()
            cut = self._cut_beside_writers(mark) or self._cut(lambda _: None, mark=mark)
            return self._marked(cut)

    def undo(self, cut: DatabaseCut) -> None:
        """Count the changes of `cut` as changes of the next one, because nothing was made of it."""
        with self._lock:
            passed = self._passed[cut.mark]
            self._passed[cut.mark] = None if cut.changed is None or passed is None else passed | cut.changed

    def wal_bytes(self) -> int:
        """The size of the WAL in use, approximately."""
        head = self._files.head()
        return head.frames * self._page_bytes() if head else 0

    def changed_bytes(self, mark: Mark) -> int | None:
        """An upper bound for the bytes of the pages that changed since the last cut of `mark`. None if unknown."""
        passed, new = self._passed[mark], self._new_frames()
        return None if passed is None or new is None else (len(passed) + new) * self._page_bytes()

    def may_have_changed(self, mark: Mark) -> bool:
        """Whether the database may differ from the last cut of `mark`. Reads a few bytes."""
        # New frames first: another thread may move them to those that are known.
        return self._new_frames() != 0 or self._passed[mark] != set()

    def _new_frames(self) -> int | None:
        """How many frames were committed since they were looked at last; None if that is not known."""
        seen, head = self._seen, self._files.head() if self._reader is not None else None
        if head is None:
            return None
        return max(0, head.frames - seen.frames) if head.salts == seen.salts else head.frames

    @property
    def is_tracking(self) -> bool:
        return self._reader is not None

    def bound(self) -> None:
        """Let the WAL restart, so that it does not grow without limit. The changed pages are remembered.

        Raises QuiesceTimeout if the write lock is not free; a retry is safe.
        """
        with self._lock:
            if self._reader is None:
                return
            with suppress(sqlite3.OperationalError), closing(open_database(self._path)) as connection:
                # Copies most of the WAL before the lock is taken.
                connection.execute("pragma wal_checkpoint(passive)").fetchone()
                self._cut(lambda _: None, checkpoint=connection).close()

    def forget(self) -> None:
        """Forget everything, because the database was or will be replaced. No cut may be open."""
        with self._lock:
            self._release()
            self._files.close()

    # ------------------------------------------------------------------ inside

    def _cut(
        self,
        and_then: Callable[[DatabaseCut], None],
        checkpoint: sqlite3.Connection | None = None,
        mark: Mark = Mark.SNAPSHOT,
    ) -> DatabaseCut:
        if self._reader is not None:
            # The reader keeps committed frames in place. So most of them are read before the lock is taken.
            self._seen = self._catch_up() or WalHead(b"", 0, 0)
        with write_lock(self._data_dir):
            try:
                head = self._catch_up()
                if checkpoint is not None and self._reader is not None:
                    self._reader.close()
                    checkpoint.execute("pragma wal_checkpoint(passive)").fetchone()
                reader, cut = ReadTransaction(self._data_dir), DatabaseCut(self._data_dir, self._files, mark)
                self._keep(reader, cut, self._files.head())
                self._seen = head or WalHead(b"", 0, 0)
                and_then(cut)
                if not cut.keeps_writers_going:
                    # Without a WAL, changes are unknown, and an open reader would block writers.
                    reader.close()
                    self._reader = None
                    self._forget_changes()
                return cut
            except BaseException:
                self._release()
                raise

    def _cut_beside_writers(self, mark: Mark) -> DatabaseCut | None:
        """Return a cut that saw exactly the commits up to a known frame; None if writers left no time for one.

        What was committed is the same before and after the transactions began. So they see that, and nothing else.
        """
        for _ in range(_ATTEMPTS):
            if self._reader is None or (head := self._catch_up()) is None:
                return None
            self._seen = head
            with ExitStack() as opened:
                reader = opened.enter_context(closing(ReadTransaction(self._data_dir)))
                cut = opened.enter_context(closing(DatabaseCut(self._data_dir, self._files, mark)))
                after = self._files.head()
                if after is not None and (after.salts, after.frames) == (head.salts, head.frames):
                    opened.pop_all()
                    self._keep(reader, cut, after)
                    return cut
        return None

    def _keep(self, reader: ReadTransaction, cut: DatabaseCut, after: WalHead | None) -> None:
        """Let `reader` be the open one, and `cut` know what is in the WAL alone. `after`: its head since they began."""
        if self._reader is not None:
            self._reader.close()
        self._reader = reader
        if after is not None and after.backfilled < after.frames:
            cut.frames = dict(self._frames)

    def _marked(self, cut: DatabaseCut) -> DatabaseCut:
        cut.changed = self._passed[cut.mark]
        # Without a WAL, what changes from here on is not known either.
        self._passed[cut.mark] = set() if self._reader is not None else None
        return cut

    def _catch_up(self) -> WalHead | None:
        """Read the frames that were committed since the last call."""
        head = self._files.head()
        if head is None:
            self._frames = {}
            return None
        if head.salts == self._seen.salts and self._seen.frames <= head.frames and self._reader is not None:
            first = self._seen.frames + 1
        else:
            if self._reader is None or not wal.follows(self._seen, head):
                self._forget_changes()
            self._frames, first = {}, 1
        if first <= head.frames:
            page_bytes = self._page_bytes()
            new = wal.pages_in(self._files.wal, first, head.frames, page_bytes)
            self._frames |= new
            for passed in self._passed.values():
                if passed is not None:
                    passed.update(new)
        return head

    def _page_bytes(self) -> int:
        size = int.from_bytes(os.pread(self._files.database, 2, 16), "big")
        return 65536 if size == 1 else size

    def _release(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader, self._frames = None, {}
        self._forget_changes()
        self._seen = WalHead(b"", 0, 0)

    def _forget_changes(self) -> None:
        self._passed = dict.fromkeys(Mark)
