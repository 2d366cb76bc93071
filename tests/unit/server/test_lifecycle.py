"""What runs beside requests: none of it may end unnoticed."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from gateway.config import Settings
from gateway.server import lifecycle
from gateway.server.container import Gateway
from gateway.server.lifecycle import Lifecycle
from gateway.vectorstore import Phase, Readiness

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


def built(directory: Path, **settings: Any) -> Gateway:
    gateway = Gateway(Settings(data_dir=directory / "data", store=f"file://{directory}/store", **settings), "secret")
    gateway.vectorstore.directory.make()
    return gateway


async def test_the_last_line_of_a_start_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL, where the token is, and the documentation: not before it is ready, and once."""
    gateway = built(tmp_path, host="0.0.0.0", allow_anonymous=True)
    for each, owner in LASTING.items():
        monkeypatch.setattr(owner(gateway), METHODS.get(each, "run"), no_work)
    with structlog.testing.capture_logs() as lines:
        async with Lifecycle(gateway, asyncio.Event().set).running():
            await asyncio.sleep(0.3)
            assert "ready" not in [line["event"] for line in lines]
            monkeypatch.setattr(gateway.vectorstore, "readiness", lambda: Readiness(Phase.READY, "served"))
            async with asyncio.timeout(10):
                while "ready" not in [line["event"] for line in lines]:
                    await asyncio.sleep(0.02)
    (line,) = [line for line in lines if line["event"] == "ready"]
    assert (line["url"], line["docs"]) == ("http://127.0.0.1:8000", "http://127.0.0.1:8000/docs")
    assert line["admin_token_in"].endswith("var/admin-token")


@pytest.mark.parametrize("task", LASTING)
async def test_a_background_task_that_fails_ends_the_process(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process stops with a failure, so that it is started anew or looked at."""
    gateway = built(tmp_path, snapshot_interval_s=3600)
    for each, owner in LASTING.items():
        monkeypatch.setattr(owner(gateway), METHODS.get(each, "run"), broken if each == task else no_work)
    stopped = asyncio.Event()
    served = Lifecycle(gateway, stopped.set)
    async with served.running(), asyncio.timeout(20):
        await stopped.wait()
    assert served.failure is not None
    assert served.failure.exit_code == 1
