"""A saved baseline is used only as far as it can still be true."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.chroma.disk import DATABASE, Signature, signatures_of
from gateway.errors import GatewayError
from gateway.jobs import Progress
from gateway.snapshot.baseline import (
    Baseline,
    StoredFile,
    empty_baseline,
    load,
    manifest_files,
    merge_origins,
    save,
    saved_snapshot_id,
    stored_file,
)
from gateway.snapshot.blocks import Layout
from gateway.snapshot.model import Manifest
from gateway.snapshot.packing import PackWriter
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
    """A saved baseline of the manifest, with the signatures of the files as they are."""
    save(tmp_path / "baseline", baseline_of(manifest(), signatures_of(data_dir, [SEGMENT])))
    return tmp_path / "baseline"


def baseline_of(made: Manifest, signatures: dict[str, Signature]) -> Baseline:
    files = {
        file.path: stored_file(file, made.packs, np.full((1, 2), number + 1, np.uint64), np.full(1, number, np.uint8))
        for number, file in enumerate(made.files)
    }
    return Baseline(made.snapshot.id, (1 << 64) - 1, files, dict(made.positions), signatures)


def loaded(path: Path, data_dir: Path, synced: int | None = POSITION, made: Manifest | None = None) -> Baseline | None:
    segments = {} if synced is None else {SEGMENT: synced}
    return load(path, made or manifest(), segments, signatures_of(data_dir, [SEGMENT]))


def test_saved_baseline_is_loaded(path: Path, data_dir: Path) -> None:
    """Fingerprints, origins, seed, pieces and positions. Saving leaves no other file behind."""
    found = loaded(path, data_dir)
    expected = baseline_of(manifest(), {})
    assert found is not None
    assert saved_snapshot_id(path) == found.snapshot_id == ID
    assert (found.seed, found.positions) == (expected.seed, {SEGMENT: POSITION})
    assert found.files.keys() == expected.files.keys()
    for name, file in found.files.items():
        wanted = expected.files[name]
        assert replace(file, fingerprints=None, origins=None) == replace(wanted, fingerprints=None, origins=None)
        assert np.array_equal(file.fingerprints, wanted.fingerprints)
        assert np.array_equal(file.origins, wanted.origins)
    assert [each.name for each in path.parent.iterdir() if each.is_file()] == ["baseline"]


def test_loaded_baseline_can_be_saved_and_loaded_again(path: Path, data_dir: Path) -> None:
    """After a snapshot in which no index changed, and a second restart, the positions are still known."""
    found = loaded(path, data_dir)
    assert found is not None
    save(path, replace(found, snapshot_id=NEWER))
    again = loaded(path, data_dir, made=manifest(NEWER))
    assert again is not None
    assert again.positions == {SEGMENT: POSITION}


def test_index_without_saved_signatures_has_no_position(path: Path, data_dir: Path) -> None:
    """The files of the baseline are known all the same."""
    database = signatures_of(data_dir, [])
    save(path, baseline_of(manifest(), database))
    found = loaded(path, data_dir)
    assert found is not None
    assert (found.positions, found.files.keys()) == ({}, {file.path for file in manifest().files})


def test_an_index_that_is_not_known_to_be_sound_has_no_position(path: Path, data_dir: Path) -> None:
    """The next snapshot reads and checks it, and stores what differs."""
    sound = baseline_of(manifest(), signatures_of(data_dir, [SEGMENT]))
    save(path, replace(sound, positions={}))
    found = loaded(path, data_dir)
    assert found is not None
    assert (found.positions, found.files.keys()) == ({}, {file.path for file in manifest().files})


def test_baseline_of_another_snapshot_is_not_loaded(path: Path, data_dir: Path) -> None:
    """Its fingerprints belong to other bytes."""
    assert loaded(path, data_dir, made=manifest(NEWER)) is None


def test_baseline_without_the_fingerprints_of_a_file_is_not_loaded(path: Path, data_dir: Path) -> None:
    """A missing fingerprint makes it useless."""
    assert loaded(path, data_dir, made=manifest(packs=(b"database", b"index", b"another"))) is None


def test_truncated_baseline_is_not_loaded(path: Path, data_dir: Path) -> None:
    """A full disk or a crash may leave any part of the file. It never raises."""
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        assert loaded(path, data_dir) is None
        assert saved_snapshot_id(path) is None


def test_flipped_byte_is_refused_or_changes_nothing(path: Path, data_dir: Path) -> None:
    """It never raises: a damaged file costs at most a full snapshot."""
    whole, chance = path.read_bytes(), random.Random(0)
    for position in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[position] ^= 1 << chance.randrange(8)
        path.write_bytes(bytes(changed))
        found = loaded(path, data_dir)
        saved_snapshot_id(path)
        if found is not None:
            for number, file in enumerate(found.files.values()):
                assert np.array_equal(file.fingerprints, np.full((1, 2), number + 1, np.uint64))
                assert np.array_equal(file.origins, np.full(1, number, np.uint8))


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"PK\3\4", b"\x93NUMPY", b"not a file of ours", b"\x80\x04]."])
def test_anything_but_a_baseline_is_not_loaded(tmp_path: Path, data_dir: Path, data: bytes) -> None:
    """Neither is a missing file or a directory. A pickle is never opened."""
    path = tmp_path / "baseline"
    assert saved_snapshot_id(path) is None
    path.write_bytes(data)
    assert saved_snapshot_id(path) is None
    assert loaded(path, data_dir) is None
    path.unlink()
    path.mkdir()
    assert saved_snapshot_id(path) is None
    assert loaded(path, data_dir) is None


def test_failed_save_leaves_the_previous_baseline(path: Path, data_dir: Path) -> None:
    """The file is replaced as a whole or not at all."""
    before = path.read_bytes()
    path.with_suffix(".new").mkdir()
    with pytest.raises(GatewayError, match="new"):
        save(path, baseline_of(manifest(NEWER), {}))
    assert path.read_bytes() == before


# ---------------------------------------------------------------------- which indexes have a position


def test_index_with_changed_files_has_no_position(path: Path, data_dir: Path) -> None:
    """If its max_seq_id says that nothing was synced since, although its files changed."""
    file = data_dir / manifest().files[1].path
    file.write_bytes(b"xedni")
    found = loaded(path, data_dir)
    assert found is not None
    assert found.positions == {}
    assert found.files.keys() == {each.path for each in manifest().files}


def test_index_with_missing_files_has_no_position(path: Path, data_dir: Path) -> None:
    """As for changed files."""
    (data_dir / manifest().files[1].path).unlink()
    found = loaded(path, data_dir)
    assert found is not None
    assert found.positions == {}


def test_index_that_was_synced_since_keeps_its_stored_position(path: Path, data_dir: Path) -> None:
    """Its files changed, as they must. The store has the older ones, and the log has the rest."""
    (data_dir / manifest().files[1].path).write_bytes(b"longer than it was")
    found = loaded(path, data_dir, synced=POSITION + 1)
    assert found is not None
    assert found.positions == {SEGMENT: POSITION}


def test_replaced_database_leaves_no_index_a_position(path: Path, data_dir: Path) -> None:
    """Sequence ids of one database mean nothing in another."""
    database = data_dir / DATABASE
    database.rename(data_dir / "old")
    database.write_bytes((data_dir / "old").read_bytes())
    for synced in (POSITION, POSITION + 1, None):
        found = loaded(path, data_dir, synced=synced)
        assert found is not None
        assert found.positions == {}


def test_missing_database_leaves_no_baseline(path: Path, data_dir: Path) -> None:
    """And raises no error."""
    (data_dir / DATABASE).unlink()
    assert loaded(path, data_dir) is None


def test_file_with_a_corrupt_pack_is_stored_anew_with_its_index(data_dir: Path) -> None:
    """A corrupt pack affects only the files that need it, and their indexes."""
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


def test_empty_baseline_knows_nothing() -> None:
    """Its seed is different each time."""
    assert empty_baseline().files == empty_baseline().positions == {}
    assert empty_baseline().seed != empty_baseline().seed


# ---------------------------------------------------------------------- into a manifest and back


async def test_files_survive_the_way_into_a_manifest_and_back() -> None:
    """Each piece keeps its pack. A pack with several pieces is named once."""
    async with PackWriter(Repository(MemoryStore()), {}, Progress()) as writer:
        first = tuple(await writer.add([b"one", b"two"]))
        await writer.seal()
        second = tuple(await writer.add([b"three", b"four"]))
    await asyncio.sleep(0)
    empty = np.empty((0, 2), np.uint64)
    files = [
        StoredFile(path, 6, sha(b""), None, Layout((4096,)), base, patches, empty, np.zeros(0, np.uint8))
        for path, base, patches in (("b", second, ()), ("a", first, (second[:1], (*first[1:], *second[1:]))))
    ]
    packs, listed = manifest_files(files)
    assert [file.path for file in listed] == ["a", "b"]
    assert {pack.sha256 for pack in packs} == {sha(b"onetwo"), sha(b"threefour")}
    for file, original in zip(listed, reversed(files), strict=True):
        again = stored_file(file, packs, original.fingerprints, original.origins)
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
    """Blocks of merged patches are in the new patch, and no later patch exists."""
    grown = set(range(min(len(origins), count), count))
    chosen = data.draw(st.sets(st.integers(0, count - 1))) if count else set()
    merged = {number for number, origin in enumerate(origins[:count]) if origin >= patch}
    changed = sorted(grown | chosen | merged)
    now = merge_origins(np.array(origins, np.uint8), count, np.array(changed, np.int64), patch)
    assert len(now) == count
    for number in range(count):
        assert now[number] == (patch if number in changed else origins[number])
