"""Bytes go into packs and come back. Each pack is sent once, with bounded memory."""

import asyncio
import os
import random
import threading
from collections.abc import Collection, Iterator
from typing import Literal
from unittest.mock import patch

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import CorruptSnapshot, StorageDenied, StorageUnavailable
from gateway.jobs import Progress
from gateway.snapshot import packing
from gateway.snapshot.model import Pack, Piece
from gateway.snapshot.packing import UPLOADS_AT_ONCE, PackedPiece, PackWriter, unpack
from gateway.snapshot.repository import Repository, check_pack
from tests.unit.snapshot.manifests import sha
from tests.unit.snapshot.stores import MemoryStore

PIECE_BYTES, PACK_BYTES = 64, 256


@pytest.fixture(autouse=True)
def small_packs() -> Iterator[None]:
    """Packs so small that a few hundred bytes make many."""
    with patch.multiple(packing, PACK_BYTES=PACK_BYTES):
        yield


async def pack(
    store: MemoryStore, contents: dict[str, bytes], sealed_after: Collection[str] = ()
) -> tuple[dict[str, list[PackedPiece]], PackWriter]:
    """Pack all contents in the order of their names. Seal after the last and after those named."""
    repository = Repository(store)
    async with PackWriter(repository, await repository.packs(), Progress()) as writer:
        packed = {}
        for name, data in sorted(contents.items()):
            packed[name] = await writer.add(cut(data))
            if name in sealed_after:
                await writer.seal()
    return packed, writer


def cut(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]


def unpacked(store: MemoryStore, pieces: list[PackedPiece]) -> bytes:
    data = b""
    for each in pieces:
        stored = store.objects[f"data/{each.pack.sha256}"]
        check_pack(each.pack, stored)
        data += unpack(Piece(each.size_bytes, 0, each.offset, each.stored_bytes, each.codec), each.pack, stored)
    return data


def packs_of(pieces: list[PackedPiece]) -> set[str]:
    return {each.pack.sha256 for each in pieces}


def noise(size_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


compressible = st.builds(lambda piece, times: piece * times, st.binary(max_size=20), st.integers(0, 60))
contents = st.dictionaries(st.sampled_from("abcdef"), st.one_of(st.binary(max_size=1000), compressible))


@settings(max_examples=60)
@given(contents=contents, sealed_after=st.sets(st.sampled_from("abcdef")))
def test_any_bytes_come_back_as_they_were(contents: dict[str, bytes], sealed_after: set[str]) -> None:
    """Whatever is packed, in whatever groups, unpacks to the same bytes, from packs named by their digests."""
    store = MemoryStore()
    packed, writer = asyncio.run(pack(store, contents, sealed_after))
    assert {name: unpacked(store, pieces) for name, pieces in packed.items()} == contents
    assert all(key == f"data/{sha(data)}" for key, data in store.objects.items())
    assert writer.uploaded_bytes == sum(map(len, store.objects.values()))
    assert {f"data/{name}" for name in writer.sent} == set(store.objects)
    # The same again: the same packs, and not one byte of them sent.
    before = len(store.puts)
    again, writer = asyncio.run(pack(store, contents, sealed_after))
    assert {name: [each.pack for each in pieces] for name, pieces in again.items()} == {
        name: [each.pack for each in pieces] for name, pieces in packed.items()
    }
    assert (len(store.puts), writer.uploaded_bytes, list(writer.sent)) == (before, 0, [])


async def test_only_packs_with_changed_bytes_are_sent_again() -> None:
    """A change in one file leaves alone the packs of files that were sealed apart from it."""
    store = MemoryStore()
    packed, _ = await pack(store, {"a": noise(1000, 1), "b": noise(1000, 2)}, {"a"})
    in_a = packs_of(packed["a"])
    store.puts.clear()
    packed, _ = await pack(store, {"a": noise(1000, 1), "b": noise(1000, 3)}, {"a"})
    assert packs_of(packed["a"]) == in_a
    assert set(store.puts) == {f"data/{name}" for name in packs_of(packed["b"])}


async def test_pack_that_is_truncated_in_the_store_is_sent_again() -> None:
    """A pack counts as stored only with all of its bytes."""
    store = MemoryStore()
    packed, _ = await pack(store, {"a": noise(100)})
    (name,) = packs_of(packed["a"])
    store.objects[f"data/{name}"] = store.objects[f"data/{name}"][:-1]
    packed, writer = await pack(store, {"a": noise(100)})
    assert unpacked(store, packed["a"]) == noise(100)
    assert writer.uploaded_bytes == 100


async def test_same_pack_twice_is_sent_once() -> None:
    """Equal bytes share their packs within one snapshot too."""
    store = MemoryStore()
    packed, writer = await pack(store, {"a": noise(200), "b": noise(200)}, {"a", "b"})
    assert len(store.puts) == 1
    assert packs_of(packed["a"]) == packs_of(packed["b"])
    assert writer.uploaded_bytes == 200


async def test_uploads_at_once_are_bounded() -> None:
    """While the store is slow, packing waits for it and does not fill the memory."""
    store = MemoryStore()
    store.may_put.clear()
    packing_all = asyncio.create_task(pack(store, {"a": noise(PACK_BYTES * 40)}))
    while store.putting < UPLOADS_AT_ONCE:
        await asyncio.sleep(0)
    read_before = len(asyncio.all_tasks())
    done, _ = await asyncio.wait([packing_all], timeout=0.1)
    assert not done
    assert store.putting == UPLOADS_AT_ONCE
    assert len(asyncio.all_tasks()) <= read_before
    store.may_put.set()
    packed, _ = await packing_all
    assert store.most_putting == UPLOADS_AT_ONCE
    assert len(packs_of(packed["a"])) == len(store.puts) == 40
    assert unpacked(store, packed["a"]) == noise(PACK_BYTES * 40)


@pytest.mark.parametrize("error", [StorageUnavailable("later"), StorageDenied("no")])
async def test_failed_upload_ends_packing_with_its_error(error: Exception) -> None:
    """Not with a group of errors, not after the other uploads, and not as if the pack had been stored."""
    store = MemoryStore()
    store.put_error = error
    with pytest.raises(type(error)) as caught:
        await pack(store, {"a": noise(PACK_BYTES * 40)})
    assert caught.value is error
    assert not store.objects
    assert not store.putting


async def test_error_of_a_source_is_raised_and_harms_nothing() -> None:
    """What was added before can still be finished."""

    def failing() -> Iterator[bytes]:
        yield noise(64, 1)
        raise FileNotFoundError

    store = MemoryStore()
    async with PackWriter(Repository(store), {}, Progress()) as writer:
        packed = await writer.add(cut(noise(100)))
        with pytest.raises(FileNotFoundError):
            await writer.add(failing())
    assert unpacked(store, packed) == noise(100)


async def test_progress_counts_every_byte() -> None:
    """Before compression."""

    class Counting(Progress):
        done = 0

        def advance(self, count: int) -> None:
            self.done += count

    counting = Counting()
    async with PackWriter(Repository(MemoryStore()), {}, counting) as writer:
        await writer.add(cut(bytes(1000)))
    assert counting.done == 1000
    assert writer.uploaded_bytes < 1000


# ---------------------------------------------------------------------- what the store returns is not trusted


def piece_of(raw: bytes, stored: bytes, codec: Literal["zstd", "raw"]) -> tuple[Piece, Pack]:
    return Piece(len(raw), 0, 0, len(stored), codec), Pack(sha256=sha(stored), size_bytes=len(stored))


@given(position=st.integers(0, 199), mask=st.integers(1, 255))
def test_every_flipped_byte_of_a_pack_is_found(position: int, mask: int) -> None:
    """The error names the pack."""
    data = bytearray(noise(200))
    _, pack_ = piece_of(bytes(data), bytes(data), "raw")
    check_pack(pack_, bytes(data))
    data[position] ^= mask
    with pytest.raises(CorruptSnapshot, match=f"data/{pack_.sha256}"):
        check_pack(pack_, bytes(data))


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_piece_of_another_size_than_the_manifest_names_is_refused(codec: Literal["zstd", "raw"]) -> None:
    """Also in a pack that has its digest."""
    stored = zstandard.compress(b"other bytes") if codec == "zstd" else b"other bytes"
    piece, pack_ = piece_of(b"the bytes", stored, codec)
    with pytest.raises(CorruptSnapshot, match="the size the manifest names"):
        unpack(piece, pack_, stored)


def test_piece_that_is_not_compressed_data_is_refused() -> None:
    """It cannot be decompressed, so it is corrupt."""
    piece, pack_ = piece_of(b"raw", b"no frame", "zstd")
    with pytest.raises(CorruptSnapshot, match="cannot be unpacked"):
        unpack(piece, pack_, b"no frame")


@pytest.mark.parametrize("promised", [1, 10])
def test_decompression_bomb_is_refused_before_it_is_decompressed(promised: int) -> None:
    """The frame names 1 TiB. It is refused before that is allocated."""
    bomb = bytes.fromhex(
        "28b52ffd e0 0000000000010000 010000"
    )  # a frame header: content size 2**40, an empty last block
    assert zstandard.frame_content_size(bomb) == 2**40
    piece, pack_ = piece_of(os.urandom(promised), bomb, "zstd")
    with pytest.raises(CorruptSnapshot, match=f"data/{pack_.sha256}"):
        unpack(piece, pack_, bomb)


async def test_nothing_is_read_after_packing_was_cancelled() -> None:
    """The caller may close the source then."""
    reading, go, under_way = threading.Event(), threading.Event(), [True]

    def source() -> Iterator[bytes]:
        reading.set()
        assert go.wait(10)
        under_way.clear()
        yield b"piece"

    adding = asyncio.create_task(PackWriter(Repository(MemoryStore()), {}, Progress()).add(source()))
    assert await asyncio.to_thread(reading.wait, 10)
    adding.cancel()
    asyncio.get_running_loop().call_later(0.05, go.set)
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert not under_way
