"""Bytes into packs and back.

Bytes come in *pieces* of up to 4 MiB, each compressed where that saves anything; pieces are gathered
into packs of about 8 MiB, named by their SHA-256. The same bytes in the same order make the same pack.
Memory: one pack being filled and `UPLOADS_AT_ONCE` on their way.
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
from gateway.snapshot.model import Pack, Piece
from gateway.snapshot.progress import Progress
from gateway.snapshot.repository import Repository

PIECE_BYTES = 4 << 20
PACK_BYTES = 8 << 20
UPLOADS_AT_ONCE = 4
FAST, TIGHT = 1, 9
"""zstd's level for whole files, of which vectors hardly compress, and for patches, which are few and mostly text."""
# Vectors hardly compress; unpacking them again would cost more than the few percent they save.
_WORTH_IT = 0.95


class _OpenPack:
    """A pack being filled; its name is known once it is sealed."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.pack = Pack(sha256="0" * 64, size_bytes=0)


@dataclass(frozen=True, slots=True)
class Packed:
    """A piece that is in a pack, or on its way into one."""

    size_bytes: int
    stored_bytes: int
    offset: int
    codec: Literal["zstd", "raw"]
    within: _OpenPack | Pack

    @property
    def pack(self) -> Pack:
        """Only to be asked once the writer has sealed its last pack."""
        return self.within.pack if isinstance(self.within, _OpenPack) else self.within


def packed(piece: Piece, packs: tuple[Pack, ...]) -> Packed:
    """A piece of a manifest that names `packs`."""
    return Packed(piece.size_bytes, piece.stored_bytes, piece.offset, piece.codec, packs[piece.pack])


class PackWriter:
    """Packs pieces into a repository. `async with` waits until every pack is stored."""

    def __init__(self, repository: Repository, existing: Mapping[str, int], progress: Progress) -> None:
        """`existing`: size in bytes by name of packs that need not be sent. `progress` is told what went into packs."""
        self._repository, self._existing, self._progress = repository, dict(existing), progress
        self._crew = TaskPool(UPLOADS_AT_ONCE)
        self._open = _OpenPack()
        self._sent: dict[str, int] = {}

    @property
    def sent(self) -> Iterable[str]:
        """Names of the packs it sent."""
        return self._sent

    @property
    def uploaded_bytes(self) -> int:
        """Bytes sent to the store for packs."""
        return sum(self._sent.values())

    async def __aenter__(self) -> Self:
        await self._crew.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self.seal()
        except BaseException as failure:
            await self._crew.__aexit__(type(failure), failure, failure.__traceback__)
            raise
        await self._crew.__aexit__(kind, error, trace)

    async def add(self, pieces: Iterable[bytes], level: int = FAST) -> list[Packed]:
        """Pack `pieces`, each at most `PIECE_BYTES` or so. They are asked for in a thread, one at a time."""
        result, source = [], iter(pieces)
        # To its end: what is read from must not be closed under a thread that reads.
        while packed := await run_in_thread_uninterrupted(self._take, source, level):
            result.append(packed)
            self._progress.advance(packed.size_bytes)
            if len(self._open.data) >= PACK_BYTES:
                await self.seal()
        return result

    def _take(self, source: Iterator[bytes], level: int) -> Packed | None:
        raw = next(source, b"")
        if not raw:
            return None
        stored, codec = zstandard.ZstdCompressor(level).compress(raw), "zstd"
        if len(stored) > len(raw) * _WORTH_IT:
            stored, codec = raw, "raw"
        pack = self._open
        piece = Packed(len(raw), len(stored), len(pack.data), codec, pack)  # type: ignore[arg-type]
        pack.data += stored
        return piece

    async def seal(self) -> None:
        """Close the open pack and send it on its way."""
        pack, self._open = self._open, _OpenPack()
        if not pack.data:
            return
        name = await asyncio.to_thread(lambda: hashlib.sha256(pack.data).hexdigest())
        while self._repository.is_condemned(name):
            pack.data += os.urandom(16)  # no piece names these bytes; they give it another name
            name = await asyncio.to_thread(lambda: hashlib.sha256(pack.data).hexdigest())
        pack.pack = Pack(sha256=name, size_bytes=len(pack.data))
        data, pack.data = bytes(pack.data), bytearray()
        if self._existing.get(name) != len(data):
            self._existing[name] = self._sent[name] = len(data)
            await self._crew.start(self._repository.put_pack, name, data)


def unpack(piece: Piece, pack: Pack, data: bytes) -> bytes | memoryview:
    """The bytes of `piece` out of its pack's `data`. Raises CorruptSnapshot if they cannot be had."""
    stored: bytes | memoryview = memoryview(data)[piece.offset : piece.offset + piece.stored_bytes]
    if piece.codec == "zstd":
        try:
            # The frame's own size is what gets allocated, so it is compared first.
            if zstandard.frame_content_size(stored) != piece.size_bytes:
                raise zstandard.ZstdError("it is not of the size the manifest names")
            stored = zstandard.ZstdDecompressor().decompress(stored)
        except zstandard.ZstdError as error:
            raise CorruptSnapshot(f"a piece in pack data/{pack.sha256} cannot be unpacked: {error}") from error
    if len(stored) != piece.size_bytes:
        raise CorruptSnapshot(f"a piece in pack data/{pack.sha256} is not of the size the manifest names")
    return stored
