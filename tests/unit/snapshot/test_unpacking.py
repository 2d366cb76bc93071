"""An uploaded archive can neither fill the memory nor write outside its directory."""

import asyncio
import io
import sqlite3
import tarfile
import threading
from collections.abc import AsyncIterator, Generator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.chroma import database
from gateway.errors import InvalidRequest
from gateway.jobs import Progress
from gateway.snapshot.tar import in_pieces, untar


async def sent(data: bytes) -> AsyncIterator[bytes]:
    yield data


def packed(files: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return written.getvalue()


def cut_off(scratch_directory: Path) -> tuple[bytes, bytes]:
    """A database in rollback mode and its journal, as a Chroma that is killed during a commit leaves them."""
    path = scratch_directory / "made.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("create table records (text)")
        connection.executemany("insert into records values (?)", [("before" * 200,)] * 200)
        connection.execute("pragma cache_size = 2")  # so that pages are written before the commit
        connection.execute("begin")
        connection.execute("update records set text = replace(text, 'before', 'after!')")
        return path.read_bytes(), (scratch_directory / "made.sqlite3-journal").read_bytes()


async def test_interrupted_transaction_is_rolled_back(tmp_path: Path) -> None:
    """The journal is unpacked too, and SQLite rolls back by it."""
    data, journal = cut_off(tmp_path)
    assert b"after!" in data
    target = tmp_path / "target"
    target.mkdir()
    archive = packed({"db/chroma.sqlite3": data, "db/chroma.sqlite3-journal": journal})
    await untar(sent(archive), target, 1 << 30, Progress())
    database.require_sound(target)
    with closing(sqlite3.connect(target / "chroma.sqlite3")) as connection:
        assert connection.execute("select count(*) from records where text like '%after%'").fetchone() == (0,)
        assert connection.execute("select count(*) from records").fetchone() == (200,)


async def test_journal_that_names_another_file_is_refused(tmp_path: Path) -> None:
    """SQLite may delete the file that such a journal names."""
    name = str(tmp_path / "dear").encode()
    tail = name + len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big") + bytes.fromhex("d9d505f920a163d7")
    archive = packed({"chroma.sqlite3": b"x", "chroma.sqlite3-journal": bytes(1024) + tail})
    with pytest.raises(InvalidRequest, match="several databases"):
        await untar(sent(archive), tmp_path, 1 << 30, Progress())


async def test_cancelled_download_closes_its_files() -> None:
    """Also while a piece is being read: the thread ends first, then the files are closed."""
    reading, go, closed = threading.Event(), threading.Event(), threading.Event()

    def pieces() -> Generator[bytes, None, None]:
        try:
            reading.set()
            assert go.wait(10)
            yield b"piece"
        finally:
            closed.set()

    async def send() -> None:
        async for _ in in_pieces(pieces()):
            pass

    sending = asyncio.create_task(send())
    assert await asyncio.to_thread(reading.wait, 10)
    sending.cancel()
    asyncio.get_running_loop().call_later(0.05, go.set)
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert closed.is_set()


async def test_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A header that names a huge length is refused by that length."""
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 1 << 32
    with pytest.raises(InvalidRequest, match="a header of"):
        await untar(sent(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 21)), tmp_path, 1 << 40, Progress())
