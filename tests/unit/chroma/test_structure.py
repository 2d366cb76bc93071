"""A torn index is told from a sound one by its structure, whatever it answers."""

import os
import re
import shutil
import sqlite3
import struct
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from gateway.chroma.disk import DATABASE, HEADER, ID_MAP, LENGTH, LEVEL0, LINK_LISTS
from gateway.chroma.header import Header, read_header
from gateway.chroma.id_map import parse_id_map, read_id_map
from gateway.chroma.segments import LogRow, Segment, read_segments
from gateway.chroma.structure import IndexCheck, check_index, check_segment, compare_records
from tests.unit.chroma.conftest import DIMENSION, RECORDS

GIB = 1 << 30


@pytest.fixture
def index(data_dir: Path) -> Path:
    """The one index that was written."""
    (found,) = [path for path in data_dir.iterdir() if (path / ID_MAP).exists()]
    return found


def header_of(index: Path) -> Header:
    header = read_header(index)
    assert header is not None
    return header


def codes(index: Path) -> set[str]:
    return {each.code for each in check_index(index, dimension=DIMENSION).problems}


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_an_index_that_chroma_wrote_is_sound(index: Path) -> None:
    """Untouched, with every element, label and list seen."""
    found = check_index(index, dimension=DIMENSION)
    assert found.problems == ()
    assert (found.elements, found.deleted, found.ids, found.is_synced) == (RECORDS, 0, RECORDS, True)


def test_an_index_that_was_never_synced_is_sound(index: Path) -> None:
    """Chroma begins it anew from the log, whatever else lies there."""
    (index / ID_MAP).unlink()
    patch(index / LEVEL0, 0, os.urandom(1000))
    assert check_index(index) == IndexCheck(())
    assert check_index(index / "nowhere") == IndexCheck(())


@pytest.mark.parametrize("name", [HEADER, LEVEL0, LENGTH, LINK_LISTS])
def test_a_missing_file_is_named(index: Path, name: str) -> None:
    """By its code and in words."""
    (index / name).unlink()
    (problem,) = check_index(index).problems
    assert problem.code == "file-missing"
    assert name in problem.message


@pytest.mark.parametrize("name", [HEADER, LEVEL0, LENGTH, LINK_LISTS, ID_MAP])
def test_a_cut_file_is_found(index: Path, name: str) -> None:
    """At every length that is near an end, and at many between."""
    header, whole = header_of(index), (index / name).read_bytes()
    # Beyond its elements `data_level0.bin` has room that nobody reads.
    needed = {LEVEL0: header.elements * header.element_bytes, LENGTH: header.elements * 4}.get(name, len(whole))
    ends = {*range(0, needed, 1 + needed // 30), *range(min(20, needed)), *range(needed - 20, needed)}
    with (index / name).open("r+b") as file:
        for end in sorted(ends, reverse=True):
            file.truncate(end)
            assert codes(index), end


@pytest.mark.parametrize("name", [HEADER, LEVEL0, LINK_LISTS, ID_MAP])
@pytest.mark.parametrize("kind", ["zeros", "random"])
def test_a_file_of_zeros_or_random_bytes_is_found(index: Path, name: str, kind: str) -> None:
    """Of the same size. `length.bin` has any numbers, and Chroma asks it for cosine alone."""
    size = (index / name).stat().st_size
    (index / name).write_bytes(bytes(size) if kind == "zeros" else os.urandom(size))
    assert codes(index)


def _label(index: Path, element: int, label: int) -> None:
    header = header_of(index)
    patch(index / LEVEL0, element * header.element_bytes + header.label_offset, struct.pack("<Q", label))


def _far_link(index: Path) -> None:
    patch(index / LEVEL0, 7 * header_of(index).element_bytes, struct.pack("<II", 1, RECORDS))


def _too_many_links(index: Path) -> None:
    patch(index / LEVEL0, 7 * header_of(index).element_bytes, struct.pack("<I", 33))


def _unwritten(index: Path) -> None:
    header = header_of(index)
    patch(index / LEVEL0, 9 * header.element_bytes, bytes(3 * header.element_bytes))


def _label_twice(index: Path) -> None:
    header = header_of(index)
    with (index / LEVEL0).open("rb") as file:
        file.seek(header.label_offset)
        (first,) = struct.unpack("<Q", file.read(8))
    _label(index, 5, first)


def _unknown_label(index: Path) -> None:
    _label(index, 5, 1_000_000)


def _no_number(index: Path) -> None:
    header = header_of(index)
    patch(index / LEVEL0, 11 * header.element_bytes + header.vector_offset, struct.pack("<f", float("nan")))


def _list_too_long(index: Path) -> None:
    patch(index / LINK_LISTS, 0, struct.pack("<I", 2_667_577_848))


def _upper_link(index: Path) -> None:
    words = np.fromfile(index / LINK_LISTS, "<u4")
    first = int(np.flatnonzero(words)[0])
    patch(index / LINK_LISTS, (first + 2) * 4, struct.pack("<I", RECORDS + 5))


def _upper_link_to_a_low_element(index: Path) -> None:
    words = np.fromfile(index / LINK_LISTS, "<u4")
    first = int(np.flatnonzero(words)[0])
    assert first > 0, "the first element has an upper level"
    patch(index / LINK_LISTS, (first + 2) * 4, struct.pack("<I", 0))


def _tail(index: Path) -> None:
    patch(index / LINK_LISTS, (index / LINK_LISTS).stat().st_size, bytes(4))


def _entry(index: Path) -> None:
    header = header_of(index)
    patch(index / HEADER, 56, struct.pack("<I", (header.entry + 1) % RECORDS))


def _dimension(index: Path) -> None:
    header = header_of(index)
    layout = header.layout._replace(dimension=DIMENSION + 1)
    patch(index / HEADER, 28, struct.pack("<QQ", layout.element_bytes, layout.label_offset))


def _swapped_ids(index: Path) -> None:
    whole = (index / ID_MAP).read_bytes()
    assert whole.count(b"u.17.md") == 2
    (index / ID_MAP).write_bytes(whole.replace(b"u.17.md", b"u.xx.md", 1))


def _counter(index: Path) -> None:
    whole = (index / ID_MAP).read_bytes()
    (index / ID_MAP).write_bytes(whole.replace(struct.pack("<cI", b"J", RECORDS), struct.pack("<cI", b"J", 10), 1))


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (_far_link, "level0-links"),
        (_too_many_links, "level0-links"),
        (_unwritten, "elements-zeroed"),
        (_label_twice, "labels-twice"),
        (_unknown_label, "labels-unknown"),
        (_no_number, "vectors-damaged"),
        (_list_too_long, "link-lists-broken"),
        (_upper_link, "upper-links"),
        (_upper_link_to_a_low_element, "upper-links"),
        (_tail, "link-lists-end"),
        (_entry, "entry-point"),
        (_dimension, "dimension"),
        (_swapped_ids, "id-map-contradicts"),
        (_counter, "label-counter"),
    ],
)
def test_each_fault_has_its_code(index: Path, damage: Callable[[Path], None], code: str) -> None:
    """One fault of its kind, however small, in an index that is sound otherwise."""
    damage(index)
    assert code in codes(index)


@pytest.mark.parametrize("name", [LEVEL0, LINK_LISTS, LENGTH, ID_MAP, HEADER])
def test_a_sparse_file_of_hundreds_of_gigabytes_is_found_without_reading_it(index: Path, name: str) -> None:
    """As Chroma leaves one behind when its disk was full; a header that believes it changes nothing."""
    header = header_of(index)
    os.truncate(index / name, 700 * GIB)
    began = time.process_time()
    found = check_index(index, dimension=DIMENSION)
    assert found.read_bytes < 1 << 20
    assert time.process_time() - began < 1  # reading it would take minutes
    assert not found.is_sound
    if name == LEVEL0:
        many = 600 * GIB // header.element_bytes
        patch(index / HEADER, 12, struct.pack("<QQ", many, many))
        assert {"elements-zeroed", "length-short"} <= codes(index)


def test_a_hole_in_the_middle_of_the_elements_is_found(index: Path) -> None:
    """One page that was never written."""
    whole = (index / LEVEL0).read_bytes()
    with (index / LEVEL0).open("wb") as file:
        file.write(whole[: 3 * 4096])
        file.seek(4 * 4096)
        file.write(whole[4 * 4096 :])
    assert "elements-zeroed" in codes(index)


def test_vectors_that_are_zeros_by_nature_are_sound(index: Path, tmp_path: Path) -> None:
    """A page of zeros within a vector is damage only where most vectors have none."""
    from gateway.chroma.header import Layout
    from gateway.chroma.level0 import scan_level0

    layout = Layout(16, 4096)
    elements = np.zeros((40, layout.element_bytes // 4), "<u4")
    elements[:, -2] = np.arange(1, 41)
    path = tmp_path / LEVEL0
    for filled, zeroed in ((100, 0), (4096, 1)):
        elements[:, 33 : 33 + filled] = 1
        if filled == 4096:
            elements[3, 33 + 1000 : 33 + 3500] = 0
        elements.tofile(path)
        assert scan_level0(path, layout, 40).is_zeroed.sum() == zeroed


# ---------------------------------------------------------------------- the id map


def test_nothing_of_an_id_map_is_executed(tmp_path: Path) -> None:
    """A pickle can say anything; what is not data ends the reading."""
    import pickle

    class Touch:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "executed",)

    for protocol in range(6):
        assert not parse_id_map(pickle.dumps({"id_to_label": Touch(), "label_to_id": {}}, protocol)).is_whole
        assert not (tmp_path / "executed").exists()


def test_random_bytes_as_an_id_map_take_no_memory() -> None:
    """Python's own unpickler would make room for as many objects as a random number says."""
    random = np.random.default_rng(0)
    for length in range(0, 3000, 7):
        assert not parse_id_map(b"\x80\x03}" + random.bytes(length)).is_whole
    assert not parse_id_map(b"\x80\x03}r\xff\xff\xff\xff").is_whole


def test_a_cut_id_map_tells_what_came_before(index: Path) -> None:
    """Every pair before the cut, and no other."""
    whole = read_id_map(index / ID_MAP)
    data = (index / ID_MAP).read_bytes()
    half = parse_id_map(data[: len(data) // 4])
    assert not half.is_whole
    assert len(half.id_to_label) > RECORDS // 4
    assert half.id_to_label.items() <= whole.id_to_label.items()


# ---------------------------------------------------------------------- the records


def segment_of(data_dir: Path, name: str) -> tuple[sqlite3.Connection, Segment]:
    connection = sqlite3.connect(data_dir / DATABASE)
    (found,) = [each for each in read_segments(connection) if each.name == name]
    return connection, found


@pytest.mark.parametrize("name", ["synced", "unsynced"])
def test_a_collection_that_chroma_wrote_is_sound(data_dir: Path, name: str) -> None:
    """Every record is in the index, or in the log after it."""
    connection, segment = segment_of(data_dir, name)
    with closing(connection):
        found = check_segment(data_dir, connection, segment)
    assert found.is_sound
    assert found.is_synced is (name == "synced")


def test_records_that_index_and_log_both_lack_are_named(data_dir: Path) -> None:
    """And vectors that no record belongs to."""
    connection, segment = segment_of(data_dir, "synced")
    with closing(connection):
        connection.execute("update embeddings set embedding_id = 'new' where embedding_id like '%u.7.md'")
        found = check_segment(data_dir, connection, segment)
    assert {each.code for each in found.problems} == {"records-without-vectors", "vectors-without-records"}
    assert found.missing_ids == ("new",)
    assert found.extra_ids == ("u.menu}u.7.md",)


@pytest.mark.parametrize("gone", ["id map", "directory"])
def test_an_index_that_is_gone_is_not_taken_for_a_new_one(data_dir: Path, gone: str) -> None:
    """The database says up to where it had the log: Chroma would drop the log up to there."""
    connection, segment = segment_of(data_dir, "synced")
    if gone == "directory":
        shutil.rmtree(data_dir / segment.id)
    else:
        (data_dir / segment.id / ID_MAP).unlink()
    with closing(connection):
        found = check_segment(data_dir, connection, segment)
    assert {each.code for each in found.problems} == {"index-missing", "records-without-vectors"}
    assert len(found.missing_ids) > RECORDS // 2


def test_the_log_is_applied_before_records_are_compared() -> None:
    """Adds and upserts with a vector bring one, a delete takes it, an update of what is not there does nothing."""
    log = [
        LogRow(1, 0, "added", True),
        LogRow(2, 2, "upserted", True),
        LogRow(3, 2, "no vector", False),
        LogRow(4, 1, "updated", True),
        LogRow(5, 3, "indexed", False),
    ]
    assert compare_records({"indexed", "kept"}, {"kept", "added", "upserted", "updated", "no vector"}, log) == (
        ["no vector", "updated"],
        [],
    )
    assert compare_records({"kept"}, set(), []) == ([], ["kept"])


def test_every_code_is_documented() -> None:
    """Programs rely on them; `docs/index-repair.md` and `docs/doctor.md` say what each means."""
    root = Path(__file__).parents[3]
    documented = (root / "docs/index-repair.md").read_text() + (root / "docs/doctor.md").read_text()
    sources = "".join(
        (root / f"gateway/chroma/{name}.py").read_text() for name in ("structure", "link_lists", "doctor")
    )
    codes = set(re.findall(r"""(?:Problem\(|Severity\.\w+,|append\(\s*\(|return \[\s*\()\s*"([a-z0-9-]+)",""", sources))
    assert len(codes) > 30
    assert {code for code in codes if f"`{code}`" not in documented} == set()
