"""Probes are answered from the first moment, before the admin application is built, and just as by it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp

from gateway.api.health import NotReady, Ready
from gateway.config import Settings
from gateway.server import listen
from gateway.server.admin import routes_of
from gateway.server.container import Gateway
from gateway.server.listen import _Server
from tests.keys import Keys, readers

NAME = "acme/web/payroll"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return readers(tmp_path / "keys.json")


@pytest.fixture
async def server(tmp_path: Path, keys: Keys) -> AsyncIterator[_Server]:
    """One that has begun to wait for a reason to build its admin application."""
    settings = Settings(data_dir=tmp_path / "data", store=f"file://{tmp_path}/store", keys_file=keys.path)
    server = _Server(Gateway(settings, "an-admin-token"))
    server._admin = asyncio.create_task(server._build_admin())
    server._admin.add_done_callback(server._stop_without_admin)
    yield server
    server._admin.cancel()
    await asyncio.wait([server._admin])


async def ask(app: ASGIApp, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.request(method, path, headers=headers or {})


@pytest.mark.parametrize("who", [None, "part", "reader"])
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("warmed", [False, True])
async def test_probes_are_answered_as_by_the_application(
    server: _Server, keys: Keys, who: str | None, up: bool, warmed: bool
) -> None:
    """Names of collections are for those with a key, and all else is the same too."""
    watch = server._gateway.vectorstore.watch
    watch.up, watch.warmed, watch.to_warm, watch.unreadable = up, warmed, 2, {NAME: "torn"}
    headers = keys.bearer(who) if who else {}
    early = [await ask(server._answer, path, headers=headers) for path in ("/healthz", "/readyz")]
    assert not server._admin_wanted.is_set()
    (Ready if early[1].status_code == 200 else NotReady).model_validate(early[1].json(), extra="forbid")
    admin = routes_of(server._gateway)
    late = [await ask(admin, path, headers=headers) for path in ("/healthz", "/readyz")]
    assert [(each.status_code, each.json()) for each in early] == [(each.status_code, each.json()) for each in late]
    assert [each.headers.get("retry-after") for each in early] == [each.headers.get("retry-after") for each in late]
    assert all(each.headers["x-request-id"] for each in early)
    assert (NAME in json.dumps(early[1].json())) is (who == "reader" and up and warmed)


async def test_whatever_else_is_asked_waits_for_the_application(server: _Server) -> None:
    """It is built from then on, and no request is refused for being early."""
    assert (await ask(server._answer, "/readyz", "HEAD")).status_code == 503
    assert not server._admin_wanted.is_set()
    answers = await asyncio.gather(
        ask(server._answer, "/readyz", "POST"), ask(server._answer, "/readyz/"), ask(server._answer, "/admin/jobs")
    )
    assert [each.status_code for each in answers] == [405, 503, 401]


async def test_the_application_is_built_when_data_is_served(server: _Server) -> None:
    """Nobody has to ask for it first."""
    task = asyncio.create_task(server.lifecycle._tell_when_ready())
    await asyncio.sleep(0)
    assert not server._admin_wanted.is_set()
    watch = server._gateway.vectorstore.watch
    watch.up = watch.warmed = True
    await asyncio.wait_for(task, 10)
    assert server._admin is not None
    await asyncio.wait_for(server._admin, 60)


async def test_a_gateway_whose_application_cannot_be_built_ends(
    server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an error, and so does every request that waits for it."""

    def fail(_gateway: Gateway) -> ASGIApp:
        raise ImportError("no such module")

    monkeypatch.setattr(listen, "_admin_of", fail)
    with pytest.raises(ImportError):
        await ask(server._answer, "/admin/jobs")
    assert server.lifecycle.failure is not None
    assert server.should_exit
