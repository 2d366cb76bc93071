"""Chroma is started, and started again, by whoever knows its data; never behind the back of a restore."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.chroma import managed
from gateway.chroma.directory import DataDirectory
from gateway.chroma.managed import ManagedChroma
from gateway.chroma.quarantine import Quarantine
from gateway.chroma.watch import ChromaWatch
from gateway.errors import ConfigError, GatewayError, Unavailable
from tests.ports import free_port


class Process:
    """Stands in for the process manager. `lives` are how its processes fare: "up", or "dies" at once."""

    def __init__(self, watch: ChromaWatch, *lives: str) -> None:
        self.watch, self.lives, self.starts, self.forgotten = watch, list(lives), 0, 0
        self.state = "stopped"

    async def start(self, timeout_s: float) -> None:
        self.starts += 1
        self.state = "up" if (self.lives.pop(0) if self.lives else "up") == "up" else "died"
        self.watch.up = self.watch.warmed = self.state == "up"
        self.watch._notify()

    async def stop(self, timeout_s: float) -> None:
        self.state = "stopped"
        self.watch.up = self.watch.warmed = False
        self.watch._notify()

    async def is_running(self) -> bool:
        return self.state == "up"

    async def has_died(self) -> bool:
        return self.state == "died"

    async def forget_deaths(self) -> None:
        self.forgotten += 1

    def die(self) -> None:
        self.state = "died"
        self.watch.up = self.watch.warmed = False
        self.watch._notify()


@asynccontextmanager
async def admitted(what: str, collection_id: str) -> Any:
    yield


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managed, "_POLL_S", 0.001)
    monkeypatch.setattr(managed, "_LONGEST_PAUSE_S", 0)


def made(
    path: Path, *lives: str, quarantine: Quarantine | None = None, lost: Callable[[], str | None] = lambda: None
) -> tuple[ManagedChroma, Process]:
    port = free_port()
    directory = DataDirectory(path)
    directory.make()
    watch = ChromaWatch(path, port, admitted, lambda: None)
    process = Process(watch, *lives)
    return ManagedChroma(directory, watch, process, path / "chroma.yaml", quarantine, lost=lost), process


async def test_a_chroma_that_died_is_started_again(tmp_path: Path) -> None:
    """As often as it dies: the process manager says when it was too often."""
    chroma, process = made(tmp_path)
    await chroma.start()
    keeping = asyncio.create_task(chroma.keep_running())
    for starts in (2, 3):
        process.die()
        async with asyncio.timeout(10):
            while process.starts < starts:
                await asyncio.sleep(0.001)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert process.starts == 3


async def test_a_death_that_ends_in_a_quarantine_does_not_count(tmp_path: Path) -> None:
    """So Chroma comes up however many collections it dies of. The death that made a suspect counts."""
    quarantine = Quarantine()
    chroma, process = made(tmp_path, quarantine=quarantine)
    await chroma.start()
    keeping = asyncio.create_task(chroma.keep_running())
    for deaths in range(1, 17):
        quarantine.begin_probe(f"collection {(deaths - 1) // 2}")
        quarantine.chroma_gone()
        process.die()
        async with asyncio.timeout(10):
            while process.starts <= deaths:
                await asyncio.sleep(0.001)
        quarantine._suspects |= {f"collection {(deaths - 1) // 2}"} - set(quarantine.quarantined)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert process.forgotten == 8


async def test_a_chroma_that_was_stopped_stays_so(tmp_path: Path) -> None:
    """A restore has its files; also where it dies while the restored data is tried out."""
    chroma, process = made(tmp_path, "up", "dies")
    await chroma.start()
    keeping = asyncio.create_task(chroma.keep_running())
    await chroma.stop()
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert process.starts == 1
    with pytest.raises(Unavailable, match="ended while its collections"):
        await chroma.start()
    assert process.starts == 2
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    """It is a wrong setting: nothing is started, and nothing would change by trying again."""
    chroma, process = made(tmp_path)
    with socket.create_server(("127.0.0.1", process.watch.port)), pytest.raises(ConfigError, match="is taken"):
        await chroma.launch()
    assert process.starts == 0


async def test_it_is_not_started_where_its_writes_would_be_lost(tmp_path: Path) -> None:
    """A data directory that is gone stays so: an empty one in its place would be published as the newest state."""
    lost = ["the data directory is another one now"]
    chroma, process = made(tmp_path, lost=lambda: lost[0] if lost else None)
    with pytest.raises(GatewayError, match="is not started: the data directory is another one now"):
        await chroma.launch()
    assert process.starts == 0
    lost.clear()
    await chroma.launch()
    assert process.starts == 1


async def test_a_database_that_vanished_is_not_made_anew(tmp_path: Path) -> None:
    """Chroma died of it, or with it. After a few attempts the process ends, and its next start restores."""
    chroma, process = made(tmp_path)
    await chroma.start()
    (tmp_path / "chroma.sqlite3").unlink()
    process.die()
    with pytest.raises(GatewayError, match="is gone"):
        await chroma.keep_running()
    assert process.starts == 1
    assert not (tmp_path / "chroma.sqlite3").exists()


async def test_a_running_chroma_is_left_alone(tmp_path: Path) -> None:
    """A gateway that was restarted finds it and starts nothing."""
    chroma, process = made(tmp_path)
    process.state = "up"
    await chroma.launch()
    assert process.starts == 0
    assert not (tmp_path / "chroma.sqlite3").exists()
