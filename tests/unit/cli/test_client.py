"""The HTTP client of the admin API: where it looks for the gateway, as whom, and what it makes of the answers."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx

from gateway.cli.client import AdminClient, AnsweredError, authorization, base_url, connect, find_token
from gateway.config import Settings
from gateway.errors import ConfigError, GatewayError, Unavailable
from gateway.jobs import JobStatus, Progress

URL = "http://gateway.test:8000"
TOKEN = "a-token-of-tests"


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting and no token file of this machine is seen."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOST", "PORT", "GATEWAY_ADMIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client() -> Iterator[AdminClient]:
    with AdminClient(URL, TOKEN) as built:
        yield built


def settings(host: str = "127.0.0.1", **more: Any) -> Settings:
    return Settings(HOST=host, GATEWAY_ALLOW_ANONYMOUS=True, **more)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("2001:db8::7", "http://[2001:db8::7]:8000"),
        ("192.168.1.7", "http://192.168.1.7:8000"),
        ("localhost", "http://localhost:8000"),
    ],
)
def test_the_url_is_where_the_gateway_can_be_reached(monkeypatch: pytest.MonkeyPatch, host: str, url: str) -> None:
    """A wildcard address becomes loopback, and an IPv6 address has brackets."""
    monkeypatch.setenv("GATEWAY_ALLOW_ANONYMOUS", "true")
    monkeypatch.setenv("HOST", host)
    assert base_url(Settings()) == url
    assert httpx.URL(url).host == url.removeprefix("http://").removesuffix(":8000").strip("[]")


def test_the_port_is_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """PORT is in the URL."""
    monkeypatch.setenv("PORT", "9123")
    assert base_url(Settings()) == "http://127.0.0.1:9123"


def test_a_given_url_wins() -> None:
    """It is taken as it is, with its path and without a slash at the end."""
    assert base_url(Settings(), "https://gateway.example.com/") == "https://gateway.example.com"
    assert base_url(Settings(), "http://[::1]:9000") == "http://[::1]:9000"
    assert base_url(Settings(), "https://example.com/chroma/") == "https://example.com/chroma"


@pytest.mark.parametrize(
    "url", ["localhost:8000", "gateway.example.com", "http://", "ftp://host", "http://:::8000", ""]
)
def test_what_is_no_http_url_is_a_usage_error(url: str) -> None:
    """The message names the option."""
    with pytest.raises(ConfigError, match="--url"):
        base_url(Settings(), url)


def test_the_token_is_the_options_then_the_settings_then_the_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first of the three that is there; None where none is."""
    assert find_token(Settings()) is None
    (tmp_path / "var").mkdir()
    (tmp_path / "var/admin-token").write_text("of-the-file\n")
    assert find_token(Settings()) == "of-the-file"
    monkeypatch.setenv("GATEWAY_ADMIN_TOKEN", "of-the-settings")
    assert find_token(Settings()) == "of-the-settings"
    assert find_token(Settings(), "of-the-option") == "of-the-option"
    (tmp_path / "var/admin-token").write_text("\n")
    monkeypatch.delenv("GATEWAY_ADMIN_TOKEN")
    assert find_token(Settings()) is None


def test_without_a_token_nothing_is_sent() -> None:
    """The error says where one is looked for."""
    with pytest.raises(ConfigError, match=r"GATEWAY_ADMIN_TOKEN.*var/admin-token"):
        connect(None, None)


@pytest.mark.parametrize("token", ["schlüssel", "two\nlines", "a\0b"])
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    """Before anything is sent, and without showing it."""
    with pytest.raises(ConfigError, match="header") as caught:
        authorization(token)
    assert token not in str(caught.value)


@respx.mock
def test_a_request_says_who_it_is_and_returns_the_json(client: AdminClient) -> None:
    """An answer without a body is None."""
    route = respx.get(f"{URL}/admin/status").respond(json={"ready": True})
    assert client.request("GET", "/admin/status") == {"ready": True}
    assert route.calls.last.request.headers["Authorization"] == f"Bearer {TOKEN}"
    respx.delete(f"{URL}/admin/snapshot/x").respond(204)
    assert client.request("DELETE", "/admin/snapshot/x") is None


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
def test_an_answered_error_keeps_its_name_and_has_an_exit_code(
    client: AdminClient, path: str, status: int, name: str, exit_code: int
) -> None:
    """Message and hint are the gateway's."""
    body = {"error": name, "message": "it did not work", "hint": "another way"}
    respx.get(f"{URL}{path}").respond(status, json=body)
    with pytest.raises(AnsweredError) as caught:
        client.request("GET", path)
    error = caught.value
    assert (error.name, error.message, error.exit_code) == (name, "it did not work", exit_code)
    assert error.hint == "another way" or status == 401


@respx.mock
def test_a_wrong_token_is_answered_with_how_to_give_the_right_one(client: AdminClient) -> None:
    """The gateway's hint is about headers; a command has an option."""
    body = {"error": "AuthorizationError", "message": "the key is not known here", "hint": "send a header"}
    respx.get(f"{URL}/admin/status").respond(401, json=body)
    with pytest.raises(AnsweredError) as caught:
        client.request("GET", "/admin/status")
    assert "--token" in str(caught.value.hint)


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
def test_what_is_no_gateway_is_told_from_one(client: AdminClient, answer: httpx.Response) -> None:
    """The error names the URL and the option that changes it."""
    respx.get(f"{URL}/admin/status").mock(return_value=answer)
    with pytest.raises(GatewayError, match="is not a Chroma Gateway") as caught:
        client.request("GET", "/admin/status")
    assert URL in caught.value.message
    assert "--url" in str(caught.value.hint)


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
def test_an_error_of_the_connection_names_the_gateway(client: AdminClient, error: Exception, message: str) -> None:
    """It is Unavailable, so exit code 1."""
    respx.get(f"{URL}/admin/status").mock(side_effect=error)
    with pytest.raises(Unavailable, match=message) as caught:
        client.request("GET", "/admin/status")
    assert URL in caught.value.message


def job(state: str, **more: Any) -> dict[str, Any]:
    return {"id": "7", "kind": "snapshot", "subject": "", "state": state, "started_at": "2026-11-20T21:04:55Z", **more}


def events(*jobs: dict[str, Any]) -> str:
    return "".join(f"event: {each['state']}\ndata: {json.dumps(each)}\n\n" for each in jobs)


@respx.mock
def test_a_job_is_followed_to_its_end(client: AdminClient) -> None:
    """Each status is passed on, and the result returned; the request asks not to wait."""
    begun = respx.post(f"{URL}/admin/snapshot").respond(202, json=job("running"))
    steps = (job("running", phase="copy", done=5, total=10), job("succeeded", result={"id": "x"}, exit_code=0))
    respx.get(f"{URL}/admin/jobs/7/events").respond(text=events(*steps))
    seen: list[JobStatus] = []
    assert client.run_job("POST", "/admin/snapshot", on_status=seen.append, params={"label": "a b"}) == {"id": "x"}
    assert [(each.state, each.phase, each.done) for each in seen] == [("running", "copy", 5), ("succeeded", None, 0)]
    assert dict(begun.calls.last.request.url.params) == {"label": "a b", "wait": "false"}


@respx.mock
def test_events_that_end_early_are_asked_for_again(client: AdminClient) -> None:
    """A proxy may close a long answer."""
    respx.post(f"{URL}/admin/gc").respond(202, json=job("running"))
    route = respx.get(f"{URL}/admin/jobs/7/events")
    route.side_effect = [
        httpx.Response(200, text=events(job("running"))),
        httpx.Response(200, text=events(job("succeeded", result={"deleted": 1}))),
    ]
    assert client.run_job("POST", "/admin/gc") == {"deleted": 1}


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
def test_a_failed_job_is_an_error_with_its_exit_code(
    client: AdminClient, path: str, name: str, told: int | None, exit_code: int
) -> None:
    """The gateway's own exit code, except for a snapshot that is not there."""
    error = {"error": name, "message": "it failed", "hint": "another way"}
    respx.post(f"{URL}{path}").respond(202, json=job("failed", error=error, exit_code=told))
    with pytest.raises(AnsweredError, match="it failed") as caught:
        client.run_job("POST", path)
    assert (caught.value.name, caught.value.exit_code, caught.value.hint) == (name, exit_code, "another way")


@respx.mock
def test_ctrl_c_cancels_the_job(client: AdminClient) -> None:
    """And ends the command."""
    respx.post(f"{URL}/admin/snapshot").respond(202, json=job("running"))
    respx.get(f"{URL}/admin/jobs/7/events").respond(text=events(job("running")))
    cancelled = respx.delete(f"{URL}/admin/jobs/7").respond(json=job("cancelled"))

    def interrupt(_: JobStatus) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.run_job("POST", "/admin/snapshot", on_status=interrupt)
    assert cancelled.called


@respx.mock
def test_a_download_is_written_and_counted(client: AdminClient) -> None:
    """Progress has the length of the body and each byte of it; an error is raised as for other requests."""
    respx.get(f"{URL}/archive").respond(content=b"x" * 3000)
    file, progress = io.BytesIO(), Progress()
    client.download("/archive", file, progress)
    assert file.getvalue() == b"x" * 3000
    assert (progress.done, progress.total) == (3000, 3000)
    respx.get(f"{URL}/admin/snapshot/x/archive").respond(404, json={"error": "NotFoundError", "message": "not there"})
    with pytest.raises(AnsweredError, match="not there"):
        client.download("/admin/snapshot/x/archive", file, progress)
