"""Pack bytes for the store, and unpack them.

A *piece* is up to 4 MiB of bytes, compressed where that saves anything. A *pack* is about 8 MiB of pieces, named by
its SHA-256. The same bytes in the same order make the same pack. Memory: one pack that is being filled, and
`UPLOADS_AT_ONCE` that are being sent.
"""

import asyncio
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import zstandard

from gateway.aio import TaskPool, run_in_thread_uninterrupted
from gateway.errors import CorruptSnapshot
from gateway.jobs import Progress
from gateway.snapshot.model import Pack, Piece
from gateway.snapshot.repository import Repository

PIECE_BYTES = 4 << 20
PACK_BYTES = 8 << 20
UPLOADS_AT_ONCE = 4
FAST, TIGHT = 1, 9
"""zstd levels. FAST: for whole files, whose vectors hardly compress. TIGHT: for patches, which are mostly text."""
# Vectors hardly compress. To decompress them would cost more than the few percent that compression saves.
_MAX_COMPRESSED = 0.95


class _OpenPack:
    """A pack that is being filled. Its name is known once it is sealed."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.pack = Pack(sha256="0" * 64, size_bytes=0)


@dataclass(frozen=True, slots=True)
class PackedPiece:
    """A piece in a pack, or in one that is still being filled."""

    size_bytes: int
    stored_bytes: int
    offset: int
    codec: Literal["zstd", "raw"]
    within: _OpenPack | Pack

    @property
    def pack(self) -> Pack:
        """The pack. Valid once the writer has sealed its last pack."""
        return self.within.pack if isinstance(self.within, _OpenPack) else self.within


def packed_piece(piece: Piece, packs: tuple[Pack, ...]) -> PackedPiece:
    """Return a piece of a manifest that names `packs`."""
    return PackedPiece(piece.size_bytes, piece.stored_bytes, piece.offset, piece.codec, packs[piece.pack])


class PackWriter:
    """Packs pieces and sends the packs to a repository. `async with` waits until every pack is stored."""

    def __init__(self, repository: Repository, existing: Mapping[str, int], progress: Progress) -> None:
        """`existing`: size in bytes by name of packs that need not be sent. `progress` counts the bytes packed."""
        self._repository, self._existing, self._progress = repository, dict(existing), progress
        self._pool = TaskPool(UPLOADS_AT_ONCE)
        self._open = _OpenPack()
        self._sent: dict[str, int] = {}

    @property
    def sent(self) -> Iterable[str]:
        """Names of the packs that were sent."""
        return self._sent

    @property
    def uploaded_bytes(self) -> int:
        """Size of the packs that were sent."""
        return sum(self._sent.values())

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self.seal()
        except BaseException as failure:
            await self._pool.__aexit__(type(failure), failure, failure.__traceback__)
            raise
        await self._pool.__aexit__(kind, error, trace)

    async def add(self, pieces: Iterable[bytes], level: int = FAST) -> list[PackedPiece]:
        """Pack `pieces`, each of about `PIECE_BYTES` at most. Iterates in a thread, one piece at a time.

        Raises what `pieces` raises, and what storing a pack raises.
        """
        result, source = [], iter(pieces)
        # Uninterrupted: the caller may close what a thread still reads from.
        while piece := await run_in_thread_uninterrupted(self._pack_next, source, level):
            result.append(piece)
            self._progress.advance(piece.size_bytes)
            if len(self._open.data) >= PACK_BYTES:
                await self.seal()
        return result

    def _pack_next(self, source: Iterator[bytes], level: int) -> PackedPiece | None:
        raw = next(source, b"")
        if not raw:
            return None
        stored, codec = zstandard.ZstdCompressor(level).compress(raw), "zstd"
        if len(stored) > len(raw) * _MAX_COMPRESSED:
            stored, codec = raw, "raw"
        pack = self._open
        piece = PackedPiece(len(raw), len(stored), len(pack.data), codec, pack)  # type: ignore[arg-type]
        pack.data += stored
        return piece

    async def seal(self) -> None:
        """Close the open pack and begin to send it."""
        pack, self._open = self._open, _OpenPack()
        if not pack.data:
            return
        name = await asyncio.to_thread(lambda: hashlib.sha256(pack.data).hexdigest())
        while self._repository.is_pending_delete(name):
            pack.data += os.urandom(16)  # No piece refers to these bytes. They only change the pack's name.
            name = await asyncio.to_thread(lambda: hashlib.sha256(pack.data).hexdigest())
        pack.pack = Pack(sha256=name, size_bytes=len(pack.data))
        data, pack.data = bytes(pack.data), bytearray()
        if self._existing.get(name) != len(data):
            self._existing[name] = self._sent[name] = len(data)
            await self._pool.start(self._repository.put_pack, name, data)


def unpack(piece: Piece, pack: Pack, data: bytes) -> bytes | memoryview:
    """Return the bytes of `piece`, from its pack's `data`. Raises CorruptSnapshot."""
    stored: bytes | memoryview = memoryview(data)[piece.offset : piece.offset + piece.stored_bytes]
    if piece.codec == "zstd":
        try:
            # zstd allocates the size that the frame names, so that size is checked first.
            if zstandard.frame_content_size(stored) != piece.size_bytes:
                raise zstandard.ZstdError("it does not have the size the manifest names")
            stored = zstandard.ZstdDecompressor().decompress(stored)
        except zstandard.ZstdError as error:
            raise CorruptSnapshot(f"a piece in pack data/{pack.sha256} cannot be unpacked: {error}") from error
    if len(stored) != piece.size_bytes:
        raise CorruptSnapshot(f"a piece in pack data/{pack.sha256} does not have the size the manifest names")
    return stored
