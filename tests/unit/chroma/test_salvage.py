"""Vectors come out of a torn index by the ids of their records, or not at all."""

import os
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from gateway.chroma.disk import DATABASE, HEADER, ID_MAP, LENGTH, LEVEL0, LINK_LISTS
from gateway.chroma.header import read_header
from gateway.chroma.id_map import old_id_map, parse_id_map, read_id_map
from gateway.chroma.salvage import Evidence, Order, Salvage, salvage_index
from gateway.chroma.segments import Segment, live_records, read_segments
from tests.unit.chroma.conftest import DIMENSION, RECORDS

ELEMENT = 4 + 2 * 16 * 4 + 4 * DIMENSION + 8
VECTORS = np.random.default_rng(0).random((RECORDS, DIMENSION)).astype(np.float32)  # as conftest wrote them


class Torn:
    """The index that conftest wrote, and what is known of it."""

    def __init__(self, data_dir: Path) -> None:
        with closing(sqlite3.connect(data_dir / DATABASE)) as connection:
            (self.segment,) = [each for each in read_segments(connection) if each.name == "synced"]
            self.live = live_records(connection, self.segment)
        self.path = data_dir / self.segment.id

    def salvage(self, evidence: Evidence | None = None) -> Salvage | None:
        return salvage_index(self.path, self.segment, evidence or Evidence(self.live))


@pytest.fixture
def torn(data_dir: Path) -> Torn:
    return Torn(data_dir)


def vector_of(each: str) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = VECTORS[int(each.split(".")[-2])]
    return found


def all_right(found: Salvage | None, ids: set[str] | None = None) -> bool:
    assert found is not None
    assert ids is None or set(found.ids) == ids
    return all(
        np.array_equal(vector, vector_of(each))
        for vector, each in zip(found.vectors(0, RECORDS), found.ids, strict=True)
    )


def _random_links(path: Path) -> None:
    with (path / LEVEL0).open("r+b") as file:
        for element in range(50, 300):
            file.seek(element * ELEMENT)
            file.write(os.urandom(132))


def _no_header(path: Path) -> None:
    (path / HEADER).write_bytes(bytes(50))


def _files_gone(path: Path) -> None:
    for name in (HEADER, LENGTH, LINK_LISTS):
        (path / name).unlink()


@pytest.mark.parametrize("damage", [_random_links, _no_header, _files_gone])
def test_everything_comes_out_while_vectors_and_id_map_are_there(torn: Torn, damage: Callable[[Path], None]) -> None:
    """Bit for bit, whatever happened to links, header and lists."""
    damage(torn.path)
    assert all_right(torn.salvage(), set(torn.live))


def test_a_cut_file_yields_the_elements_before_the_cut(torn: Torn) -> None:
    """No more and no fewer, and none in doubt: what is left links to what is gone."""
    os.truncate(torn.path / LEVEL0, 100 * ELEMENT + 17)
    found = torn.salvage()
    assert found is not None
    assert len(found.ids) == 100
    assert all_right(found)
    assert not found.doubtful


def test_a_region_of_random_bytes_yields_none_of_what_it_hit(torn: Torn) -> None:
    """Elements that lie within it are not found; the one that its end cuts is not believed."""
    with (torn.path / LEVEL0).open("r+b") as file:
        file.seek(100 * ELEMENT + 150)
        file.write(os.urandom(50 * ELEMENT + 20))
    found = torn.salvage()
    assert found is not None
    assert all_right(found)
    assert RECORDS - 53 <= len(found.ids) <= RECORDS - 51


@pytest.mark.parametrize("part", [0, 0.3, 0.9])
def test_the_order_tells_what_a_lost_id_map_does_not(torn: Torn, part: float) -> None:
    """Where a vector known from elsewhere, or the rest of the map, lies where it says."""
    whole = (torn.path / ID_MAP).read_bytes()
    (torn.path / ID_MAP).write_bytes(whole[: int(part * len(whole))])
    known = {} if part else {each: vector_of(each) for each in list(torn.live)[-3:]}
    found = torn.salvage(Evidence(torn.live, [Order(known, is_complete=False)]))
    assert all_right(found, set(torn.live))


def test_the_order_is_not_believed_without_a_witness(torn: Torn) -> None:
    """Nor where the witness says otherwise, or where there are fewer records than labels."""
    (torn.path / ID_MAP).unlink()
    right = {each: vector_of(each) for each in list(torn.live)[:2]}
    wrong = dict(zip(right, reversed(right.values()), strict=True))
    for evidence in (
        Evidence(torn.live, [Order({}, is_complete=True)]),
        Evidence(torn.live, [Order(wrong, is_complete=True)]),
        Evidence(torn.live),
    ):
        found = torn.salvage(evidence)
        assert found is not None
        assert found.ids == []
    assert all_right(
        torn.salvage(Evidence(torn.live, [Order(wrong, is_complete=True), Order(right, is_complete=False)])),
        set(torn.live),
    )
    fewer = {each: seq_id for each, seq_id in torn.live.items() if not each.endswith(".5.md")}
    found = torn.salvage(Evidence(fewer, [Order(right, is_complete=False)]))
    assert found is not None
    assert found.ids == []


def test_elements_of_another_index_in_what_was_memory_are_not_taken(torn: Torn) -> None:
    """A small older file ends with what lay in memory, which may be elements with labels that are looked for."""
    header = read_header(torn.path)
    assert header is not None
    raw = bytearray((torn.path / LEVEL0).read_bytes())
    labels = {struct.unpack_from("<Q", raw, element * ELEMENT + ELEMENT - 8)[0] for element in range(60)}
    for element in range(60):  # as of a moment at which there were 60 records
        struct.pack_into("<II", raw, element * ELEMENT, 1, (element + 1) % 60)
    for element in range(60, 100):
        struct.pack_into("<II", raw, element * ELEMENT, 1, 3)
        raw[element * ELEMENT + 132 : element * ELEMENT + 132 + 4 * DIMENSION] = np.ones(DIMENSION, "<f4").tobytes()
    (torn.path / LEVEL0).write_bytes(raw[: 100 * ELEMENT])
    found = torn.salvage()
    known = read_id_map(torn.path / ID_MAP).id_to_label
    assert all_right(found, {each for each, label in known.items() if label in labels})
    assert found is not None
    assert found.doubtful


def test_nothing_comes_out_of_no_vectors(torn: Torn) -> None:
    """None, not an error."""
    (torn.path / LEVEL0).unlink()
    assert torn.salvage() is None


def test_lengths_go_with_the_vectors_of_a_cosine_collection(torn: Torn) -> None:
    """They are multiplied with when a vector is asked for; those that are lost are named."""
    raw = bytearray((torn.path / LEVEL0).read_bytes())
    for element in range(RECORDS):
        at = element * ELEMENT + 132
        vector = np.frombuffer(bytes(raw[at : at + 4 * DIMENSION]), "<f4")
        raw[at : at + 4 * DIMENSION] = (vector / np.linalg.norm(vector)).astype("<f4").tobytes()
    (torn.path / LEVEL0).write_bytes(raw)
    np.full(RECORDS, 2.5, "<f4").tofile(torn.path / LENGTH)
    cosine = Segment(**{**{name: getattr(torn.segment, name) for name in Segment.__slots__}, "space": "cosine"})
    evidence = Evidence(torn.live)
    found = salvage_index(torn.path, cosine, evidence)
    assert found is not None
    assert found.lengths is not None
    assert set(found.lengths.tolist()) == {2.5}
    assert not found.unscaled
    os.truncate(torn.path / LENGTH, 4 * 300)
    cut = salvage_index(torn.path, cosine, evidence)
    assert cut is not None
    assert len(cut.ids) == RECORDS
    assert len(cut.unscaled) == RECORDS - 300


def test_an_old_id_map_is_written_as_old_chroma_reads_it() -> None:
    """By its own reader and by Python's, as an object with every field that chromadb 0.4 asks for."""
    data = old_id_map({"a": 1, "b": 2}, {"a": 7}, 8, 9)
    found = parse_id_map(data)
    assert (found.is_whole, found.is_object, found.max_seq_id, found.dimensionality) == (True, True, 9, 8)
    assert found.id_to_label == {"a": 1, "b": 2}
    assert found.label_to_id == {1: "a", 2: "b"}
