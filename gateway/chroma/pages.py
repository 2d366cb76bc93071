"""The pages of chroma.sqlite3: those of one moment, and those that changed since another. All blocking.

SQLite's write-ahead log lists the pages that every commit changed, so that a cut need not read the
whole database to find out. The log begins anew when all of it was copied back into the database and
nobody reads it any more; `PageTracker` keeps a reader open from one cut to the next, so that it cannot
do so unseen:

- a reader that needs the log keeps it from beginning anew;
- one that was opened when all of it was copied back reads the database alone: the log may begin anew
  beside it, once, since nothing can be copied back under that reader (`wal.c`, `walTryBeginRead`,
  `walRestartLog`, `walCheckpoint`). Then everything in the new log came after the reader.

Such a reader makes the log grow. `bound` moves it forward, remembers which pages it passed, and lets
the log begin anew.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from gateway.chroma import wal
from gateway.chroma.database import Pinned, open_database, write_lock
from gateway.chroma.disk import DATABASE
from gateway.chroma.wal import Files, WalHead
from gateway.errors import GatewayError

_READ_BYTES = 4 << 20


class DatabaseCut(Pinned):
    """One state of the database: what it says, and its pages, for as long as this is open."""

    def __init__(self, data_dir: Path, files: Files) -> None:
        super().__init__(data_dir)
        self._files = files
        self.page_bytes = self._number("pragma page_size")
        self.pages = self._number("pragma page_count")
        self.changed: set[int] | None = None
        """Numbers (from 1) of the pages that may differ from those of the last kept cut; None: any may."""
        self.frames: dict[int, int] = {}
        """Frames of the log that are newer than the pages of the database, by page."""

    @property
    def size_bytes(self) -> int:
        return self.pages * self.page_bytes

    def read(self, numbers: Iterable[int]) -> Iterator[bytes]:
        """The pages with these numbers."""
        for number in numbers:
            if frame := self.frames.get(number):
                yield self._whole(wal.read_frame(self._files.log, frame, self.page_bytes), self.page_bytes)
            else:
                yield bytes(self._in_database(number, 1))

    def read_all(self) -> Iterator[bytes]:
        """All pages in order, in pieces of `4 MiB`."""
        at_once = _READ_BYTES // self.page_bytes
        newer = sorted(self.frames)
        position = 0
        for first in range(1, self.pages + 1, at_once):
            count = min(at_once, self.pages + 1 - first)
            piece = self._in_database(first, count)
            while position < len(newer) and newer[position] < first + count:
                number, position = newer[position], position + 1
                offset = (number - first) * self.page_bytes
                page = wal.read_frame(self._files.log, self.frames[number], self.page_bytes)
                piece[offset : offset + self.page_bytes] = self._whole(page, self.page_bytes)
            yield bytes(piece)

    def _in_database(self, first: int, count: int) -> bytearray:
        """Pages of the database file; zeros past its end, for pages that are in the log alone or that nothing uses,
        such as the one at 1 GiB, which SQLite never writes (https://sqlite.org/fileformat.html, 1.4)."""
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
    """Makes cuts of one database, and knows which pages changed between them.

    Used from threads, one call at a time; `bound` may come from another one.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._path = data_dir / DATABASE
        self._files = Files(self._path)
        self._lock = threading.Lock()
        self._reader: Pinned | None = None
        self._seen = WalHead(b"", 0, 0)
        # Newest frame by page, of the log as it is now.
        self._frames: dict[int, int] = {}
        self._passed: set[int] | None = None
        """Pages that changed since the last cut; None: unknown."""

    def cut(self, and_then: Callable[[DatabaseCut], None] = lambda _: None) -> DatabaseCut:
        """Lock SQLite, hold this moment fast, call `and_then`, unlock. Takes milliseconds.

        The cut is the caller's to close; and to give back to `undo` if what changed in it is to count
        as changed in the next one too. Raises QuiesceTimeout.
        """
        with self._lock:
            cut = self._cut(and_then)
            cut.changed, self._passed = self._passed, set()
            return cut

    def undo(self, cut: DatabaseCut) -> None:
        """Nothing was made of `cut`: what changed before it is still to be told."""
        with self._lock:
            if cut.changed is None or self._passed is None:
                self._passed = None
            else:
                self._passed |= cut.changed

    def log_bytes(self) -> int:
        """How much of the log is in use, about."""
        head = self._files.head()
        return head.frames * self._page_bytes() if head else 0

    def changed_bytes(self) -> int | None:
        """Bytes of the pages that changed since the last cut, rather too many than too few; None if unknown."""
        passed, seen = self._passed, self._seen
        head = self._files.head() if self._reader is not None else None
        if passed is None or head is None:
            return None
        new = head.frames - seen.frames if head.salts == seen.salts else head.frames
        return (len(passed) + max(0, new)) * self._page_bytes()

    @property
    def is_tracking(self) -> bool:
        return self._reader is not None

    def bound(self) -> None:
        """Let the log begin anew, so that it does not grow for ever. What changed is remembered."""
        with self._lock:
            if self._reader is None:
                return
            with suppress(sqlite3.OperationalError), closing(open_database(self._path)) as connection:
                # Most of the copying, while others write.
                connection.execute("pragma wal_checkpoint(passive)").fetchone()
                self._cut(lambda _: None, checkpoint=connection).close()

    def forget(self) -> None:
        """The database was, or will be, exchanged: nothing is known of it. No cut may be open."""
        with self._lock:
            self._let_go()
            self._files.close()

    # ------------------------------------------------------------------ inside

    def _cut(
        self, and_then: Callable[[DatabaseCut], None], checkpoint: sqlite3.Connection | None = None
    ) -> DatabaseCut:
        if self._reader is not None:
            # What is committed stays where it is as long as the reader is open: only the rest is left for the lock.
            self._seen = self._catch_up() or WalHead(b"", 0, 0)
        with write_lock(self._data_dir):
            try:
                head = self._catch_up()
                if checkpoint is not None and self._reader is not None:
                    self._reader.close()
                    checkpoint.execute("pragma wal_checkpoint(passive)").fetchone()
                reader, cut = Pinned(self._data_dir), DatabaseCut(self._data_dir, self._files)
                if self._reader is not None:
                    self._reader.close()
                self._reader = reader
                after = self._files.head()
                if after is not None and after.backfilled < after.frames:
                    cut.frames = dict(self._frames)
                self._seen = head or WalHead(b"", 0, 0)
                and_then(cut)
                if not cut.keeps_writers_going:
                    # No log, nothing to learn from; and without one a reader would hold writers back for ever.
                    reader.close()
                    self._reader = self._passed = None
                return cut
            except BaseException:
                self._let_go()
                raise

    def _catch_up(self) -> WalHead | None:
        """Learn what was committed since the last look."""
        head = self._files.head()
        if head is None:
            self._frames = {}
            return None
        if head.salts == self._seen.salts and self._seen.frames <= head.frames and self._reader is not None:
            first = self._seen.frames + 1
        else:
            if self._reader is None or not wal.follows(self._seen, head):
                self._passed = None
            self._frames, first = {}, 1
        if first <= head.frames:
            page_bytes = self._page_bytes()
            new = wal.pages_in(self._files.log, first, head.frames, page_bytes)
            self._frames |= new
            if self._passed is not None:
                self._passed.update(new)
        return head

    def _page_bytes(self) -> int:
        size = int.from_bytes(os.pread(self._files.database, 2, 16), "big")
        return 65536 if size == 1 else size

    def _let_go(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader, self._frames, self._passed = None, {}, None
        self._seen = WalHead(b"", 0, 0)
