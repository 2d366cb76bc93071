"""The journal while a disk is full, and after room was made: what was written before and after is stored."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.aio import background
from gateway.errors import NotStored
from gateway.journal.journal import JournalOptions
from gateway.storage import FileStorage
from tests.small_disk import filled, small_disk
from tests.unit.journal.test_journal import Lab

IMPATIENT = JournalOptions(interval_s=3600, ack_timeout_s=0.5, recovery_s=10, history_s=3600)
PATIENT = JournalOptions(interval_s=3600, ack_timeout_s=20, recovery_s=10, history_s=3600)


@pytest.fixture
def disk() -> Iterator[Path]:
    with small_disk() as mounted:
        yield mounted


@contextlib.asynccontextmanager
async def running(data: Path, store: Path) -> AsyncIterator[Lab]:
    """A database and its journal, in two directories."""
    data.mkdir()
    objects: Any = SimpleNamespace(storage=FileStorage(store))
    lab = Lab(data, objects)
    lab.journal.options = PATIENT
    try:
        async with background(lab.journal.run()):
            yield lab
    finally:
        lab.close()


async def test_a_full_store_is_a_lag_and_is_caught_up_with(disk: Path, tmp_path: Path) -> None:
    """A `file://` store on a disk of its own. Each state that was acknowledged as stored comes back."""
    async with running(tmp_path / "data", disk / "store") as lab:
        for _ in range(3):
            lab.write()
            await lab.save()
        with filled(disk):
            lab.journal.options = IMPATIENT
            lab.write()
            with pytest.raises(NotStored, match=r"could not be stored within 0\.5 s: .*(full|space)"):
                await lab.journal.stored()
            assert lab.journal.lag_s > 0.4
            lab.write()
        lab.journal.options = PATIENT
        newest = await lab.save()
        assert lab.journal.lag_s == 0
        for number in (*list(lab.moments)[:2], newest):
            assert await lab.restored(number, tmp_path / f"{number}") == lab.moments[number]


async def test_a_full_data_directory_loses_nothing_that_was_written(disk: Path, tmp_path: Path) -> None:
    """Writes fail, and are not there. The journal goes on with those before, and with those after room was made."""
    async with running(disk / "data", tmp_path / "store") as lab:
        for _ in range(3):
            lab.write()
            await lab.save()
        lab.writer.execute("insert into embeddings_queue(data) values ('before')")
        with filled(disk):
            with pytest.raises(sqlite3.OperationalError, match="full"):
                lab.writer.execute("insert into embeddings_queue(data) values (randomblob(30000000))")
            full = await lab.save()
        lab.write()
        newest = await lab.save()
        for number in (full, newest):
            assert await lab.restored(number, tmp_path / f"{number}") == lab.moments[number]
        assert b"before" in lab.moments[full]
