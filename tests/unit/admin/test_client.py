"""The client of the admin API, blocking and asynchronous: what it sends, and what it makes of the answers."""

import asyncio
import inspect
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx

from gateway.admin import (
    Admin,
    AnsweredError,
    AsyncAdmin,
    AuthError,
    AuthorizationError,
    Body,
    Job,
    NotAGateway,
    NotFoundError,
    Unavailable,
    UniqueConstraintError,
)
from gateway.admin.calls import Call, ignore
from gateway.admin.http import authorization
from gateway.errors import ConfigError

URL = "http://gateway.test:8000"
TOKEN = "a-token-of-tests"


@pytest.fixture(params=[Admin, AsyncAdmin], ids=["blocking", "async"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    built = request.param(URL, token=TOKEN)
    yield built
    await outcome(built.close())


async def outcome(called: Any) -> Any:
    """What a method of either client returns or raises."""
    return await called if inspect.isawaitable(called) else called


@pytest.mark.parametrize("token", ["schlüssel", "two\nlines", "a\0b"])
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    """Before anything is sent, and without showing it."""
    with pytest.raises(ConfigError, match="header") as caught:
        authorization(token)
    assert token not in str(caught.value)


@respx.mock
async def test_a_request_says_who_it_is_and_returns_the_json(client: Any) -> None:
    """An answer without a body is None."""
    route = respx.get(f"{URL}/admin/status").respond(json={"ready": True})
    assert await outcome(client.request("GET", "/admin/status")) == {"ready": True}
    assert route.calls.last.request.headers["Authorization"] == f"Bearer {TOKEN}"
    respx.delete(f"{URL}/admin/snapshot/x").respond(204)
    assert await outcome(client.request("DELETE", "/admin/snapshot/x")) is None


@pytest.mark.parametrize(
    ("path", "status", "name", "exit_code"),
    [
        ("/admin/snapshot/latest", 404, "NotFoundError", 4),
        ("/admin/jobs/7", 404, "NotFoundError", 1),
        ("/admin/users/default/avatars/ada", 404, "NotFoundError", 1),
        ("/admin/snapshot", 401, "AuthorizationError", 2),
        ("/admin/snapshot", 403, "AuthError", 2),
        ("/admin/snapshot", 409, "UniqueConstraintError", 1),
        ("/admin/snapshot", 502, "StorageDenied", 3),
        ("/admin/snapshot", 503, "StorageUnavailable", 3),
        ("/admin/snapshot", 503, "Unavailable", 1),
    ],
)
@respx.mock
async def test_an_answered_error_keeps_its_name_and_has_an_exit_code(
    client: Any, path: str, status: int, name: str, exit_code: int
) -> None:
    """Message and hint are the gateway's."""
    body = {"error": name, "message": "it did not work", "hint": "another way"}
    respx.get(f"{URL}{path}").respond(status, json=body)
    with pytest.raises(AnsweredError) as caught:
        await outcome(client.request("GET", path))
    error = caught.value
    assert (error.name, error.message, error.exit_code) == (name, "it did not work", exit_code)
    assert (error.hint, error.status) == ("another way", status)
    assert error.retryable is (status == 503)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(404),
        httpx.Response(502, text="<html>Bad Gateway</html>"),
        httpx.Response(500, json=["error"]),
        httpx.Response(400, json={"detail": "no"}),
        httpx.Response(307, headers={"Location": "/elsewhere"}),
        httpx.Response(200, text="<html>hello</html>"),
    ],
    ids=lambda answer: f"{answer.status_code} {answer.text[:9]}",
)
@respx.mock
async def test_what_is_no_gateway_is_told_from_one(client: Any, answer: httpx.Response) -> None:
    """The error names the URL."""
    respx.get(f"{URL}/admin/status").mock(return_value=answer)
    with pytest.raises(NotAGateway, match="is not a Chroma Gateway") as caught:
        await outcome(client.request("GET", "/admin/status"))
    assert URL in caught.value.message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (httpx.ConnectError("refused"), "no gateway answers at"),
        (httpx.ConnectTimeout("slow"), "no gateway answers at"),
        (httpx.ReadTimeout("slow"), "did not answer in time"),
        (httpx.RemoteProtocolError("gone"), "broke"),
        (httpx.ReadError(""), "broke"),
    ],
)
@respx.mock
async def test_an_error_of_the_connection_names_the_gateway(client: Any, error: Exception, message: str) -> None:
    """It is Unavailable, so exit code 1."""
    respx.get(f"{URL}/admin/status").mock(side_effect=error)
    with pytest.raises(Unavailable, match=message) as caught:
        await outcome(client.request("GET", "/admin/status"))
    assert URL in caught.value.message


def job(state: str, **more: Any) -> dict[str, Any]:
    known = {"id": "7", "kind": "snapshot", "subject": "", "state": state, "started_at": "2026-11-20T21:04:55Z"}
    return {**known, "phase": None, "done": 0, **more}


def events(*jobs: dict[str, Any]) -> str:
    return "".join(f"event: {each['state']}\ndata: {json.dumps(each)}\n\n" for each in jobs)


@respx.mock
async def test_a_job_is_followed_to_its_end(client: Any) -> None:
    """Each status is passed on, and the result returned; the request asks not to wait."""
    begun = respx.post(f"{URL}/admin/snapshot").respond(202, json=job("running"))
    steps = (job("running", phase="copy", done=5, total=10), job("succeeded", result={"id": "x"}, exit_code=0))
    respx.get(f"{URL}/admin/jobs/7/events").respond(text=events(*steps))
    seen: list[Job] = []
    assert await outcome(client.snapshots.take("a b", on_job=seen.append)) == {"id": "x"}
    assert [(each["state"], each["phase"], each["done"]) for each in seen] == [
        ("running", "copy", 5),
        ("succeeded", None, 0),
    ]
    assert dict(begun.calls.last.request.url.params) == {"wait": "false"}
    assert json.loads(begun.calls.last.request.content) == {"label": "a b"}


@respx.mock
async def test_events_that_end_early_are_asked_for_again(client: Any) -> None:
    """A proxy may close a long answer."""
    respx.post(f"{URL}/admin/gc").respond(202, json=job("running"))
    route = respx.get(f"{URL}/admin/jobs/7/events")
    route.side_effect = [
        httpx.Response(200, text=events(job("running"))),
        httpx.Response(200, text=events(job("succeeded", result={"deleted": 1}))),
    ]
    assert await outcome(client.gc()) == {"deleted": 1}


@pytest.mark.parametrize(
    ("path", "name", "told", "exit_code"),
    [
        ("/admin/snapshot/x/restore", "InternalError", 5, 5),
        ("/admin/snapshot/x/restore", "NotFoundError", 1, 4),
        ("/admin/snapshot", "StorageUnavailable", 3, 3),
        ("/admin/users/default/avatars/ada", "NotFoundError", 1, 1),
        ("/admin/gc", "InternalError", None, 1),
    ],
)
@respx.mock
async def test_a_failed_job_is_an_error_with_its_exit_code(
    client: Any, path: str, name: str, told: int | None, exit_code: int
) -> None:
    """The gateway's own exit code, except for a snapshot that is not there."""
    error = {"error": name, "message": "it failed", "hint": "another way"}
    respx.post(f"{URL}{path}").respond(202, json=job("failed", error=error, exit_code=told))
    with pytest.raises(AnsweredError, match="it failed") as caught:
        await outcome(client._answer(Call("POST", path, on_job=ignore)))
    assert (caught.value.name, caught.value.exit_code, caught.value.hint) == (name, exit_code, "another way")


@respx.mock
async def test_a_job_is_watched(client: Any) -> None:
    """From now to its end, without starting or ending it."""
    respx.get(f"{URL}/admin/jobs/7/events").respond(text=events(job("running"), job("cancelled")))
    watched = client.jobs.watch("7")
    seen = [each async for each in watched] if hasattr(watched, "__aiter__") else list(watched)
    assert [each["state"] for each in seen] == ["running", "cancelled"]


@respx.mock
def test_ctrl_c_cancels_the_job() -> None:
    """And ends the command."""
    respx.post(f"{URL}/admin/snapshot").respond(202, json=job("running"))
    respx.get(f"{URL}/admin/jobs/7/events").respond(text=events(job("running")))
    cancelled = respx.delete(f"{URL}/admin/jobs/7").respond(json=job("cancelled"))

    def interrupt(_: Job) -> None:
        raise KeyboardInterrupt

    with Admin(URL, token=TOKEN) as client, pytest.raises(KeyboardInterrupt):
        client.snapshots.take(on_job=interrupt)
    assert cancelled.called


@respx.mock
async def test_a_cancelled_task_cancels_the_job() -> None:
    """And is cancelled itself."""

    async def running(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        return httpx.Response(200, text=events(job("running")))

    respx.post(f"{URL}/admin/snapshot").respond(202, json=job("running"))
    respx.get(f"{URL}/admin/jobs/7/events").mock(side_effect=running)
    cancelled = respx.delete(f"{URL}/admin/jobs/7").respond(json=job("cancelled"))
    async with AsyncAdmin(URL, token=TOKEN) as client:

        def interrupt(_: Job) -> None:
            task.cancel()

        task = asyncio.create_task(client.snapshots.take(on_job=interrupt))
        with pytest.raises(asyncio.CancelledError):
            await task
    assert cancelled.called


@respx.mock
async def test_a_download_is_written_and_counted(client: Any) -> None:
    """Progress has the length of the body and each byte of it; an error is raised as for other requests."""
    respx.get(f"{URL}/admin/snapshot/latest/archive").respond(content=b"x" * 3000)
    file, seen = io.BytesIO(), list[tuple[int, int | None]]()
    await outcome(client.snapshots.download("latest", file, on_bytes=lambda *done: seen.append(done)))
    assert file.getvalue() == b"x" * 3000
    assert seen[-1] == (3000, 3000)
    respx.get(f"{URL}/admin/snapshot/x/archive").respond(404, json={"error": "NotFoundError", "message": "not there"})
    with pytest.raises(NotFoundError, match="not there"):
        await outcome(client.snapshots.download("x", file))


@respx.mock
async def test_an_upload_is_sent_and_counted(client: Any, tmp_path: Path) -> None:
    """From a file, or in pieces that are made while they are sent."""
    route = respx.post(f"{URL}/admin/snapshot/upload").respond(202, json=job("succeeded", result={"id": "x"}))
    (tmp_path / "a.tar").write_bytes(b"a tar")
    seen: list[tuple[int, int | None]] = []
    for archive in (tmp_path / "a.tar", Body(iter([b"a ", b"tar"]), 5)):
        called = client.snapshots.upload(archive, "a b", on_bytes=lambda *done: seen.append(done))
        assert await outcome(called) == {"id": "x"}
        request = route.calls.last.request
        assert (request.content, request.headers["Content-Length"]) == (b"a tar", "5")
        assert dict(request.url.params) == {"label": "a b", "wait": "false"}
    assert seen == [(5, 5), (2, 5), (5, 5)]


@respx.mock
async def test_all_documents_are_listed(client: Any) -> None:
    """Page after page."""
    route = respx.get(f"{URL}/admin/users/ada%20b/avatars/c/media/audio")
    route.side_effect = [
        httpx.Response(200, json={"documents": [{"name": "1"}, {"name": "2"}], "next": "2"}),
        httpx.Response(200, json={"documents": [{"name": "3"}], "next": None}),
    ]
    found = client.documents("ada b").all("c/media/audio")
    names = [each["name"] async for each in found] if hasattr(found, "__aiter__") else [each["name"] for each in found]
    assert names == ["1", "2", "3"]
    assert [call.request.url.params["after"] for call in route.calls] == ["", "2"]


@pytest.mark.parametrize(
    ("status", "name", "raised"),
    [
        (401, "AuthorizationError", AuthorizationError),
        (403, "AuthError", AuthError),
        (404, "NotFoundError", NotFoundError),
        (409, "UniqueConstraintError", UniqueConstraintError),
        (507, "DiskFull", AnsweredError),
    ],
)
@respx.mock
async def test_an_error_has_the_class_of_its_name(client: Any, status: int, name: str, raised: type) -> None:
    """By Chroma's names, and AnsweredError for our own. `Retry-After` is passed on."""
    body = {"error": name, "message": "no"}
    respx.post(f"{URL}/admin/resume").respond(status, json=body, headers={"Retry-After": "5"})
    with pytest.raises(AnsweredError) as caught:
        await outcome(client.resume())
    assert (type(caught.value), caught.value.name, caught.value.retry_after_s) == (raised, name, 5)


def test_a_url_that_is_none_is_refused() -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigError, match="localhost:8000 is not an HTTP URL"):
        Admin("localhost:8000", token=TOKEN)
