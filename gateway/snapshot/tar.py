"""Write a Chroma directory as a plain tar archive, and unpack such an archive.

An archive is made from the files while they are read, so only a few MiB are in memory. An archive is unpacked while it
arrives, so it is never on disk itself. Only members with the name of one of Chroma's files are written. A link, a
device, or a path that leads out of the directory ends the unpacking.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import shutil
import tarfile
from collections.abc import AsyncIterator, Generator
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn, Self

from gateway.aio import run_in_thread_uninterrupted
from gateway.chroma.disk import DATABASE, has_super_journal, is_chromas, is_snapshot_path
from gateway.errors import BodyTooLarge, InvalidRequest
from gateway.files import write_error
from gateway.jobs import Progress

_BLOCK_BYTES = 512
_PIECE_BYTES = 1 << 20
_END = bytes(2 * _BLOCK_BYTES)
# What SQLite needs beside a database that was not closed. It makes the rest itself. chromadb 0.4 and 0.5 leave a
# journal when they are killed during a transaction. Without it a part of that transaction would be committed.
_BESIDE = (f"{DATABASE}-wal", f"{DATABASE}-journal")
# `tarfile` reads such a header into memory.
_MAX_HEADER_BYTES = 1 << 20
_MAX_MEMBERS = 1_000_000


# ---------------------------------------------------------------------- out


def tar_size(directory: Path) -> int:
    """Return how many bytes `tar` yields for `directory`."""
    sizes = (path.stat().st_size for path, _ in _files(directory))
    return sum(_BLOCK_BYTES + size + -size % _BLOCK_BYTES for size in sizes) + len(_END)


def tar(directory: Path) -> Generator[bytes, None, None]:
    """Yield the Chroma directory as a tar archive, in pieces of at most 1 MiB. It must not change meanwhile."""
    for path, name in _files(directory):
        status = path.stat()
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = status.st_size, int(status.st_mtime), 0o644
        yield member.tobuf(tarfile.GNU_FORMAT)
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece
        yield bytes(-status.st_size % _BLOCK_BYTES)
    yield _END


def _files(directory: Path) -> list[tuple[Path, str]]:
    found = [
        (Path(parent) / name, (Path(parent) / name).relative_to(directory).as_posix())
        for parent, _, names in os.walk(directory)
        for name in names
    ]
    return sorted((path, name) for path, name in found if is_snapshot_path(name) or name in _BESIDE)


# ---------------------------------------------------------------------- in


async def untar(body: AsyncIterator[bytes], target: Path, max_bytes: int, progress: Progress) -> None:
    """Unpack the tar archive in `body` into the empty directory `target`.

    If all members are in one directory, that directory is left out of their paths. Files that are not Chroma's are
    skipped. Raises InvalidRequest if it is no tar archive or holds no Chroma directory, BodyTooLarge if `body` has more
    than `max_bytes`, DiskFull.
    """
    body_reader = _BodyReader(body, max_bytes, progress)
    work = asyncio.create_task(asyncio.to_thread(_unpack, body_reader, target))
    try:
        await asyncio.shield(work)
    finally:
        body_reader.end()
        await asyncio.wait([work])
        work.exception()  # Raised above, or not needed after a cancellation.
    # Read the rest of the body. Otherwise the upload fails for the client although the archive was complete.
    await body_reader.drain()


class _BodyReader:
    """A body that arrives on the event loop, as a file that a thread reads."""

    def __init__(self, body: AsyncIterator[bytes], max_bytes: int, progress: Progress) -> None:
        self._body, self._max_bytes, self._progress = body, max_bytes, progress
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self._next: concurrent.futures.Future[bytes] | None = None
        self._ended = False
        self._seen = 0

    def read(self, size: int) -> bytes:
        pieces = []
        while size:
            if not self._rest:
                self._rest = self._piece()
                if not self._rest:
                    break
            pieces.append(self._rest[:size])
            self._rest = self._rest[size:]
            size -= len(pieces[-1])
        return b"".join(pieces)

    def _piece(self) -> bytes:
        self._next = asyncio.run_coroutine_threadsafe(self._arrive(), self._loop)
        if self._ended:  # Checked after `_next` is set: `end` may be called at any moment, on the other thread.
            self._next.cancel()
        return self._next.result()

    async def _arrive(self) -> bytes:
        async for piece in self._body:
            if piece:
                self._seen += len(piece)
                if self._seen > self._max_bytes:
                    raise BodyTooLarge(
                        f"an archive may have {self._max_bytes} bytes", "GATEWAY_MAX_UPLOAD_BYTES sets the limit"
                    )
                self._progress.advance(len(piece))
                return piece
        return b""

    async def drain(self) -> None:
        while await self._arrive():
            pass

    def end(self) -> None:
        self._ended = True
        if self._next is not None:
            self._next.cancel()


def _unpack(body_reader: _BodyReader, target: Path) -> None:
    parent: str | None = None
    try:
        with tarfile.open(fileobj=body_reader, mode="r|", errorlevel=2, tarinfo=_Member) as archive:  # type: ignore[call-overload]
            for number, member in enumerate(archive):
                archive.members.clear()  # Otherwise all members and their headers stay in memory.
                if number > _MAX_MEMBERS:
                    raise InvalidRequest(f"the archive has more than {_MAX_MEMBERS} members")
                parts = _parts(member)
                if parts and parent is None:
                    parent = "" if is_chromas(parts[0]) or (len(parts) == 1 and member.isreg()) else parts[0]
                if parent and parts and parts[0] == parent:
                    parts = parts[1:]
                name = "/".join(parts)
                if member.isreg() and (is_snapshot_path(name) or name in _BESIDE):
                    _write(archive, member, target / name)
    except (tarfile.TarError, ArithmeticError, LookupError, RecursionError, ValueError) as error:
        # `tarfile` raises many kinds of errors for headers that make no sense.
        raise InvalidRequest(
            f"the body is no tar archive, or is cut off: {error}",
            "send a plain, uncompressed tar of a Chroma directory, as tar -C chroma_db -cf - . writes it",
        ) from error
    if has_super_journal(target):
        raise InvalidRequest(
            f"the archive's {DATABASE}-journal belongs to a transaction over several databases",
            "Chroma writes no such journal: open the database with SQLite once, then make the archive again",
        )
    if not (target / DATABASE).exists():
        raise InvalidRequest(
            f"the archive has no {DATABASE} at its top, nor in a single directory that holds all of it",
            "make it of the directory that Chroma uses as its path; chromadb before 0.4 stored its data differently",
        )


class _Member(tarfile.TarInfo):
    """A member whose headers have a bounded length, in an archive that is not cut off."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            # After the first member, `tarfile` takes an invalid header, or a missing one, for the end of the archive.
            raise tarfile.ReadError(str(error)) from error

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._proc_gnusparse_10()
        if self.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE) and self.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]

    def _proc_gnusparse_10(self, *_: object) -> NoReturn:
        # `tarfile` reads the map of a sparse file into memory, and the archive says how long the map is.
        raise tarfile.ReadError(f"{self.name!r} is a sparse file")


def _parts(member: tarfile.TarInfo) -> tuple[str, ...]:
    """Return the parts of the member's path. Raises InvalidRequest unless it is a plain file or directory inside."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        raise InvalidRequest(f"the archive's member {member.name!r} leads out of it")
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise InvalidRequest(
            f"the archive's member {member.name!r} is neither a plain file nor a directory",
            "archives with links, devices or sparse files are refused",
        )
    return path.parts


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = archive.extractfile(member)
    assert source is not None
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("xb") as file:
            _copy(source, file, member)
    except FileExistsError:
        raise InvalidRequest(f"the archive holds {path.name} twice: {member.name!r}") from None
    except OSError as error:
        raise write_error(f"unpacking {member.name} failed", error) from error


def _copy(source: IO[bytes], target: IO[bytes], member: tarfile.TarInfo) -> None:
    shutil.copyfileobj(source, target, _PIECE_BYTES)
    if target.tell() != member.size:
        raise InvalidRequest(f"the archive is cut off in {member.name!r}")


async def in_pieces(pieces: Generator[bytes, None, None]) -> AsyncIterator[bytes]:
    """Yield `pieces`, each made in a thread."""
    with contextlib.closing(pieces):
        # Uninterrupted: a generator that runs in a thread cannot be closed.
        while (piece := await run_in_thread_uninterrupted(next, pieces, None)) is not None:
            yield piece
