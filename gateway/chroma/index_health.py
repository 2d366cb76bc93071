"""Which indexes are sound, and the repair of those that are not. Everything but `repair_unsound` blocks.

Checking an index reads all of its files (about 1 s for 500 MB), so the check is remembered with the signatures of the
files: an index whose files have not changed since is not read again. `.gateway/sound.json` holds that memory. It is
only a memory: without it every index is read once more.

Chroma writes index files in place and without fsync (docs/chroma-internals.md). So after a death of Chroma exactly
those indexes are read that it had written since they were last found sound.
"""

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path

import structlog

from gateway.aio import run_in_thread_uninterrupted
from gateway.chroma.database import ReadTransaction, is_empty, open_database, translated
from gateway.chroma.directory import PRIVATE
from gateway.chroma.disk import DATABASE, Signature, index_signatures
from gateway.chroma.repair import IndexCopy, Repair, Way, repair_segment
from gateway.chroma.segments import Segment, index_log, live_ids, log_rows, read_segments
from gateway.chroma.structure import IndexCheck, check_index, check_segment, compare_records
from gateway.errors import GatewayError
from gateway.files import write_durably

log = structlog.get_logger()

# Two writes within one tick of the kernel's clock have the same time stamps. A file that changed so recently may have
# changed again without a trace.
_SETTLED_NS = 100_000_000

Copies = Callable[[Segment], AbstractAsyncContextManager[Sequence[IndexCopy]]]
"""Gets older copies of an index, the best first. They are there until the block ends. Raises GatewayError."""
_Signatures = dict[str, Signature]


@contextlib.asynccontextmanager
async def no_copies(_segment: Segment) -> AsyncIterator[Sequence[IndexCopy]]:
    """Where there is no store."""
    yield ()


class IndexHealth:
    """The indexes of one data directory. Used by one thread at a time."""

    def __init__(self, data_dir: Path, served_in: Path | None = None) -> None:
        """`served_in`: the data directory that `data_dir` will be moved into; sound indexes are remembered there."""
        self._data_dir, self._memory = data_dir, (served_in or data_dir) / PRIVATE / "sound.json"
        self._sound: dict[str, _Signatures] | None = None
        self._asked: dict[str, _Signatures] = {}
        self._torn: dict[str, tuple[_Signatures, list[str]]] = {}

    async def repair_unsound(self, copies: Copies = no_copies) -> list[Repair]:
        """Check every index that changed since it was found sound, and repair the unsound ones. Chroma must be stopped.

        `copies` is asked only for an unsound index. Returns the repairs, and what could not be repaired where records
        have no vector; none for a sound directory. An index that cannot be repaired is logged and left as it is. May be
        repeated. Raises nothing for damage.
        """
        repairs = []
        for segment, check in await asyncio.to_thread(self.unsound):
            wanted = copies if self._may_gain(segment, check) else no_copies
            try:
                async with wanted(segment) as found:
                    repair = await run_in_thread_uninterrupted(repair_segment, self._data_dir, segment.id, found)
            except (GatewayError, OSError, sqlite3.Error) as error:
                log.error("an index cannot be repaired", collection=segment.name, cause=str(error))
                continue
            _log(repair)
            if repair.after.is_sound:
                self._note(segment.id)
            if repair.way is not Way.NONE or repair.lost_ids:
                repairs.append(repair)
        await asyncio.to_thread(self.save)
        return repairs

    def unsound(
        self, only: Collection[str] | None = None, *, known: Collection[str] = ()
    ) -> list[tuple[Segment, IndexCheck]]:
        """Check every index that changed since it was found sound; return the unsound ones. Chroma must be stopped.

        `only`: the segments to check, all of them without it. `known`: those whose files were found sound elsewhere,
        byte by byte as they are here.
        """
        self._sound = None  # a snapshot may have saved more since
        return [] if is_empty(self._data_dir) else self._unsound(only, known)

    def _may_gain(self, segment: Segment, check: IndexCheck) -> bool:
        """Whether older copies are worth their fetch: not twice for records that no copy had the first time."""
        if not check.only_lacks_vectors:
            return True
        signatures = self._signatures(segment.id)
        if self._asked.get(segment.id) == signatures:
            return False
        self._asked[segment.id] = signatures
        return True

    def torn(self, collection_id: str) -> str | None:
        """What is wrong with the index files of a collection, None if nothing is. Chroma may be running.

        Files that have not changed since the last call are not read again. Raises GatewayError.
        """
        path = self._data_dir / DATABASE
        with translated(path), closing(open_database(path)) as connection:
            segments = [each for each in read_segments(connection) if each.collection_id == collection_id]
        found = []
        for segment in segments:
            signatures = self._signatures(segment.id)
            if segment.id not in self._torn or self._torn[segment.id][0] != signatures:
                check = self.check(segment.id, segment)
                self._torn[segment.id] = (signatures, _texts(check) if check.is_torn else [])
            found += self._torn[segment.id][1]
        return "; ".join(found) or None

    def is_known_sound(self, segment_id: str) -> bool:
        """Whether the files are as they were when they were last read and found sound. Reads none of them."""
        signatures = self._signatures(segment_id)
        return bool(signatures) and self._remembered().get(segment_id) == signatures

    def check(
        self, segment_id: str, segment: Segment | None = None, connection: sqlite3.Connection | None = None
    ) -> IndexCheck:
        """Check one index, whose writer may be running. If it is sound with all its records, that is remembered.

        `connection` sees the database as it was at the files' moment or before; without it, a new one does. Without a
        `segment` only the files are checked. If they change meanwhile, nothing is known of them, and they count as
        sound: the next check tells. Raises GatewayError, and sqlite3.Error of a `connection` that is given.
        """
        signatures = self._signatures(segment_id)
        if self.is_known_sound(segment_id):
            return IndexCheck(())
        if segment is None:
            check = check_index(self._data_dir / segment_id)
        elif connection is None:
            with translated(self._data_dir / DATABASE), closing(ReadTransaction(self._data_dir)) as state:
                check = check_segment(self._data_dir, state.connection, segment)
        else:
            check = check_segment(self._data_dir, connection, segment)
        if self._signatures(segment_id) != signatures:
            return IndexCheck(())
        if check.is_sound and segment is not None:
            self._note(segment_id)
        return check

    def _unsound(self, only: Collection[str] | None, known: Collection[str]) -> list[tuple[Segment, IndexCheck]]:
        found = []
        try:
            with translated(self._data_dir / DATABASE), closing(open_database(self._data_dir / DATABASE)) as connection:
                segments = read_segments(connection)
                self._forget_others({segment.id for segment in segments})
                index_log(connection)
                for segment in segments:
                    if only is not None and segment.id not in only:
                        continue
                    if self.is_known_sound(segment.id):
                        continue
                    is_known = segment.id in known
                    check = IndexCheck(()) if is_known else check_segment(self._data_dir, connection, segment)
                    if check.is_sound:
                        self._note(segment.id)
                    else:
                        log.warning("an index is not sound", collection=segment.name, problems=_texts(check))
                        found.append((segment, check))
        except (GatewayError, sqlite3.Error) as error:
            log.warning("the indexes cannot be checked", cause=str(error))
        return found

    # ------------------------------------------------------------------ the memory

    def _signatures(self, segment_id: str) -> _Signatures:
        return index_signatures(self._data_dir, [segment_id])

    def _note(self, segment_id: str) -> None:
        signatures = self._signatures(segment_id)
        newest_ns = max((each.ctime_ns for each in signatures.values()), default=0)
        if signatures and time.time_ns() - newest_ns > _SETTLED_NS:
            self._remembered()[segment_id] = signatures

    def _forget_others(self, segment_ids: set[str]) -> None:
        self._sound = {each: found for each, found in self._remembered().items() if each in segment_ids}

    def _remembered(self) -> dict[str, _Signatures]:
        if self._sound is None:
            self._sound = {}
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
                saved = json.loads(self._memory.read_text())
                self._sound = {
                    segment_id: {path: Signature(*values) for path, values in files.items()}
                    for segment_id, files in saved.items()
                }
        return self._sound

    def save(self) -> None:
        """Save what is known, so that the next start need not read these indexes again."""
        if not self._memory.parent.is_dir():
            return  # a directory that no gateway serves
        try:
            write_durably(self._memory, json.dumps(self._remembered()).encode())
        except GatewayError as error:
            log.warning("the memory of sound indexes cannot be saved", cause=error.message)


def missing_in_log(state: ReadTransaction, segment: Segment) -> list[str]:
    """The records whose vector is not in Chroma's log: without any, Chroma could build the index from it alone."""
    missing, _ = compare_records((), live_ids(state.connection, segment), log_rows(state.connection, segment))
    return missing


def _log(repair: Repair) -> None:
    name = repair.segment.name
    if repair.way is Way.NONE:
        log.error("an index cannot be repaired", collection=name, problems=_texts(repair.before))
        return
    log.warning(
        "an index was repaired",
        collection=name,
        way=repair.way.value,
        replayed=repair.replayed,
        salvaged=repair.salvaged,
        lost=len(repair.lost_ids),
        lost_ids=list(repair.lost_ids[:20]),
        duration_s=round(repair.duration_s, 3),
    )


def _texts(check: IndexCheck) -> list[str]:
    return [str(problem) for problem in check.problems]
