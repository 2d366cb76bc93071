"""A snapshot as a plain tar of a Chroma directory, and a tar as a Chroma directory.

Going out nothing but a few MiB is in memory: the snapshot is restored on disk first, and the tar is made of the
files as they are read. Coming in, the tar is unpacked while it arrives and never lies on disk itself. Of
its members only files that Chroma has by name are written; links, devices and ways out end it.
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
from gateway.snapshot.progress import Progress

_BLOCK_BYTES = 512
_PIECE_BYTES = 1 << 20
_END = bytes(2 * _BLOCK_BYTES)
# What SQLite needs beside a database that was not closed; the rest it makes itself. Without the journal a
# transaction that was cut off, as chromadb 0.4 and 0.5 leave it when killed, would count in part.
_BESIDE = (f"{DATABASE}-wal", f"{DATABASE}-journal")
# `tarfile` reads long names, and whatever else such a header holds, into memory.
_MAX_HEADER_BYTES = 1 << 20
_MAX_MEMBERS = 1_000_000


# ---------------------------------------------------------------------- out


def tar_size(directory: Path) -> int:
    """How many bytes `tar` yields for `directory`."""
    sizes = (path.stat().st_size for path, _ in _files(directory))
    return sum(_BLOCK_BYTES + size + -size % _BLOCK_BYTES for size in sizes) + len(_END)


def tar(directory: Path) -> Generator[bytes, None, None]:
    """The Chroma directory `directory` as a tar, in pieces of at most 1 MiB. Nothing may change it meanwhile."""
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
    """Unpack the tar that arrives in `body` into the empty directory `target`.

    A single directory round all of it is taken off. Files that are not Chroma's are passed over. Raises
    InvalidRequest for what is no tar or not one of a Chroma directory, BodyTooLarge past `max_bytes` (of the
    body, and so of what it holds), DiskFull.
    """
    arriving = _Arriving(body, max_bytes, progress)
    work = asyncio.create_task(asyncio.to_thread(_unpack, arriving, target))
    try:
        await asyncio.shield(work)
    finally:
        arriving.end()
        await asyncio.wait([work])
        work.exception()  # told above, or of no interest to who was cancelled
    # Nobody may find that not all of it was read.
    await arriving.drain()


class _Arriving:
    """A body as the file that a thread reads."""

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
        if self._ended:  # asked now and not before: `end` may come from the other thread at any moment
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


def _unpack(arriving: _Arriving, target: Path) -> None:
    around: str | None = None
    try:
        with tarfile.open(fileobj=arriving, mode="r|", errorlevel=2, tarinfo=_Member) as archive:  # type: ignore[call-overload]
            for number, member in enumerate(archive):
                archive.members.clear()  # which would be all of them in the end, with their headers
                if number > _MAX_MEMBERS:
                    raise InvalidRequest(f"the archive has more than {_MAX_MEMBERS} members")
                parts = _parts(member)
                if parts and around is None:
                    around = "" if is_chromas(parts[0]) or (len(parts) == 1 and member.isreg()) else parts[0]
                if around and parts and parts[0] == around:
                    parts = parts[1:]
                name = "/".join(parts)
                if member.isreg() and (is_snapshot_path(name) or name in _BESIDE):
                    _write(archive, member, target / name)
    except (tarfile.TarError, ArithmeticError, LookupError, RecursionError, ValueError) as error:
        # `tarfile` stumbles in many ways over headers that make no sense.
        raise InvalidRequest(
            f"the body is no tar archive, or is cut off: {error}",
            "send a plain, uncompressed tar of a Chroma directory, as tar -C chroma_db -cf - . writes it",
        ) from error
    if has_super_journal(target):
        raise InvalidRequest(
            f"the archive's {DATABASE}-journal belongs to a transaction over several databases",
            "Chroma writes no such one: open the database with SQLite once, then make the archive again",
        )
    if not (target / DATABASE).exists():
        raise InvalidRequest(
            f"the archive holds no {DATABASE} at its top, nor in the one directory that all of it is in",
            "make it of the directory that Chroma was given as its path; chromadb before 0.4 kept its data otherwise",
        )


class _Member(tarfile.TarInfo):
    """A member whose extended header is not absurdly long, in an archive that goes on to its end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            # After the first member `tarfile` takes whatever is no header, and nothing at all, for the end.
            raise tarfile.ReadError(str(error)) from error

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._proc_gnusparse_10()
        if self.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE) and self.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]

    def _proc_gnusparse_10(self, *_: object) -> NoReturn:
        # The map of such a file goes on for as long as it says itself, and is read into memory.
        raise tarfile.ReadError(f"{self.name!r} is a sparse file")


def _parts(member: tarfile.TarInfo) -> tuple[str, ...]:
    """The parts of its name. Raises InvalidRequest for anything but a plain file or directory inside."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        raise InvalidRequest(f"the archive's member {member.name!r} leads out of it")
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise InvalidRequest(
            f"the archive's member {member.name!r} is neither a plain file nor a directory",
            "an archive with links, devices or sparse files is not unpacked",
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
    """`pieces`, each made in a thread."""
    with contextlib.closing(pieces):
        # To its end: a generator that runs in a thread cannot be closed.
        while (piece := await run_in_thread_uninterrupted(next, pieces, None)) is not None:
            yield piece
