"""Bytes into packs and back.

A file is cut into blocks of 1 MiB, each compressed where that saves anything; blocks are gathered
into packs of about 8 MiB, named by their SHA-256. The same bytes in the same order make the same
pack, and one that the store has is not sent again. Memory: one pack being filled and
`UPLOADS_AT_ONCE` on their way.
"""

import asyncio
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, NamedTuple, Self

import zstandard

from gateway.errors import CorruptSnapshot
from gateway.snapshot.model import Block, File, Pack
from gateway.snapshot.parallel import Crew
from gateway.snapshot.repository import Repository

BLOCK_BYTES = 1 << 20
PACK_BYTES = 8 << 20
UPLOADS_AT_ONCE = 4
_LEVEL = 1
# Vectors hardly compress; unpacking them again would cost more than the few percent they save.
_WORTH_IT = 0.95


class _OpenPack:
    """A pack being filled; its name is known once it is sealed."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.sha256 = ""
        self.size_bytes = 0


class _Piece(NamedTuple):
    sha256: str
    size_bytes: int
    pack: _OpenPack
    offset: int
    stored_bytes: int
    codec: Literal["zstd", "raw"]


@dataclass(slots=True)
class PackedFile:
    """A file whose bytes are in packs. `File` of a manifest comes of it once the packs have names."""

    path: str
    size_bytes: int = 0
    sha256: str = ""
    pieces: list[_Piece] = field(default_factory=list)


class PackWriter:
    """Packs files into a repository. `async with` waits until every pack is stored."""

    def __init__(self, repository: Repository, existing: Mapping[str, int]) -> None:
        """`existing`: size in bytes by name of the packs the store has already."""
        self._repository, self._existing = repository, dict(existing)
        self._crew = Crew(UPLOADS_AT_ONCE)
        self._open = _OpenPack()
        self._sent: dict[str, int] = {}

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
        await self._crew.__aexit__(kind, error, trace)

    async def add(self, path: str, source: Path) -> PackedFile:
        """Pack the file at `source` under the name `path`, as it is read until its end.

        Call `seal` after the last file that belongs together.
        """
        packed, digest = PackedFile(path), hashlib.sha256()
        with await asyncio.to_thread(source.open, "rb", 0) as file:
            while piece := await asyncio.to_thread(self._take, file, digest):
                packed.pieces.append(piece)
                packed.size_bytes += piece.size_bytes
                if len(self._open.data) >= PACK_BYTES:
                    await self.seal()
        packed.sha256 = digest.hexdigest()
        return packed

    def _take(self, file: BinaryIO, digest: "hashlib._Hash") -> _Piece | None:
        """Move the next block of `file` into the open pack; None at its end."""
        raw = file.read(BLOCK_BYTES)
        if not raw:
            return None
        digest.update(raw)
        stored, codec = zstandard.ZstdCompressor(_LEVEL).compress(raw), "zstd"
        if len(stored) > len(raw) * _WORTH_IT:
            stored, codec = raw, "raw"
        pack = self._open
        piece = _Piece(hashlib.sha256(raw).hexdigest(), len(raw), pack, len(pack.data), len(stored), codec)  # type: ignore[arg-type]
        pack.data += stored
        return piece

    async def seal(self) -> None:
        """Close the open pack and send it on its way, unless the store has it."""
        pack, self._open = self._open, _OpenPack()
        if not pack.data:
            return
        pack.sha256 = await asyncio.to_thread(lambda: hashlib.sha256(pack.data).hexdigest())
        while self._repository.is_condemned(pack.sha256):
            pack.data += os.urandom(16)  # no block names these bytes; they give it another name
            pack.sha256 = await asyncio.to_thread(lambda: hashlib.sha256(pack.data).hexdigest())
        pack.size_bytes = len(pack.data)
        data, pack.data = bytes(pack.data), bytearray()
        if self._existing.get(pack.sha256) != pack.size_bytes:
            self._existing[pack.sha256] = self._sent[pack.sha256] = pack.size_bytes
            await self._crew.start(self._repository.put_pack, pack.sha256, data)

    def finish(self, packed: list[PackedFile]) -> tuple[tuple[Pack, ...], tuple[File, ...]]:
        """The packs and files of a manifest made of `packed`, by path. Every pack must be sealed."""
        numbers: dict[str, int] = {}
        sizes: dict[str, int] = {}
        files = []
        for file in sorted(packed, key=lambda each: each.path):
            blocks = []
            for piece in file.pieces:
                number = numbers.setdefault(piece.pack.sha256, len(numbers))
                sizes[piece.pack.sha256] = piece.pack.size_bytes
                blocks.append(
                    Block(
                        sha256=piece.sha256,
                        size_bytes=piece.size_bytes,
                        pack=number,
                        offset=piece.offset,
                        stored_bytes=piece.stored_bytes,
                        codec=piece.codec,
                    )
                )
            files.append(File(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256, blocks=tuple(blocks)))
        packs = tuple(Pack(sha256=name, size_bytes=sizes[name]) for name in numbers)
        return packs, tuple(files)

    async def drop_unused(self, used: tuple[Pack, ...]) -> None:
        """Delete packs that this writer sent and `used` does not name: of files that moved after all."""
        kept = {pack.sha256 for pack in used}
        for name in self._sent.keys() - kept:
            await self._repository.delete_pack(name)


def unpack(block: Block, pack: Pack, data: bytes) -> bytes:
    """The bytes of `block` out of its pack's `data`. Raises CorruptSnapshot if they are not the ones promised."""
    stored = data[block.offset : block.offset + block.stored_bytes]
    if block.codec == "zstd":
        try:
            # The frame's own size is what gets allocated, so it is compared first.
            if zstandard.frame_content_size(stored) != block.size_bytes:
                raise zstandard.ZstdError("it is not of the size the manifest names")
            stored = zstandard.ZstdDecompressor().decompress(stored)
        except zstandard.ZstdError as error:
            raise CorruptSnapshot(f"a block in pack data/{pack.sha256} cannot be unpacked: {error}") from error
    if len(stored) != block.size_bytes or hashlib.sha256(stored).hexdigest() != block.sha256:
        raise CorruptSnapshot(f"a block in pack data/{pack.sha256} does not have the digest the manifest names")
    return stored
