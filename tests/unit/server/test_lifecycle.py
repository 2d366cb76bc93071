"""What runs beside requests: none of it may end unnoticed."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Settings
from gateway.server import lifecycle
from gateway.server.container import Gateway
from gateway.server.lifecycle import Lifecycle

LASTING: dict[str, Callable[[Gateway], object]] = {
    "watch of Chroma": lambda gateway: gateway.vectorstore.watch,
    "lease": lambda gateway: gateway.vectorstore.leader,
    "keys file": lambda gateway: gateway.keyring,
    "bound of the log": lambda gateway: gateway.vectorstore.operations.snapshotter,
    "clock of the data path": lambda gateway: gateway.data_path,
    "Chroma's process": lambda gateway: gateway.vectorstore.chroma,
    "schedule": lambda _gateway: lifecycle,
}
METHODS = {
    "bound of the log": "keep_bounded",
    "clock of the data path": "watch_the_clock",
    "Chroma's process": "keep_running",
    "schedule": "run_schedule",
}


async def no_work(*_args: Any, **_options: Any) -> None:
    await asyncio.Event().wait()


async def broken(*_args: Any, **_options: Any) -> None:
    raise RuntimeError("an error that nobody expects")


@pytest.mark.parametrize("task", LASTING)
async def test_a_background_task_that_fails_ends_the_process(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process stops with a failure, so that it is started anew or looked at."""
    gateway = Gateway(
        Settings(data_dir=tmp_path / "data", store=f"file://{tmp_path}/store", snapshot_interval_s=3600), "secret"
    )
    gateway.vectorstore.directory.make()
    for each, owner in LASTING.items():
        monkeypatch.setattr(owner(gateway), METHODS.get(each, "run"), broken if each == task else no_work)
    stopped = asyncio.Event()
    served = Lifecycle(gateway, stopped.set)
    async with served.running(), asyncio.timeout(20):
        await stopped.wait()
    assert served.failure is not None
    assert served.failure.exit_code == 1
