"""One index of a stopped data directory made sound again. What comes back from what: `docs/index-repair.md`.

In this order, unless a later way loses fewer records:

1. *copy*     a sound older copy of the index, and the log that came after it
2. *log*      no index: Chroma builds it from its log
3. *id-map*   the index as it is with a new id map, where nothing else is wrong with it
4. *salvage*  an index of the vectors in the torn files and in copies, and the log that is still there

A sound index that ends Chroma all the same is built anew from its own vectors: *rebuild*.

Crash-safe: the new index is built aside and made durable. Then the position in the database goes back to what it has.
Then the directories are exchanged. In between, a torn index with an earlier position is what it was: torn. May be
repeated. All blocking; Chroma must not be running, and nothing else may write to the directory.
"""

import contextlib
import ctypes
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gateway.chroma.database import open_database, translated, write_lock_on
from gateway.chroma.directory import PRIVATE
from gateway.chroma.disk import DATABASE, ID_MAP, INDEX_FILES, LEVEL0
from gateway.chroma.id_map import IdMap, new_id_map, old_id_map, read_id_map
from gateway.chroma.level0 import data_extents
from gateway.chroma.rebuild import Part, build_index, sync_files
from gateway.chroma.salvage import Evidence, Order, Salvage, is_same_vector, salvage_index
from gateway.chroma.segments import (
    ADD,
    COSINE,
    DELETE,
    UPDATE,
    UPSERT,
    LogRow,
    Segment,
    has_number_seq_ids,
    live_records,
    log_rows,
    read_segments,
)
from gateway.chroma.structure import IndexCheck, check_index, check_segment, compare_records
from gateway.errors import GatewayError, NotFound
from gateway.files import sync_directory, write_durably, write_error

_MAX_WITNESSES = 1000
_COPY_BYTES = 4 << 20
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100


class Way(StrEnum):
    """How an index was repaired. `NONE`: nothing was wrong, or nothing could be made better."""

    NONE = "none"
    COPY = "copy"
    LOG = "log"
    ID_MAP = "id-map"
    SALVAGE = "salvage"
    REBUILD = "rebuild"


@dataclass(frozen=True, slots=True)
class IndexCopy:
    """An older copy of an index, of which `position` is the `max_seq_id` of its moment. It is only read."""

    directory: Path
    position: int


@dataclass(frozen=True, slots=True)
class Repair:
    """What was done for one collection.

    `before` and `after` are the checks. `position`: up to where the log is in the new index; Chroma replays
    `replayed` rows after it when it first reads the collection. `salvaged` vectors came out of torn files.
    `lost_ids`: records of which no vector is left anywhere; upserting them brings them back. `doubtful_ids` have a
    vector that may be an earlier one. `unscaled_ids` (cosine) have one of length 1: searches find the same.
    """

    segment: Segment
    way: Way
    before: IndexCheck
    after: IndexCheck
    position: int
    replayed: int
    salvaged: int
    lost_ids: tuple[str, ...]
    doubtful_ids: tuple[str, ...]
    unscaled_ids: tuple[str, ...]
    duration_s: float


@dataclass(frozen=True, slots=True)
class _Plan:
    """A way with what it would lose. `copy`, or `sources` and `updates`, are what the new index is made of.

    `id_map` is a new one for the index as it is. `updates`: rows of the log by id, of records that nothing else is left
    of. Chroma ignores an update of what an index does not have (`rust/segment/src/local_hnsw.rs`,
    `apply_log_chunk`), so the index has to have them before. `added`: records that the rest of the log adds. The index
    must not have them before, since Chroma ignores an add of what an index has.
    """

    way: Way
    position: int
    lost: frozenset[str]
    copy: IndexCopy | None = None
    sources: tuple[Salvage, ...] = ()
    updates: Mapping[str, int] = field(default_factory=dict)
    added: frozenset[str] = frozenset()
    id_map: IdMap | None = None
    doubtful: frozenset[str] = frozenset()


def repair_segment(
    data_dir: Path,
    segment_id: str,
    copies: Sequence[IndexCopy] = (),
    *,
    backup: Path | None = None,
    rebuild: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Repair:
    """Make the index of one segment sound, losing as few records as possible. Does nothing if it is sound.

    `copies`: the best first. `backup`: a directory into which what is changed is copied before. `rebuild`: build a
    sound index anew too. Raises NotFound for a segment that is not there, DiskFull, and GatewayError; then nothing is
    worse than before.
    """
    began = time.monotonic()
    with _opened(data_dir, segment_id) as (connection, segment):
        before = check_segment(data_dir, connection, segment)
        if before.is_sound:
            plan = _rebuilt(data_dir, connection, segment) if rebuild else None
        else:
            plan = _plan(data_dir, connection, segment, before, copies)
        if plan is None:
            position = segment.position or 0
            return Repair(
                segment, Way.NONE, before, before, position, 0, 0, before.missing_ids, (), (), time.monotonic() - began
            )
        with _writing(f"repairing the index of {segment.name} failed"):
            if backup:
                back_up(data_dir, segment, backup, connection)
            _apply(data_dir, connection, segment, plan, progress)
        repaired = next(each for each in read_segments(connection) if each.id == segment_id)
        after = check_segment(data_dir, connection, repaired)
        unscaled = {each for source in plan.sources for each in source.unscaled} & set(_used(plan.sources))
        return Repair(
            segment,
            plan.way,
            before,
            after,
            plan.position,
            sum(1 for _ in log_rows(connection, segment, plan.position)),
            len(_used(plan.sources)),
            tuple(sorted(plan.lost)),
            tuple(sorted(plan.doubtful)),
            tuple(sorted(unscaled - plan.added - _with_vector(log_rows(connection, segment, plan.position)))),
            time.monotonic() - began,
        )


def at_risk(data_dir: Path, segment_id: str, copies: Sequence[IndexCopy] = ()) -> list[str]:
    """The records that would have no vector after `repair_segment`, or one that is not certain.

    Only reads; Chroma may be running. Raises NotFound and GatewayError.
    """
    with _opened(data_dir, segment_id) as (connection, segment):
        check = check_segment(data_dir, connection, segment)
        plan = None if check.is_sound else _plan(data_dir, connection, segment, check, copies)
        if plan is None:
            return sorted(check.missing_ids)
        unscaled = {each for source in plan.sources for each in source.unscaled}
        unscaled -= _with_vector(log_rows(connection, segment, plan.position))
        return sorted(plan.lost | plan.doubtful | unscaled)


@contextlib.contextmanager
def _opened(data_dir: Path, segment_id: str) -> Iterator[tuple[sqlite3.Connection, Segment]]:
    with translated(data_dir / DATABASE), closing(open_database(data_dir / DATABASE)) as connection:
        segment = next((each for each in read_segments(connection) if each.id == segment_id), None)
        if segment is None:
            raise NotFound(f"{data_dir} has no index {segment_id}")
        yield connection, segment


# ---------------------------------------------------------------------- deciding


def _rebuilt(data_dir: Path, connection: sqlite3.Connection, segment: Segment) -> _Plan | None:
    live = live_records(connection, segment)
    found = salvage_index(data_dir / segment.id, segment, Evidence(live))
    if not found or not found.ids:
        return None
    position = _position(data_dir, segment)
    lost, _ = compare_records(found.ids, live, log_rows(connection, segment, position))
    return _Plan(Way.REBUILD, position, frozenset(lost), sources=(found,))


def _plan(
    data_dir: Path,
    connection: sqlite3.Connection,
    segment: Segment,
    before: IndexCheck,
    copies: Sequence[IndexCopy],
) -> _Plan | None:
    live = live_records(connection, segment)
    rows = list(log_rows(connection, segment))
    copies = [copy for copy in copies if _is_of_this_history(connection, segment, live, rows, copy)]
    plans = [plan for copy in copies if (plan := _from_copy(segment, live, rows, copy))]
    plans.append(_Plan(Way.LOG, 0, frozenset(compare_records((), live, rows)[0])))
    best = min(plans, key=lambda plan: len(plan.lost))
    if best.lost:
        salvaged = _from_salvage(data_dir, connection, segment, live, rows, copies)
        best = salvaged if salvaged and len(salvaged.lost) < len(best.lost) else best
    if best.sources and best.position == _position(data_dir, segment) and not best.doubtful:
        id_map = _new_id_map(best.sources[0])
        if check_index(data_dir / segment.id, dimension=segment.dimension, space=segment.space, id_map=id_map).is_sound:
            best = replace(best, way=Way.ID_MAP, id_map=id_map)
    return None if before.only_lacks_vectors and len(best.lost) >= len(before.missing_ids) else best


def _new_id_map(source: Salvage) -> IdMap:
    labels = dict(zip(source.ids, source.labels.tolist(), strict=True))
    ids = {label: each for each, label in labels.items()}
    return IdMap(labels, ids, source.highest_label, None, None, is_whole=True, is_object=False)


def _is_of_this_history(
    connection: sqlite3.Connection,
    segment: Segment,
    live: Mapping[str, int],
    rows: list[LogRow],
    copy: IndexCopy,
) -> bool:
    """Whether a copy has what the log says that it had at its position.

    After a restore of an older snapshot the log gives the same positions to other rows: then a copy that was stored
    before the restore has other vectors under them.
    """
    found = salvage_index(copy.directory, segment, Evidence(live))
    if not found:
        return True  # it is of no use, which `_from_copy` and `salvage_index` say
    witnesses = _witnesses(connection, live, rows, copy.position)
    places = [place for place, each in enumerate(found.ids) if each in witnesses]
    part = _part(found, places)
    vectors = part.vectors(0, len(places)) if places else np.empty((0, 0), np.float32)
    pairs = zip(part.ids, vectors, strict=True)
    return all(is_same_vector(vector, witnesses[each], segment.space) for each, vector in pairs)


def _from_copy(segment: Segment, live: Mapping[str, int], rows: list[LogRow], copy: IndexCopy) -> _Plan | None:
    # The row at the position is kept by whoever deletes rows: while it is there, no later one is gone.
    if not any(row.seq_id == copy.position for row in rows):
        return None
    if not check_index(copy.directory, dimension=segment.dimension, space=segment.space).is_sound:
        return None
    try:
        indexed = read_id_map(copy.directory / ID_MAP).id_to_label
    except OSError:
        return None
    if not indexed:
        return None
    lost, extra = compare_records(indexed, live, (row for row in rows if row.seq_id > copy.position))
    return None if extra else _Plan(Way.COPY, copy.position, frozenset(lost), copy)


def _from_salvage(
    data_dir: Path,
    connection: sqlite3.Connection,
    segment: Segment,
    live: Mapping[str, int],
    rows: list[LogRow],
    copies: Sequence[IndexCopy],
) -> _Plan | None:
    position = _position(data_dir, segment)
    evidence = _evidence(connection, segment, live, rows, position)
    sources = []
    torn = salvage_index(data_dir / segment.id, segment, evidence)
    if torn and torn.ids:
        sources.append(torn)
    for copy in copies:
        # Of a copy whatever has not changed since.
        unchanged = {each: seq_id for each, seq_id in live.items() if seq_id <= copy.position}
        found = salvage_index(copy.directory, segment, Evidence(unchanged))
        if found and found.ids:
            sources.append(found)
    base = set(_used(sources))
    doubtful = torn.doubtful & base if torn else frozenset()
    doubtful -= {each for source in sources if source is not torn for each in source.ids}
    later = [row for row in rows if row.seq_id > position]
    lost = frozenset(compare_records(base, live, later)[0])
    if (lost or doubtful) and rows:
        # The log may have what the index has not, also of what it had applied.
        position = min(position, rows[0].seq_id - 1)
        lost = frozenset(compare_records(base, live, rows)[0])
    updates = {row.id: row.seq_id for row in rows if row.has_vector and row.operation == UPDATE and row.id in lost}
    if not sources and not updates:
        return None
    later = [row for row in rows if row.seq_id > position]
    doubtful -= _with_vector(later)
    # An add that was ignored has not changed its record.
    added = {row.id for row in later if row.operation == ADD and row.has_vector and live.get(row.id, 0) >= row.seq_id}
    return _Plan(
        Way.SALVAGE,
        position,
        lost - updates.keys(),
        sources=_preferred(sources, torn),
        updates=updates,
        added=frozenset(added) if base - added else frozenset(),
        doubtful=frozenset(doubtful),
    )


def _preferred(sources: list[Salvage], torn: Salvage | None) -> tuple[Salvage, ...]:
    """The torn index first, unless it is older than the database: then what copies have is better."""
    if torn and torn.doubtful:
        sources = [*(source for source in sources if source is not torn), torn]
    return tuple(sources)


def _position(data_dir: Path, segment: Segment) -> int:
    """Up to where the log is in the torn index, as the database says, or with chromadb 0.4 the id map."""
    if segment.position is not None:
        return segment.position
    try:
        return read_id_map(data_dir / segment.id / ID_MAP).max_seq_id or 0
    except OSError:
        return 0


def _evidence(
    connection: sqlite3.Connection, segment: Segment, live: Mapping[str, int], rows: list[LogRow], position: int
) -> Evidence:
    if connection.execute(
        "select 1 from embeddings where segment_id = ? and typeof(seq_id) = 'blob' limit 1", (segment.metadata_id,)
    ).fetchone():
        return Evidence(live)
    # A kill in the middle of a sync leaves files that have all that the records have. Else they are of their position.
    moments = ((segment.metadata_position or 0, True), (position, False))
    return Evidence(
        live,
        [
            Order(_witnesses(connection, live, rows, moment), is_complete)
            for moment, is_complete in moments
            if is_complete or not any(row.operation == DELETE and row.seq_id > moment for row in rows)
        ],
    )


def _witnesses(
    connection: sqlite3.Connection, live: Mapping[str, int], rows: list[LogRow], moment: int
) -> dict[str, npt.NDArray[np.float32]]:
    """The vectors that an index of that moment has, of the records that changed last before it."""
    last = {row.id: row for row in rows if row.seq_id <= moment and row.has_vector and row.operation != DELETE}
    # An add of a record that was there changed nothing: it is believed only if it is the record's last row.
    certain = [row for row in last.values() if row.operation in (UPSERT, UPDATE) or live.get(row.id) == row.seq_id]
    return {row.id: _vector(connection, row.seq_id) for row in sorted(certain, reverse=True)[:_MAX_WITNESSES]}


def _vector(connection: sqlite3.Connection, seq_id: int) -> npt.NDArray[np.float32]:
    (raw,) = connection.execute("select vector from embeddings_queue where seq_id = ?", (seq_id,)).fetchone()
    return np.frombuffer(raw, "<f4")


def _with_vector(rows: Iterable[LogRow]) -> set[str]:
    return {row.id for row in rows if row.has_vector and row.operation in (UPDATE, UPSERT)}


def _used(sources: Iterable[Salvage]) -> list[str]:
    """The ids of all sources, each once."""
    return list(dict.fromkeys(each for source in sources for each in source.ids))


# ---------------------------------------------------------------------- doing


def _apply(
    data_dir: Path,
    connection: sqlite3.Connection,
    segment: Segment,
    plan: _Plan,
    progress: Callable[[int, int], None] | None,
) -> None:
    live, made = data_dir / segment.id, None
    with _scratch(data_dir, segment.id) as scratch:
        if plan.copy:
            made = scratch / segment.id
            made.mkdir()
            for name in INDEX_FILES:
                copy_sparse(plan.copy.directory / name, made / name)
        elif plan.id_map:
            _write_id_map(live, connection, segment, plan, plan.id_map)
            return
        elif plan.sources or plan.updates:
            made = _build(scratch, connection, segment, plan, progress)
        if made:
            like = live if live.exists() else data_dir
            for path in (made, *made.iterdir()):
                _give(path, like.stat() if path == made else (data_dir / DATABASE).stat())
            sync_files(made)
        # First the position, which only goes back: torn files with an earlier position are torn files still. With the
        # new files and the old position, Chroma would take for granted what they do not have.
        _set_position(connection, segment, plan.position)
        if made and live.exists():
            _exchange(made, live)
        elif made:
            made.rename(live)
        elif live.exists():
            live.rename(scratch / "torn")
        sync_directory(data_dir)


def _write_id_map(live: Path, connection: sqlite3.Connection, segment: Segment, plan: _Plan, id_map: IdMap) -> None:
    labels, added = id_map.id_to_label, id_map.total_elements_added or 0
    if has_number_seq_ids(connection):
        data = new_id_map(labels, added)
    else:
        dimension = segment.dimension or plan.sources[0].layout.dimension
        data = old_id_map(labels, live_records(connection, segment), dimension, plan.position, added)
    like = live / ID_MAP if (live / ID_MAP).exists() else live / LEVEL0
    owner = like.stat()
    write_durably(live / ID_MAP, data)
    _give(live / ID_MAP, owner)


def _build(
    scratch: Path,
    connection: sqlite3.Connection,
    segment: Segment,
    plan: _Plan,
    progress: Callable[[int, int], None] | None,
) -> Path:
    parts, taken = [], set(plan.added)
    for source in plan.sources:
        places = [place for place, each in enumerate(source.ids) if each not in taken]
        part = _part(source, places)
        taken.update(part.ids)
        parts.append(part)
    if plan.updates:
        parts.append(_updates(connection, segment, plan.updates))
        taken.update(plan.updates)
    dimension = segment.dimension or plan.sources[0].layout.dimension
    made = build_index(_fresh(scratch / "build"), segment, dimension, parts, progress)
    check = check_index(made, dimension=dimension, space=segment.space)
    if not check.is_sound or check.ids != sum(len(part.ids) for part in parts):
        raise GatewayError(f"the new index of {segment.name} is not sound: {', '.join(map(str, check.problems))}")
    if not has_number_seq_ids(connection):
        labels = read_id_map(made / ID_MAP).id_to_label
        (made / ID_MAP).write_bytes(old_id_map(labels, live_records(connection, segment), dimension, plan.position))
    return made


def _updates(connection: sqlite3.Connection, segment: Segment, updates: Mapping[str, int]) -> Part:
    vectors = np.stack([_vector(connection, seq_id) for seq_id in updates.values()])
    if segment.space != COSINE:
        return Part(list(updates), lambda start, stop: vectors[start:stop], None)
    # Not to the last bit as hnswlib would; the rows themselves come on top, and then they are.
    lengths = np.linalg.norm(vectors, axis=1).astype(np.float32)
    normalized = (vectors / np.where(lengths == 0, 1, lengths)[:, None]).astype(np.float32)
    return Part(list(updates), lambda start, stop: normalized[start:stop], lengths)


def _part(source: Salvage, places: list[int]) -> Part:
    if len(places) == len(source.ids):
        return Part(source.ids, source.vectors, source.lengths)
    picked = np.array(places, np.int64)
    chosen = replace(
        source,
        ids=[source.ids[place] for place in places],
        numbers=source.numbers[picked],
        labels=source.labels[picked],
        lengths=None if source.lengths is None else source.lengths[picked],
    )
    return Part(chosen.ids, chosen.vectors, chosen.lengths)


def _set_position(connection: sqlite3.Connection, segment: Segment, position: int) -> None:
    with write_lock_on(connection, commit=True):
        if not position:
            connection.execute("delete from max_seq_id where segment_id = ?", (segment.id,))
        elif position != segment.position:
            value = position if has_number_seq_ids(connection) else position.to_bytes(8, "big")
            connection.execute(
                "insert or replace into max_seq_id (segment_id, seq_id) values (?, ?)", (segment.id, value)
            )


def _give(path: Path, owner: os.stat_result) -> None:
    """Give a new file the owner and the mode of an old one: root may repair what Chroma reads as another user."""
    with contextlib.suppress(PermissionError):
        os.chown(path, owner.st_uid, owner.st_gid)
    path.chmod(owner.st_mode & 0o777)


def _exchange(new: Path, live: Path) -> None:
    """Put one directory in the other's place, in one step where the system can; `new` is the old one then."""
    with contextlib.suppress(AttributeError, OSError):
        if not ctypes.CDLL(None, use_errno=True).renameat2(
            _AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(live), _RENAME_EXCHANGE
        ):
            return
    away = new.with_name("torn")
    live.rename(away)
    new.rename(live)


@contextlib.contextmanager
def _scratch(data_dir: Path, segment_id: str) -> Iterator[Path]:
    """A directory on the same file system, gone at the end; Chroma's directory has no other trace of us."""
    private = data_dir / PRIVATE
    existed = private.exists()
    path = private / "repair" / segment_id
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700, parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()
            if not existed:
                private.rmdir()


def _fresh(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


@contextlib.contextmanager
def _writing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(what, error) from error


# ---------------------------------------------------------------------- copies of what is changed


def back_up(data_dir: Path, segment: Segment, target: Path, connection: sqlite3.Connection) -> None:
    """Copy the index and, once for all indexes, the database into `target`. Raises OSError and sqlite3.Error."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    back_up_database(connection, target)
    source = data_dir / segment.id
    if source.is_dir() and not (target / segment.id).exists():
        (target / segment.id).mkdir()
        for path in source.iterdir():
            if path.is_file():
                copy_sparse(path, target / segment.id / path.name)


def back_up_database(connection: sqlite3.Connection, target: Path) -> None:
    """Copy the database into `target`, unless it has one. Raises sqlite3.Error."""
    if not (target / DATABASE).exists():
        partial = target / f"{DATABASE}.partial"
        with closing(sqlite3.connect(partial)) as copy:
            connection.backup(copy)
        partial.rename(target / DATABASE)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file without its holes, which stay holes. Raises OSError."""
    with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as written:
        size = os.fstat(read.fileno()).st_size
        for start, stop in data_extents(read.fileno(), size):
            for at in range(start, stop, _COPY_BYTES):
                data = os.pread(read.fileno(), min(_COPY_BYTES, stop - at), at)
                os.pwrite(written.fileno(), data, at)
        written.truncate(size)
