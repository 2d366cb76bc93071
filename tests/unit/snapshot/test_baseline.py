"""What is noted down of the store is believed only as far as it still can be true."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.chroma.disk import DATABASE, Signature, signatures_of
from gateway.snapshot.baseline import (
    Baseline,
    Stored,
    listing,
    load,
    merge,
    nothing,
    save,
    saved_snapshot,
    stored,
)
from gateway.snapshot.blocks import Layout
from gateway.snapshot.model import Manifest
from gateway.snapshot.packing import PackWriter
from gateway.snapshot.progress import Silent
from gateway.snapshot.repository import Repository
from tests.unit.snapshot.manifests import ID, NEWER, SEGMENT, manifest, sha
from tests.unit.snapshot.stores import MemoryStore

POSITION = manifest().positions[SEGMENT]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """The files that the manifest names, on disk."""
    made = tmp_path / "data"
    (made / SEGMENT).mkdir(parents=True)
    for file, data in zip(manifest().files, (b"database", b"index"), strict=True):
        (made / file.path).write_bytes(data)
    return made


@pytest.fixture
def path(tmp_path: Path, data_dir: Path) -> Path:
    """A baseline on disk, of the manifest and of the files as they are."""
    save(tmp_path / "baseline", baseline_of(manifest(), signatures_of(data_dir, [SEGMENT])))
    return tmp_path / "baseline"


def baseline_of(made: Manifest, signatures: dict[str, Signature]) -> Baseline:
    files = {
        file.path: stored(file, made.packs, np.full((1, 2), number + 1, np.uint64), np.full(1, number, np.uint8))
        for number, file in enumerate(made.files)
    }
    return Baseline(made.snapshot.id, (1 << 64) - 1, files, dict(made.positions), signatures)


def loaded(path: Path, data_dir: Path, synced: int | None = POSITION, made: Manifest | None = None) -> Baseline | None:
    segments = {} if synced is None else {SEGMENT: synced}
    return load(path, made or manifest(), segments, signatures_of(data_dir, [SEGMENT]))


def test_what_was_saved_is_loaded(path: Path, data_dir: Path) -> None:
    """Fingerprints, origins, seed, pieces and positions; and nothing is left beside it."""
    found = loaded(path, data_dir)
    expected = baseline_of(manifest(), {})
    assert found is not None
    assert saved_snapshot(path) == found.snapshot_id == ID
    assert (found.seed, found.positions) == (expected.seed, {SEGMENT: POSITION})
    assert found.files.keys() == expected.files.keys()
    for name, file in found.files.items():
        wanted = expected.files[name]
        assert replace(file, fingerprints=None, origins=None) == replace(wanted, fingerprints=None, origins=None)
        assert np.array_equal(file.fingerprints, wanted.fingerprints)
        assert np.array_equal(file.origins, wanted.origins)
    assert [each.name for each in path.parent.iterdir() if each.is_file()] == ["baseline"]


def test_what_was_loaded_can_be_saved_and_loaded_again(path: Path, data_dir: Path) -> None:
    """After a snapshot in which no index moved, and a second restart, the store still has all of it."""
    found = loaded(path, data_dir)
    assert found is not None
    save(path, replace(found, snapshot_id=NEWER))
    again = loaded(path, data_dir, made=manifest(NEWER))
    assert again is not None
    assert again.positions == {SEGMENT: POSITION}


def test_an_index_of_whose_files_nothing_was_noted_has_no_position(path: Path, data_dir: Path) -> None:
    """The rest of what the store has is known all the same."""
    database = signatures_of(data_dir, [])
    save(path, baseline_of(manifest(), database))
    found = loaded(path, data_dir)
    assert found is not None
    assert (found.positions, found.files.keys()) == ({}, {file.path for file in manifest().files})


def test_that_of_another_snapshot_is_not_loaded(path: Path, data_dir: Path) -> None:
    """Its fingerprints are of other bytes."""
    assert loaded(path, data_dir, made=manifest(NEWER)) is None


def test_that_of_a_snapshot_with_more_files_is_not_loaded(path: Path, data_dir: Path) -> None:
    """One fingerprint that is missing makes it useless."""
    assert loaded(path, data_dir, made=manifest(packs=(b"database", b"index", b"another"))) is None


def test_every_cut_of_the_file_is_refused_without_an_error(path: Path, data_dir: Path) -> None:
    """A full disk or a crash may leave any part of it."""
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        assert loaded(path, data_dir) is None
        assert saved_snapshot(path) is None


def test_a_flipped_byte_is_refused_or_means_the_same_and_never_raises(path: Path, data_dir: Path) -> None:
    """Whichever: a damaged file costs a full snapshot at most."""
    whole, chance = path.read_bytes(), random.Random(0)
    for position in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[position] ^= 1 << chance.randrange(8)
        path.write_bytes(bytes(changed))
        found = loaded(path, data_dir)
        saved_snapshot(path)
        if found is not None:
            for number, file in enumerate(found.files.values()):
                assert np.array_equal(file.fingerprints, np.full((1, 2), number + 1, np.uint64))
                assert np.array_equal(file.origins, np.full(1, number, np.uint8))


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"PK\3\4", b"\x93NUMPY", b"not a file of ours", b"\x80\x04]."])
def test_what_is_no_baseline_is_none(tmp_path: Path, data_dir: Path, data: bytes) -> None:
    """Nor is nothing at all, or a directory; and no pickle is ever opened."""
    path = tmp_path / "baseline"
    assert saved_snapshot(path) is None
    path.write_bytes(data)
    assert saved_snapshot(path) is None
    assert loaded(path, data_dir) is None
    path.unlink()
    path.mkdir()
    assert saved_snapshot(path) is None
    assert loaded(path, data_dir) is None


def test_a_save_that_fails_leaves_the_one_before(path: Path, data_dir: Path) -> None:
    """It is there whole or not at all."""
    before = path.read_bytes()
    path.with_suffix(".new").mkdir()
    with pytest.raises(OSError, match="new"):
        save(path, baseline_of(manifest(NEWER), {}))
    assert path.read_bytes() == before


# ---------------------------------------------------------------------- which indexes are believed


def test_an_index_whose_files_are_other_ones_has_no_position(path: Path, data_dir: Path) -> None:
    """Its max_seq_id says that nothing was synced since, its files say otherwise."""
    file = data_dir / manifest().files[1].path
    file.write_bytes(b"xedni")
    found = loaded(path, data_dir)
    assert found is not None
    assert found.positions == {}
    assert found.files.keys() == {each.path for each in manifest().files}


def test_an_index_whose_files_are_gone_has_no_position(path: Path, data_dir: Path) -> None:
    """As one whose files changed."""
    (data_dir / manifest().files[1].path).unlink()
    found = loaded(path, data_dir)
    assert found is not None
    assert found.positions == {}


def test_an_index_that_was_synced_since_keeps_the_position_of_what_the_store_has(path: Path, data_dir: Path) -> None:
    """Its files changed, as they must; the store's are older and the log has the rest."""
    (data_dir / manifest().files[1].path).write_bytes(b"longer than it was")
    found = loaded(path, data_dir, synced=POSITION + 1)
    assert found is not None
    assert found.positions == {SEGMENT: POSITION}


def test_with_another_database_no_index_has_a_position(path: Path, data_dir: Path) -> None:
    """Sequence ids of one database mean nothing in another."""
    database = data_dir / DATABASE
    database.rename(data_dir / "old")
    database.write_bytes((data_dir / "old").read_bytes())
    for synced in (POSITION, POSITION + 1, None):
        found = loaded(path, data_dir, synced=synced)
        assert found is not None
        assert found.positions == {}


def test_without_a_database_there_is_nothing(path: Path, data_dir: Path) -> None:
    """And no error."""
    (data_dir / DATABASE).unlink()
    assert loaded(path, data_dir) is None


def test_without_its_packs_a_file_is_stored_anew_and_its_index_with_it(data_dir: Path) -> None:
    """A pack that rotted takes with it what needs it, and nothing else."""
    whole = baseline_of(manifest(), {})
    assert whole.without_packs([]) is whole
    assert whole.without_packs([sha(b"unknown")]).files.keys() == whole.files.keys()
    index = whole.without_packs([sha(b"index")])
    assert set(index.files) == {DATABASE}
    assert index.positions == {}
    database = whole.without_packs([sha(b"database")])
    assert set(database.files) == {manifest().files[1].path}
    assert database.positions == {SEGMENT: POSITION}
    assert (database.snapshot_id, database.seed) == (whole.snapshot_id, whole.seed)


def test_of_an_empty_store_nothing_is_known() -> None:
    """And nobody knows its seed."""
    assert nothing().files == nothing().positions == {}
    assert nothing().seed != nothing().seed


# ---------------------------------------------------------------------- into a manifest and back


async def test_what_is_listed_in_a_manifest_is_the_same_read_back() -> None:
    """Every piece in its own pack; packs that hold several are named once."""
    async with PackWriter(Repository(MemoryStore()), {}, Silent()) as writer:
        first = tuple(await writer.add([b"one", b"two"]))
        await writer.seal()
        second = tuple(await writer.add([b"three", b"four"]))
    await asyncio.sleep(0)
    empty = np.empty((0, 2), np.uint64)
    files = [
        Stored(path, 6, sha(b""), None, Layout((4096,)), base, patches, empty, np.zeros(0, np.uint8))
        for path, base, patches in (("b", second, ()), ("a", first, (second[:1], (*first[1:], *second[1:]))))
    ]
    packs, listed = listing(files)
    assert [file.path for file in listed] == ["a", "b"]
    assert {pack.sha256 for pack in packs} == {sha(b"onetwo"), sha(b"threefour")}
    for file, original in zip(listed, reversed(files), strict=True):
        again = stored(file, packs, original.fingerprints, original.origins)
        assert again.patch_bytes == original.patch_bytes
        for ours, theirs in zip(
            (*again.base, *sum(again.patches, ())), (*original.base, *sum(original.patches, ())), strict=True
        ):
            assert replace(ours, within=ours.pack) == replace(theirs, within=theirs.pack)


@given(
    origins=st.lists(st.integers(0, 5), max_size=20),
    count=st.integers(0, 25),
    patch=st.integers(1, 6),
    data=st.data(),
)
def test_origins_name_the_newest_patch_that_has_a_block(
    origins: list[int], count: int, patch: int, data: st.DataObject
) -> None:
    """Blocks of patches that were merged are in the new one, of which there is none after."""
    grown = set(range(min(len(origins), count), count))
    chosen = data.draw(st.sets(st.integers(0, count - 1))) if count else set()
    merged = {number for number, origin in enumerate(origins[:count]) if origin >= patch}
    changed = sorted(grown | chosen | merged)
    now = merge(np.array(origins, np.uint8), count, np.array(changed, np.int64), patch)
    assert len(now) == count
    for number in range(count):
        assert now[number] == (patch if number in changed else origins[number])
