"""Whether one HNSW index is sound: structure, not size.

An index can load, answer every get and count, and still be torn: elements that were never written, links to elements
that do not exist, a list file of hundreds of gigabytes of nothing (`docs/index-repair.md`). A search that comes near
reads beyond its memory, and Chroma dies. So every element and every list is looked at, in one read of the files.

An index is *sound* if Chroma can load it, search it to every corner, apply its log to it, and has every record
in it or in the log. Blocking; pure on the files given; for files that nobody writes meanwhile.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gateway.chroma.disk import HEADER, ID_MAP, LENGTH, LEVEL0, LINK_LISTS
from gateway.chroma.header import HEADER_STRUCT, read_header
from gateway.chroma.id_map import IdMap, read_id_map
from gateway.chroma.lengths import read_lengths
from gateway.chroma.level0 import Level0, scan_level0
from gateway.chroma.link_lists import check_link_lists
from gateway.chroma.segments import (
    ADD,
    COSINE,
    DELETE,
    UPSERT,
    LogRow,
    Segment,
    index_log,
    live_ids,
    log_rows,
    read_segments,
)

_NAMED_IDS = 5
# Room that a new index has in its files: of chromadb 0.4 to 0.6 (`DEFAULT_CAPACITY`), the greatest of all versions.
_INITIAL_CAPACITY = 1000
_OF_RECORDS = {"records-without-vectors", "vectors-without-records"}


@dataclass(frozen=True, slots=True)
class Problem:
    """`code` is stable and for programs; `docs/index-repair.md` lists them. `message` is for people."""

    code: str
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class IndexCheck:
    """What the check of one index found.

    `elements` counts deleted ones too; `ids` are those of the id map. `is_synced` is False for an index that Chroma
    never wrote whole, or that has no record: Chroma builds it anew from the log.
    `missing_ids` have a record in SQLite and a vector in neither index nor log; `extra_ids` the other way round.
    """

    problems: tuple[Problem, ...]
    is_synced: bool = False
    elements: int = 0
    deleted: int = 0
    ids: int = 0
    read_bytes: int = 0
    missing_ids: tuple[str, ...] = ()
    extra_ids: tuple[str, ...] = ()

    @property
    def is_sound(self) -> bool:
        return not self.problems

    @property
    def is_torn(self) -> bool:
        """Whether its files are damaged, whatever records they have."""
        return not {each.code for each in self.problems} <= _OF_RECORDS

    @property
    def only_lacks_vectors(self) -> bool:
        """Whether nothing is wrong but records that have no vector."""
        return {each.code for each in self.problems} == {"records-without-vectors"}


def check_index(
    directory: Path, *, dimension: int | None = None, space: str | None = None, id_map: IdMap | None = None
) -> IndexCheck:
    """Check the files of one index. `dimension` and `space` are those of the collection, if known.

    `id_map` is checked in place of the one in the directory, if it is given.

    About 1 s for 500 MB. Memory: 8 MiB, 20 bytes an element, and the id map. Raises nothing for damage: what cannot be
    read is a problem.
    """
    if id_map is not None:
        return _check_with(directory, id_map, dimension, space)
    return _check_files(directory, dimension, space)[0]


def check_segment(data_dir: Path, connection: sqlite3.Connection, segment: Segment) -> IndexCheck:
    """Check an index and that every record of its collection is in it, or in the log after it.

    `connection` sees the database of the same moment as the files. Raises sqlite3.Error.
    """
    check, id_map = _check_files(data_dir / segment.id, segment.dimension, segment.space)
    indexed = id_map.id_to_label.keys() if check.is_synced and id_map else set()
    # Without ids in it Chroma takes the index for a new one, and asks the log from its beginning
    # (`rust/log/src/local_compaction_manager.rs`, `BackfillMessage`).
    position = (segment.position or (id_map.max_seq_id if id_map else None) or 0) if check.is_synced else 0
    live = live_ids(connection, segment)
    # Chroma changes the records first. What they do not have of the log yet, both still get.
    log = (row for row in log_rows(connection, segment, position) if row.seq_id <= (segment.metadata_position or 0))
    missing, extra = compare_records(indexed, live, log)
    problems = list(check.problems)
    if not check.is_synced and not problems and segment.position and (live or missing):
        files = sorted(each.name for each in (data_dir / segment.id).glob("*"))
        lost = f"{ID_MAP} is missing" if files else "the index has no files"
        if ID_MAP not in files:
            # It would purge the log up to there, whatever is in the index.
            problems.append(
                Problem(
                    "index-missing", f"{lost}, and the database says that the log is in it up to {segment.position}"
                )
            )
    if not problems or all(each.code == "index-missing" for each in problems):
        if missing:
            problems.append(
                Problem("records-without-vectors", f"{len(missing)} records have no vector, {_some(missing)}")
            )
        if extra:
            problems.append(Problem("vectors-without-records", f"{len(extra)} vectors have no record, {_some(extra)}"))
    return IndexCheck(
        tuple(problems),
        check.is_synced,
        check.elements,
        check.deleted,
        check.ids,
        check.read_bytes,
        tuple(missing),
        tuple(extra),
    )


def check_segments(data_dir: Path, connection: sqlite3.Connection) -> Iterator[tuple[Segment, IndexCheck]]:
    """Check every index of a data directory, one after the other. Raises sqlite3.Error."""
    index_log(connection)
    for segment in read_segments(connection):
        yield segment, check_segment(data_dir, connection, segment)


def compare_records(indexed: Iterable[str], live: Iterable[str], log: Iterable[LogRow]) -> tuple[list[str], list[str]]:
    """Ids that are live and not indexed, and the other way round, once the log is applied to the index."""
    ids = set(indexed)
    for row in log:
        if row.operation == DELETE:
            ids.discard(row.id)
        elif row.operation in (ADD, UPSERT) and row.has_vector:
            ids.add(row.id)
    records = set(live)
    return sorted(records - ids), sorted(ids - records)


# ---------------------------------------------------------------------- the files


def _check_files(directory: Path, dimension: int | None, space: str | None) -> tuple[IndexCheck, IdMap | None]:
    try:
        id_map = read_id_map(directory / ID_MAP)
    except FileNotFoundError:
        return IndexCheck(()), None
    except OSError as error:
        return IndexCheck((Problem("file-unreadable", f"{ID_MAP} cannot be read: {error.strerror}"),)), None
    return _check_with(directory, id_map, dimension, space), id_map


def _check_with(directory: Path, id_map: IdMap, dimension: int | None, space: str | None) -> IndexCheck:
    if not id_map.is_whole:
        problem = Problem("id-map-damaged", f"{ID_MAP} is cut off or damaged after {len(id_map.id_to_label)} ids")
        return IndexCheck((problem,), is_synced=True, ids=len(id_map.id_to_label))
    if not id_map.id_to_label:
        return IndexCheck(())  # Chroma begins a new index, whatever else lies there
    try:
        return _check_parts(directory, id_map, dimension, space)
    except FileNotFoundError as error:
        name = Path(error.filename).name
        return IndexCheck((Problem("file-missing", f"{name} is missing"),), is_synced=True)
    except OSError as error:
        name = Path(error.filename).name if error.filename else "a file"
        return IndexCheck((Problem("file-unreadable", f"{name} cannot be read: {error.strerror}"),), is_synced=True)


def _check_parts(directory: Path, id_map: IdMap, dimension: int | None, space: str | None) -> IndexCheck:
    for name in (HEADER, LEVEL0, LENGTH, LINK_LISTS):
        with (directory / name).open("rb"):
            pass
    ids = len(id_map.id_to_label)
    header = read_header(directory)
    if header is None:
        short = (directory / HEADER).stat().st_size
        return IndexCheck((Problem("header-short", f"{HEADER} has {short} bytes"),), is_synced=True, ids=ids)
    if wrong := header.problems():
        return IndexCheck(tuple(Problem("header-wrong", each) for each in wrong), is_synced=True, ids=ids)
    problems = []
    if dimension is not None and header.layout.dimension != dimension:
        problems.append(
            Problem("dimension", f"the index has {header.layout.dimension} dimensions, its collection {dimension}")
        )
    for name, needed in ((LEVEL0, header.elements * header.element_bytes), (LENGTH, header.elements * 4)):
        size = (directory / name).stat().st_size
        if size < needed:
            problems.append(
                Problem(
                    "level0-short" if name == LEVEL0 else "length-short",
                    f"{name} has {size} bytes, {header.elements} elements need {needed}",
                )
            )
    room = max(header.capacity, _INITIAL_CAPACITY)
    for name, most in ((HEADER, HEADER_STRUCT.size), (LEVEL0, room * header.element_bytes), (LENGTH, room * 4)):
        if (size := (directory / name).stat().st_size) > most:
            problems.append(
                Problem("file-too-large", f"{name} has {size} bytes, Chroma never makes it larger than {most}")
            )
    level0 = scan_level0(directory / LEVEL0, header.layout, header.elements, normalized=space == COSINE)
    if space == COSINE and (
        damaged := int((~read_lengths(directory / LENGTH, level0.number)[1] & ~level0.is_null).sum())
    ):
        problems.append(Problem("lengths-damaged", f"{LENGTH} has no length for {damaged} elements"))
    problems += _level0_problems(level0) + _label_problems(level0, id_map)
    broken, list_bytes = check_link_lists(directory, header)
    problems += [Problem(code, message) for code, message in broken]
    return IndexCheck(
        tuple(problems),
        is_synced=True,
        elements=header.elements,
        deleted=int(level0.is_deleted.sum()),
        ids=ids,
        read_bytes=level0.read_bytes + list_bytes,
    )


def _level0_problems(level0: Level0) -> list[Problem]:
    found = []
    if unwritten := level0.missing + int(level0.is_zeroed.sum()):
        found.append(Problem("elements-zeroed", f"{unwritten} elements were never written, or are zeros"))
    if bad := int((level0.bad_links & ~level0.is_zeroed).sum()):
        found.append(Problem("level0-links", f"{bad} elements link to elements that do not exist"))
    if strange := int((level0.implausible & ~level0.is_zeroed).sum()):
        found.append(Problem("vectors-damaged", f"{strange} vectors have values that are no numbers, or far too large"))
    return found


def _label_problems(level0: Level0, id_map: IdMap) -> list[Problem]:
    found = []
    written = np.sort(level0.label[level0.label != 0])
    if twice := int((written[1:] == written[:-1]).sum()):
        found.append(Problem("labels-twice", f"{twice} labels are there twice"))
    mapped = np.sort(_labels(id_map.id_to_label.values()))
    live = np.sort(level0.label[~level0.is_deleted & (level0.label != 0)])
    unknown = absent = 0
    if not np.array_equal(live, mapped):  # as they nearly always are; to tell what differs takes a second more
        unknown, absent = len(np.setdiff1d(live, mapped)), len(np.setdiff1d(mapped, live))
    if unknown:
        found.append(Problem("labels-unknown", f"{unknown} elements have labels that {ID_MAP} does not know"))
    if absent:
        found.append(Problem("labels-absent", f"{absent} ids of {ID_MAP} have no element"))
    id_to_label, label_to_id = id_map.id_to_label, id_map.label_to_id
    same_number = len(id_to_label) == len(label_to_id)  # else an id may share its label with another
    if not same_number or dict(zip(id_to_label.values(), id_to_label, strict=True)) != label_to_id:
        found.append(Problem("id-map-contradicts", f"{ID_MAP} says other ids for labels than labels for ids"))
    highest = int(written.max(initial=0))
    if id_map.total_elements_added is not None and not absent and not unknown and highest > id_map.total_elements_added:
        # Chroma gives the next record the label after that number, and overwrites the element that has it.
        found.append(
            Problem("label-counter", f"{ID_MAP} counts {id_map.total_elements_added} labels, there is one {highest}")
        )
    return found


def _labels(labels: Iterable[int]) -> npt.NDArray[np.uint64]:
    return np.fromiter((label & 0xFFFFFFFFFFFFFFFF for label in labels), np.uint64)


def _some(ids: list[str]) -> str:
    named = ", ".join(repr(each) for each in ids[:_NAMED_IDS])
    return f"among them {named}" if len(ids) > _NAMED_IDS else named
