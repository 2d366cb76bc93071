"""Index files whose sizes do not fit are found before Chroma starts on them."""

import pickle
from pathlib import Path

import pytest

from gateway.chroma.disk import HEADER, ID_MAP, LENGTH, LEVEL0, LINK_LISTS
from gateway.chroma.hnsw import index_problems


@pytest.fixture
def index(data_dir: Path) -> Path:
    """The one index that was written."""
    (found,) = [path for path in data_dir.iterdir() if (path / ID_MAP).exists()]
    return found


def test_an_index_that_chroma_wrote_has_no_problems(index: Path) -> None:
    """The check finds nothing in an untouched index."""
    assert index_problems(index) == []


@pytest.mark.parametrize("name", [HEADER, LEVEL0, LENGTH, LINK_LISTS, ID_MAP])
def test_every_truncation_of_every_file_is_found(index: Path, name: str) -> None:
    """The file is named, whatever its length and its last byte."""
    whole = (index / name).read_bytes()
    # All of the interesting lengths: every one near both ends, and a spread between.
    ends = {*range(0, len(whole), 97), *range(min(300, len(whole))), *range(max(0, len(whole) - 300), len(whole))}
    ends |= (
        {end for end in range(len(whole)) if whole[:end].endswith((b".", b"u.", b"}u."))} if name == ID_MAP else set()
    )
    missed = []
    with (index / name).open("r+b") as file:
        for end in sorted(ends, reverse=True):
            file.truncate(end)
            problems = index_problems(index)
            if not any(name in problem for problem in problems):
                missed.append(end)
    assert not missed


@pytest.mark.parametrize("name", [HEADER, LEVEL0, LENGTH, LINK_LISTS])
def test_a_missing_file_is_found(index: Path, name: str) -> None:
    """It is named."""
    (index / name).unlink()
    assert index_problems(index) == [f"{name} is missing"]


def test_an_index_that_was_never_synced_has_no_problems(index: Path) -> None:
    """Without an id map Chroma rebuilds the index from the log and ignores the other files."""
    (index / ID_MAP).unlink()
    (index / LEVEL0).write_bytes(b"")
    assert index_problems(index) == []
    assert index_problems(index / "nowhere") == []


def test_a_header_that_counts_more_than_there_is_room_for_is_found(index: Path) -> None:
    """Capacity and count are compared, because hnswlib does not check them."""
    raw = bytearray((index / HEADER).read_bytes())
    raw[12:20] = (3).to_bytes(8, "little")
    (index / HEADER).write_bytes(raw)
    assert any("in room for 3" in problem for problem in index_problems(index))


def test_a_header_of_an_unknown_version_is_found(index: Path) -> None:
    """The rest of such a header cannot be interpreted."""
    raw = (index / HEADER).read_bytes()
    (index / HEADER).write_bytes(b"\x02\0\0\0" + raw[4:])
    assert index_problems(index) == [f"{HEADER} is of version 2, known is 1"]


class PersistentData:
    """The object that chromadb 0.4 pickled."""

    def __init__(self, fields: dict[str, object]) -> None:
        self.__dict__.update(fields)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_id_map_of_an_older_chroma_is_read(index: Path, protocol: int) -> None:
    """chromadb 0.4 and 0.5 pickled it with sequence ids. Any protocol is read, and every truncation is found."""
    fields = {
        "dimensionality": 8,
        "total_elements_added": 2,
        "id_to_label": {"a.b": 1, "}u.": 2},
        "id_to_seq_id": {"a.b": 1, "}u.": 2},
    }
    for document in (fields, PersistentData(fields)):
        whole = pickle.dumps(document, protocol)
        (index / ID_MAP).write_bytes(whole)
        assert index_problems(index) == []
        for end in range(len(whole)):
            (index / ID_MAP).write_bytes(whole[:end])
            assert index_problems(index) == [f"{ID_MAP} is cut off"]


def test_nothing_of_an_id_map_is_executed(index: Path, tmp_path: Path) -> None:
    """A pickle from a store may contain code. It is parsed and not loaded."""

    class Touch:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "executed",)

    (index / ID_MAP).write_bytes(pickle.dumps(Touch()))
    index_problems(index)
    assert not (tmp_path / "executed").exists()
