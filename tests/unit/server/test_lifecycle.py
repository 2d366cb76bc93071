"""What runs beside requests: none of it may end unnoticed."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from gateway.config import Settings
from gateway.errors import GatewayError, LeaseLost, StorageDenied
from gateway.server import lifecycle
from gateway.server.container import Gateway
from gateway.server.lifecycle import Lifecycle
from gateway.vectorstore import Phase, Readiness
from tests.webhook import webhook

LASTING: dict[str, Callable[[Gateway], object]] = {
    "watch of Chroma": lambda gateway: gateway.vectorstore.watch,
    "lease": lambda gateway: gateway.vectorstore.leader,
    "keys file": lambda gateway: gateway.keyring,
    "bound of the log": lambda gateway: gateway.vectorstore.operations.snapshotter,
    "clock of the data path": lambda gateway: gateway.data_path,
    "look at the store": lambda gateway: gateway.vectorstore,
    "Chroma's process": lambda gateway: gateway.vectorstore.chroma,
    "schedule": lambda _gateway: lifecycle,
    "data directory": lambda gateway: gateway.vectorstore,
    "alerts": lambda gateway: gateway.alerts,
    "disk": lambda gateway: gateway.vectorstore,
    "journal": lambda gateway: gateway.vectorstore.journal,
    "recovery": lambda gateway: gateway.vectorstore,
    "history": lambda gateway: gateway.vectorstore,
    "window of the history": lambda gateway: gateway.vectorstore,
}
# Tasks of the lifecycle itself.
OWN = {"last snapshot": "_note_last_snapshot", "last line of the start": "_tell_when_ready"}
METHODS = {
    "bound of the log": "keep_bounded",
    "clock of the data path": "watch_the_clock",
    "look at the store": "look_at_store",
    "Chroma's process": "keep_running",
    "schedule": "run_schedule",
    "data directory": "watch_data_dir",
    "alerts": "watch",
    "disk": "probe_disk",
    "recovery": "keep_recovery_short",
    "history": "keep_history",
    "window of the history": "watch_history",
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
    url = "http://127.0.0.1:8000"
    assert (line["url"], line["console"], line["docs"]) == (url, f"{url}/console", f"{url}/docs")
    assert line["admin_token_in"].endswith("var/admin-token")


async def test_every_background_task_is_known_to_the_test_of_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is added here and not there could end unnoticed."""
    gateway, started = built(tmp_path, snapshot_interval_s=3600), list[object]()
    for each, owner in LASTING.items():
        monkeypatch.setattr(owner(gateway), METHODS.get(each, "run"), no_work)
    run = Lifecycle._run

    def counted(self: Lifecycle, work: Any) -> asyncio.Task[None]:
        started.append(work)
        return run(self, work)

    monkeypatch.setattr(Lifecycle, "_run", counted)
    async with Lifecycle(gateway, asyncio.Event().set).running():
        assert len(started) == len(LASTING) + len(OWN)


@pytest.mark.parametrize("task", [*LASTING, *OWN])
async def test_a_background_task_that_fails_ends_the_process(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process stops with a failure, so that it is started anew or looked at."""
    gateway = built(tmp_path, snapshot_interval_s=3600)
    for each, owner in LASTING.items():
        monkeypatch.setattr(owner(gateway), METHODS.get(each, "run"), broken if each == task else no_work)
    if task in OWN:
        monkeypatch.setattr(Lifecycle, OWN[task], broken)
    stopped = asyncio.Event()
    served = Lifecycle(gateway, stopped.set)
    async with served.running(), asyncio.timeout(20):
        await stopped.wait()
    assert served.failure is not None
    assert served.failure.exit_code == 1


async def test_a_process_that_fails_says_so_where_alerts_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it ends: nothing else tells of it."""
    async with webhook() as (url, posted):
        gateway = built(tmp_path, alert_url=url)
        for each, owner in LASTING.items():
            monkeypatch.setattr(owner(gateway), METHODS.get(each, "run"), broken if each == "lease" else no_work)
        stopped = asyncio.Event()
        async with Lifecycle(gateway, stopped.set).running(), asyncio.timeout(20):
            await stopped.wait()
    assert posted.get_nowait()["event"] == "gateway-failed"


async def test_a_final_snapshot_that_fails_is_told_where_alerts_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With why: what was written since the one before is lost with the disk."""

    async def failed(*_: object) -> GatewayError:
        return GatewayError("it did not fit", "give it more time")

    async with webhook() as (url, posted):
        gateway = built(tmp_path, alert_url=url)
        for each, owner in LASTING.items():
            monkeypatch.setattr(owner(gateway), METHODS.get(each, "run"), no_work)
        monkeypatch.setattr(gateway.vectorstore, "save_final", failed)
        lifecycle_of_one = Lifecycle(gateway, asyncio.Event().set)
        async with lifecycle_of_one.running():
            pass
    body = posted.get_nowait()
    assert (body["event"], body["message"]) == ("final-snapshot-failed", "it did not fit")
    assert lifecycle_of_one.failure is not None


async def test_a_snapshot_that_fails_is_told_where_alerts_go(tmp_path: Path) -> None:
    """Each time, but not by a gateway that another one has succeeded."""
    async with webhook() as (url, posted):
        gateway = built(tmp_path, alert_url=url)
        operations = gateway.vectorstore.operations
        for error in (LeaseLost("another"), StorageDenied("refused")):
            operations._note_error("snapshot", error)
            operations.on_outcome(None)
        await gateway.alerts.close(10)
    assert posted.qsize() == 1
    assert posted.get_nowait()["message"] == "refused"
