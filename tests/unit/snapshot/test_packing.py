"""Bytes go into packs and come back, sent once, with bounded memory."""

import asyncio
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import CorruptSnapshot, StoreDenied, StoreUnavailable
from gateway.snapshot import packing
from gateway.snapshot.model import Block, File, Pack
from gateway.snapshot.packing import UPLOADS_AT_ONCE, PackWriter, unpack
from gateway.snapshot.repository import Repository, check_pack
from tests.unit.snapshot.manifests import sha
from tests.unit.snapshot.stores import MemoryStore

BLOCK_BYTES, PACK_BYTES = 64, 256


@pytest.fixture(autouse=True)
def small_packs() -> Iterator[None]:
    """Blocks and packs so small that a few hundred bytes make many."""
    with patch.multiple(packing, BLOCK_BYTES=BLOCK_BYTES, PACK_BYTES=PACK_BYTES):
        yield


async def pack(
    store: MemoryStore, directory: Path, sealed_after: set[str] = frozenset()
) -> tuple[tuple[Pack, ...], tuple[File, ...], PackWriter]:
    """Pack every file of `directory`, sealing after the last and after those named."""
    repository = Repository(store)
    async with PackWriter(repository, await repository.packs()) as writer:
        packed = []
        for path in sorted(directory.iterdir()):
            packed.append(await writer.add(path.name, path))
            if path.name in sealed_after:
                await writer.seal()
        await writer.seal()
    return *writer.finish(packed), writer


def unpacked(store: MemoryStore, packs: tuple[Pack, ...], file: File) -> bytes:
    data = b""
    for block in file.blocks:
        stored = store.objects[f"data/{packs[block.pack].sha256}"]
        check_pack(packs[block.pack], stored)
        data += unpack(block, packs[block.pack], stored)
    return data


def write(directory: Path, contents: dict[str, bytes]) -> Path:
    directory.mkdir(exist_ok=True)
    for name, data in contents.items():
        (directory / name).write_bytes(data)
    return directory


def noise(size_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


compressible = st.builds(lambda piece, times: piece * times, st.binary(max_size=20), st.integers(0, 60))
contents = st.dictionaries(st.sampled_from("abcdef"), st.one_of(st.binary(max_size=1000), compressible))


@settings(deadline=None, max_examples=60)
@given(contents=contents, sealed_after=st.sets(st.sampled_from("abcdef")))
def test_any_files_come_back_as_they_were(contents: dict[str, bytes], sealed_after: set[str]) -> None:
    """Whatever is packed, however it is gathered, unpacks to the same bytes, from packs named by their digest."""
    with tempfile.TemporaryDirectory() as directory:
        source, store = write(Path(directory), contents), MemoryStore()
        packs, files, writer = asyncio.run(pack(store, source, sealed_after))
        assert {file.path: unpacked(store, packs, file) for file in files} == contents
        assert {file.path: (file.size_bytes, file.sha256) for file in files} == {
            name: (len(data), sha(data)) for name, data in contents.items()
        }
        assert all(key == f"data/{sha(data)}" for key, data in store.objects.items())
        assert writer.uploaded_bytes == sum(map(len, store.objects.values()))
        # The same again: the same packs, and not one byte of them sent.
        before = len(store.puts)
        again, files_again, writer = asyncio.run(pack(store, source, sealed_after))
        assert (again, files_again) == (packs, files)
        assert (len(store.puts), writer.uploaded_bytes) == (before, 0)


async def test_only_packs_with_changed_bytes_are_sent_again(tmp_path: Path) -> None:
    """A change in one file leaves the packs of files sealed apart from it alone."""
    source, store = write(tmp_path / "data", {"a": noise(1000, 1), "b": noise(1000, 2)}), MemoryStore()
    packs, files, _ = await pack(store, source, {"a"})
    in_a = {packs[block.pack].sha256 for block in files[0].blocks}
    store.puts.clear()
    write(source, {"b": noise(1000, 3)})
    packs, files, _ = await pack(store, source, {"a"})
    assert {packs[block.pack].sha256 for block in files[0].blocks} == in_a
    assert set(store.puts) == {f"data/{packs[block.pack].sha256}" for block in files[1].blocks}


async def test_a_pack_that_the_store_holds_cut_short_is_sent_again(tmp_path: Path) -> None:
    """A pack counts as stored only with all of its bytes."""
    source, store = write(tmp_path / "data", {"a": noise(100)}), MemoryStore()
    packs, files, _ = await pack(store, source)
    key = f"data/{packs[0].sha256}"
    store.objects[key] = store.objects[key][:-1]
    packs, files, writer = await pack(store, source)
    assert unpacked(store, packs, files[0]) == noise(100)
    assert writer.uploaded_bytes == packs[0].size_bytes


async def test_the_same_pack_twice_is_sent_once(tmp_path: Path) -> None:
    """Two files of the same bytes share their packs also within one snapshot."""
    source, store = write(tmp_path / "data", {"a": noise(200), "b": noise(200)}), MemoryStore()
    packs, files, writer = await pack(store, source, {"a", "b"})
    assert len(store.puts) == len(packs)
    assert files[0].blocks == files[1].blocks
    assert writer.uploaded_bytes == sum(pack.size_bytes for pack in packs)


async def test_no_more_than_a_few_uploads_are_under_way(tmp_path: Path) -> None:
    """While the store is slow, packing waits for it instead of filling the memory."""
    source, store = write(tmp_path / "data", {"a": noise(PACK_BYTES * 40)}), MemoryStore()
    store.may_put.clear()
    packing_all = asyncio.create_task(pack(store, source))
    while store.putting < UPLOADS_AT_ONCE:
        await asyncio.sleep(0)
    read_before = len(asyncio.all_tasks())
    done, _ = await asyncio.wait([packing_all], timeout=0.1)
    assert not done
    assert store.putting == UPLOADS_AT_ONCE
    assert len(asyncio.all_tasks()) <= read_before
    store.may_put.set()
    packs, files, _ = await packing_all
    assert store.most_putting == UPLOADS_AT_ONCE
    assert len(packs) == len(store.puts) == 40
    assert unpacked(store, packs, files[0]) == noise(PACK_BYTES * 40)


@pytest.mark.parametrize("error", [StoreUnavailable("later"), StoreDenied("no")])
async def test_a_failing_upload_ends_it_with_that_error(tmp_path: Path, error: Exception) -> None:
    """Not as a group of errors, not after trying all the others, and never as if it had been stored."""
    source, store = write(tmp_path / "data", {"a": noise(PACK_BYTES * 40)}), MemoryStore()
    store.put_error = error
    with pytest.raises(type(error)) as caught:
        await pack(store, source)
    assert caught.value is error
    assert not store.objects
    assert not store.putting


async def test_a_file_that_is_gone_is_told_as_that(tmp_path: Path) -> None:
    """A missing file raises FileNotFoundError, and what was added before can still be finished."""
    write(tmp_path, {"a": noise(100)})
    store = MemoryStore()
    async with PackWriter(Repository(store), {}) as writer:
        packed = await writer.add("a", tmp_path / "a")
        with pytest.raises(FileNotFoundError):
            await writer.add("b", tmp_path / "b")
        await writer.seal()
    packs, files = writer.finish([packed])
    assert unpacked(store, packs, files[0]) == noise(100)


async def test_drop_unused_removes_what_this_writer_sent_for_nothing_and_no_more(tmp_path: Path) -> None:
    """Packs of files that moved after all go; those in use stay, and so do those of other snapshots."""
    store = MemoryStore()
    write(tmp_path, {"kept": noise(100, 1), "moved": noise(100, 2)})
    store.objects["data/" + "0" * 64] = b"of another snapshot"
    repository = Repository(store)
    async with PackWriter(repository, await repository.packs()) as writer:
        kept = await writer.add("kept", tmp_path / "kept")
        await writer.seal()
        await writer.add("moved", tmp_path / "moved")
        await writer.seal()
    packs, _ = writer.finish([kept])
    assert len(store.objects) == 3
    await writer.drop_unused(packs)
    assert set(store.objects) == {f"data/{packs[0].sha256}", "data/" + "0" * 64}


# ---------------------------------------------------------------------- what comes back is not believed


def block_of(raw: bytes, stored: bytes, codec: str) -> tuple[Block, Pack]:
    block = Block(sha256=sha(raw), size_bytes=len(raw), pack=0, offset=0, stored_bytes=len(stored), codec=codec)
    return block, Pack(sha256=sha(stored), size_bytes=len(stored))


@given(position=st.integers(0, 199), mask=st.integers(1, 255))
def test_every_flipped_byte_of_a_pack_is_found(position: int, mask: int) -> None:
    """The error names the pack."""
    data = bytearray(noise(200))
    _, pack_ = block_of(bytes(data), bytes(data), "raw")
    check_pack(pack_, bytes(data))
    data[position] ^= mask
    with pytest.raises(CorruptSnapshot, match=f"data/{pack_.sha256}"):
        check_pack(pack_, bytes(data))


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_a_block_with_other_bytes_than_promised_is_refused(codec: str) -> None:
    """Also in a pack that is what its name says."""
    stored = zstandard.compress(b"other bytes") if codec == "zstd" else b"other bytes"
    block, pack_ = block_of(b"the bytes!!", stored, codec)
    with pytest.raises(CorruptSnapshot, match="digest"):
        unpack(block, pack_, stored)


def test_a_block_that_is_not_compressed_data_is_refused() -> None:
    """What cannot be unpacked is corrupt."""
    block, pack_ = block_of(b"raw", b"no frame", "zstd")
    with pytest.raises(CorruptSnapshot, match="cannot be unpacked"):
        unpack(block, pack_, b"no frame")


@pytest.mark.parametrize("promised", [1, 10])
def test_a_block_that_would_unpack_to_more_than_promised_is_refused_unread(promised: int) -> None:
    """A few bytes cannot make the gateway fill its memory: 1 TiB is told by the frame and not believed."""
    bomb = bytes.fromhex(
        "28b52ffd e0 0000000000010000 010000"
    )  # a frame header: content size 2**40, an empty last block
    assert zstandard.frame_content_size(bomb) == 2**40
    block, pack_ = block_of(os.urandom(promised), bomb, "zstd")
    with pytest.raises(CorruptSnapshot, match=f"data/{pack_.sha256}"):
        unpack(block, pack_, bomb)
