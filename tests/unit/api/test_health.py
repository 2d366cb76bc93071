"""`/readyz` says why not to whoever may know, and that not to everybody."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from gateway.api.status import Status
from gateway.config import Settings
from gateway.errors import StorageDenied
from gateway.server.admin import routes_of
from gateway.server.container import Gateway
from gateway.vectorstore import Phase, Readiness
from tests.keys import Keys, readers

NAME = "acme/web/payroll"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return readers(tmp_path / "keys.json")


def settings_of(path: Path, **more: Any) -> Settings:
    return Settings(data_dir=path / "data", store=f"file://{path}/store", **more)


async def ask(app: FastAPI, headers: dict[str, str]) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.get("/readyz", headers=headers)


@pytest.mark.parametrize(("who", "told"), [(None, False), ("wrong", False), ("part", False), ("reader", True)])
async def test_names_are_for_those_with_a_key(tmp_path: Path, keys: Keys, who: str | None, told: bool) -> None:
    """Everybody hears that a collection cannot be read; which one, only who sees everything."""
    keys.tokens["wrong"] = "nonsense"
    settings = settings_of(tmp_path, keys_file=keys.path, ready_requires_all=True)
    gateway_process = Gateway(settings, "an-admin-token")
    gateway_process.vectorstore.watch.up, gateway_process.vectorstore.watch.unreadable = True, {NAME: "torn"}
    answer = await ask(routes_of(gateway_process), keys.bearer(who) if who else {})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    body = answer.json()
    assert (body["error"], body["phase"]) == ("Unavailable", "unreadable")
    assert (NAME in answer.text) is told
    assert ("unreadable" in body and body["unreadable"] == {NAME: "torn"}) is told


@pytest.mark.parametrize(("who", "told"), [(None, False), ("part", False), ("reader", True)])
async def test_one_unreadable_collection_takes_no_other_out_of_service(
    tmp_path: Path, keys: Keys, who: str | None, told: bool
) -> None:
    """It is a warning, which names a handful to those with a key. Where nothing is left to serve, it is not ready."""
    gateway_process = Gateway(settings_of(tmp_path, keys_file=keys.path), "an-admin-token")
    app, watch = routes_of(gateway_process), gateway_process.vectorstore.watch
    watch.unreadable = {f"{NAME}{number}": "torn" for number in range(9)}
    watch.up, watch.warmed, watch.to_warm, watch.refused = True, True, 10, frozenset(watch.unreadable)
    answer = await ask(app, keys.bearer(who) if who else {})
    assert (answer.status_code, len(answer.json()["warnings"])) == (200, 1)
    assert [answer.text.count(f"{NAME}{number}") for number in range(9)] == ([1] * 5 + [0] * 4 if told else [0] * 9)
    watch.to_warm = 9
    assert (await ask(app, {})).status_code == 503


async def test_an_open_gateway_tells_everybody(tmp_path: Path) -> None:
    """As the data is theirs to read anyway; and while every collection is read, how far it is."""
    gateway_process = Gateway(settings_of(tmp_path, ready_requires_all=True), "an-admin-token")
    app = routes_of(gateway_process)
    gateway_process.vectorstore.watch.up, gateway_process.vectorstore.watch.unreadable = True, {NAME: "torn"}
    assert NAME in (await ask(app, {})).json()["message"]
    (
        gateway_process.vectorstore.watch.unreadable,
        gateway_process.vectorstore.watch.to_warm,
        gateway_process.vectorstore.watch.done_warming,
    ) = {}, 7, 3
    body = (await ask(app, {})).json()
    assert (body["phase"], body["collections_done"], body["collections_total"]) == ("reading", 3, 7)
    gateway_process.vectorstore.watch.warmed = True
    assert (await ask(app, {})).json() == {"status": "ready", "warnings": []}


@pytest.mark.parametrize(("who", "told"), [(None, False), ("part", False), ("reader", True)])
async def test_warnings_are_for_those_with_a_key(tmp_path: Path, keys: Keys, who: str | None, told: bool) -> None:
    """They name the store. That there are some everybody may know."""
    settings = Settings(data_dir=tmp_path / "data", store=f"file://{tmp_path}/store", keys_file=keys.path)
    gateway_process = Gateway(settings, "an-admin-token")
    gateway_process.vectorstore.watch.up = gateway_process.vectorstore.watch.warmed = True
    gateway_process.vectorstore.leader._problem = StorageDenied("put s3://payroll/lease.json: AccessDenied")
    answer = await ask(routes_of(gateway_process), keys.bearer(who) if who else {})
    assert answer.status_code == 200
    assert len(answer.json()["warnings"]) == 1
    assert ("payroll" in answer.text) is told


async def test_a_restore_shows_its_progress(tmp_path: Path) -> None:
    """In bytes, while Chroma is not there yet."""
    gateway_process = Gateway(Settings(data_dir=tmp_path / "data", store=f"file://{tmp_path}/store"), "an-admin-token")
    gateway_process.vectorstore._start = Readiness(Phase.RESTORING, "5 of 9 bytes", {"bytes_done": 5, "bytes_total": 9})
    body = (await ask(routes_of(gateway_process), {})).json()
    assert (body["phase"], body["bytes_done"], body["bytes_total"]) == ("restoring", 5, 9)
    assert "5 of 9 bytes" in body["message"]


async def test_the_status_is_as_described(tmp_path: Path) -> None:
    """`Status` has every field of `GET /admin/status`, with its type, and no other that must be there."""
    (tmp_path / "data").mkdir()
    (tmp_path / "store").mkdir()
    body = await Gateway(settings_of(tmp_path), "an-admin-token").health.status()
    described = Status.model_validate(body).model_dump(mode="json", exclude_unset=True)
    assert described == json.loads(json.dumps(body))


@pytest.mark.parametrize(
    ("host", "more", "headers", "told"),
    [
        ("127.0.0.1:8000", {}, {}, True),
        ("evil.example:8000", {}, {}, False),
        ("evil.example:8000", {}, {"Authorization": "Bearer nonsense"}, False),
        ("evil.example:8000", {}, {"Authorization": "Bearer an-admin-token"}, True),
        ("proxy.example", {"allow_anonymous": True}, {}, True),
    ],
)
async def test_a_page_learns_nothing_of_an_open_gateway_by_a_name_of_its_own(
    tmp_path: Path, host: str, more: dict[str, Any], headers: dict[str, str], told: bool
) -> None:
    """DNS rebinding makes the answers of a gateway on loopback readable for a page."""
    gateway_process = Gateway(settings_of(tmp_path, ready_requires_all=True, **more), "an-admin-token")
    gateway_process.vectorstore.watch.up, gateway_process.vectorstore.watch.unreadable = True, {NAME: "torn"}
    transport = httpx.ASGITransport(routes_of(gateway_process))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers) as client:
        assert (NAME in (await client.get("/readyz")).text) is told
        assert (await client.get("/metrics")).status_code == (200 if told else 403)
        assert (await client.get("/healthz")).status_code == 200
    head = f"GET /api/v2/tenants/t HTTP/1.1\r\nHost: {host}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    assert (gateway_process.data_path.policy.decide(f"{head}\r\n".encode()).refusal is None) is told
