"""A file that changes from snapshot to snapshot is restored as it was in each of them."""

import asyncio
import hashlib
import random
import secrets
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import CorruptSnapshot
from gateway.jobs import Progress
from gateway.snapshot import capture, fetch, packing
from gateway.snapshot.baseline import Baseline, StoredFile, manifest_files, stored_file
from gateway.snapshot.blocks import Layout
from gateway.snapshot.capture import _IndexFileReader, _store_file
from gateway.snapshot.fetch import Staged, _fetch, _make_files, _verify_file
from gateway.snapshot.model import File, Manifest
from gateway.snapshot.packing import PackWriter
from gateway.snapshot.plan import MAX_PATCHES
from gateway.snapshot.repository import Repository
from gateway.storage import FileStorage
from tests.unit.snapshot.manifests import manifest


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """Pieces, packs and reads so small that a file of a few kilobytes has many."""
    with (
        patch.multiple(capture, PIECE_BYTES=500, _READ_BYTES=700),
        patch.multiple(packing, PACK_BYTES=2000),
        patch.multiple(fetch, _READ_BYTES=600, _HEADROOM_BYTES=0),
    ):
        yield


def edit(data: bytearray, chance: random.Random) -> None:
    """Change a file as may happen between two snapshots."""
    kind = chance.random()
    if kind < 0.75:
        for _ in range(chance.choice((1, 1, 1, 5))):
            if data:
                position = chance.randrange(len(data))
                some = chance.randbytes(chance.randint(1, 20))
                data[position : position + len(some)] = some[: len(data) - position]
    elif kind < 0.85:
        data += chance.randbytes(chance.randint(1, 100))
    elif kind < 0.92:
        del data[
            chance.randint(0, len(data)) if chance.random() < 0.2 else max(0, len(data) - chance.randint(1, 300)) :
        ]
    elif kind < 0.94:
        data[:] = chance.randbytes(chance.randint(0, 9000))
    elif kind < 0.96:
        data += bytes(chance.randint(1, 300))


class Generations:
    """Files in a directory, and snapshots of them in a store."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self.repository = Repository(FileStorage(path / "store"))
        self.baseline = Baseline("", secrets.randbits(64))
        self.reached: Counter[str] = Counter()

    async def snapshot(self, contents: dict[str, bytes]) -> Manifest:
        files: list[StoredFile] = []
        async with PackWriter(self.repository, {}, Progress()) as writer:
            for name, data in contents.items():
                (self.path / name).write_bytes(data)
                source = _IndexFileReader(self.path / name, self.layout, self.baseline)
                have = self.baseline.files.get(name)
                now = await _store_file(name, source, self.layout, have, writer)
                self._note(have, now)
                files.append(now)
        self.baseline = Baseline("", self.baseline.seed, {file.path: file for file in files})
        packs, listed = manifest_files(files)
        return manifest().model_copy(update={"packs": packs, "files": listed})

    def _note(self, have: StoredFile | None, now: StoredFile) -> None:
        if have is None:
            return
        if now.base != have.base:
            self.reached["rebased"] += 1
        elif len(now.patches) > len(have.patches):
            self.reached["patched"] += 1
        elif now.patches == have.patches:
            self.reached["kept"] += 1
        else:
            self.reached["merged"] += 1

    async def restore(self, made: Manifest) -> tuple[dict[str, bytes], Staged]:
        with tempfile.TemporaryDirectory(dir=self.path) as directory:
            target, staged = Path(directory), Staged(made)
            _make_files(target, made.files)
            for file in made.files:
                staged.origins[file.path] = np.zeros(Layout(file.layout).count(file.size_bytes), np.uint8)
            complete: list[str] = []

            async def check(file: File) -> None:
                _verify_file(target, file, staged)
                complete.append(file.path)

            await _fetch(self.repository.get_unverified, staged, target, lambda done, total: None, check)
            assert sorted(complete) == sorted(file.path for file in made.files)
            return {file.path: (target / file.path).read_bytes() for file in made.files}, staged


LAYOUTS = (Layout((64,)), Layout((12, 52)), Layout((132, 40, 4)), Layout((4,)))


async def live_through(path: Path, layout: Layout, seed: int, generations: int, check_every: int) -> Counter[str]:
    chance, kept = random.Random(seed), []
    files = {name: bytearray(chance.randbytes(chance.randint(0, 9000))) for name in "abc"}
    made = Generations(path, layout)
    for number in range(generations):
        for data in files.values():
            if chance.random() < 0.8:
                edit(data, chance)
        contents = {name: bytes(data) for name, data in files.items()}
        kept.append((await made.snapshot(contents), contents))
        if number % check_every == 0:
            snapshot, expected = chance.choice(kept)
            assert (await made.restore(snapshot))[0] == expected
        if chance.random() < 0.1:
            # A gateway that starts again, or one that restored: it goes on from what was fetched.
            snapshot, expected = chance.choice(kept)
            found, staged = await made.restore(snapshot)
            assert found == expected
            files = {name: bytearray(data) for name, data in expected.items()}
            made.baseline = Baseline(
                "",
                staged.fingerprinter.seed,
                {
                    file.path: stored_file(
                        file, snapshot.packs, staged.fingerprints[file.path], staged.origins[file.path]
                    )
                    for file in snapshot.files
                },
            )
        assert all(len(file.patches) <= MAX_PATCHES for file in made.baseline.files.values())
    for snapshot, expected in kept[-10:]:
        assert (await made.restore(snapshot))[0] == expected
    return made.reached


@pytest.mark.parametrize(
    ("layout", "lives"),
    [(LAYOUTS[0], 1), (LAYOUTS[2], 1), *(pytest.param(each, 3, marks=pytest.mark.soak) for each in LAYOUTS)],
    ids=str,
)
async def test_every_generation_is_restored_as_it_was(tmp_path: Path, layout: Layout, lives: int) -> None:
    """Edited, grown, truncated and replaced; kept, patched, merged and stored anew; restored and continued from."""
    reached: Counter[str] = Counter()
    for seed in range(lives):
        (tmp_path / str(seed)).mkdir()
        reached += await live_through(tmp_path / str(seed), layout, seed, generations=60, check_every=4)
    assert all(reached[how] >= 5 * lives // 3 for how in ("kept", "patched", "merged", "rebased")), reached


@settings(max_examples=30)
@given(
    layout=st.sampled_from(LAYOUTS),
    generations=st.lists(st.one_of(st.binary(max_size=600), st.integers(0, 600)), min_size=1, max_size=8),
)
def test_any_generations_are_restored(layout: Layout, generations: list[bytes | int]) -> None:
    """A number is the new length of the file, by truncation or with zeros. Bytes overwrite its beginning."""

    async def check(path: Path) -> None:
        made, data, kept = Generations(path, layout), b"", []
        for each in generations:
            data = data[:each] + bytes(max(0, each - len(data))) if isinstance(each, int) else each + data[len(each) :]
            kept.append((await made.snapshot({"a": data}), {"a": data}))
        for snapshot, expected in kept:
            assert (await made.restore(snapshot))[0] == expected

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(check(Path(directory)))


async def test_small_change_costs_little(tmp_path: Path) -> None:
    """One byte of a file of 100 kB: one block is stored and nothing more."""
    made, data = Generations(tmp_path, Layout((64,))), bytearray(random.Random(0).randbytes(100_000))
    first = await made.snapshot({"a": bytes(data)})
    data[50_000] ^= 1
    second = await made.snapshot({"a": bytes(data)})
    new = {pack.sha256: pack.size_bytes for pack in second.packs if pack not in first.packs}
    assert sum(new.values()) < 100
    third = await made.snapshot({"a": bytes(data)})
    assert third.packs == second.packs


async def test_restored_file_has_its_fingerprints_and_origins(tmp_path: Path) -> None:
    """So the next snapshot after a restore stores only what changed since."""
    made, data = Generations(tmp_path, Layout((64,))), bytearray(random.Random(0).randbytes(20_000))
    for position in (0, 5000, 19_999):
        data[position] ^= 1
        snapshot = await made.snapshot({"a": bytes(data)})
    _, staged = await made.restore(snapshot)
    assert np.array_equal(staged.origins["a"], made.baseline.files["a"].origins)
    source = _IndexFileReader(tmp_path / "a", Layout((64,)), Baseline("", staged.fingerprinter.seed))
    assert np.array_equal(staged.fingerprints["a"], source.scan(None).fingerprints)
    assert set(staged.origins["a"].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("which", ["base", "patch"])
async def test_file_with_another_digest_is_refused(tmp_path: Path, which: str) -> None:
    """Every pack has its digest, but the file does not."""
    made, data = Generations(tmp_path, Layout((64,))), bytearray(random.Random(0).randbytes(3000))
    await made.snapshot({"a": bytes(data)})
    data[100] ^= 1
    snapshot = await made.snapshot({"a": bytes(data)})
    (file,) = snapshot.files
    change = {"base": file.base[1:]} if which == "base" else {"patches": ()}
    forged = snapshot.model_copy(update={"files": (file.model_copy(update=change),)})
    with pytest.raises(CorruptSnapshot, match="a does not have the digest"):
        await made.restore(forged)


async def test_base_longer_than_its_file_does_not_write_past_the_end(tmp_path: Path) -> None:
    """A truncated file keeps its pieces. A forged manifest gets no more room than it names."""
    made, data = Generations(tmp_path, Layout((64,))), random.Random(0).randbytes(3000)
    await made.snapshot({"a": data})
    snapshot = await made.snapshot({"a": data[:2900]})
    (file,) = snapshot.files
    assert sum(piece.size_bytes for piece in file.base) == 3000
    assert (await made.restore(snapshot))[0] == {"a": data[:2900]}
    forged = snapshot.model_copy(
        update={
            "files": (File(**{**file.model_dump(), "size_bytes": 10, "sha256": hashlib.sha256(data[:10]).hexdigest()}),)
        }
    )
    assert (await made.restore(forged))[0] == {"a": data[:10]}
