"""The mistakes of a first hour. A person gets a status or an exit code for each, and words that say what to do."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from tests.commands import run_command
from tests.gateway_process import ADMIN_TOKEN, Gateway, gateway_process


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    """A gateway that has just been started, with nothing in it."""
    with gateway_process() as built:
        yield built.start()


class Request(NamedTuple):
    """A request, and what must be in the answer's message and hint."""

    mistake: str
    method: str
    path: str
    status: int
    words: tuple[str, ...] = ()
    token: str | None = ADMIN_TOKEN
    content: str | None = None
    type: str = "application/json"


REQUESTS = [
    Request("no token", "GET", "/admin/status", 401, ("no key was given", "Authorization: Bearer"), token=None),
    Request(
        "a wrong token", "GET", "/admin/status", 401, ("not known here", "Authorization: Bearer"), token="wrong-token"
    ),
    Request("a slash at the end", "POST", "/admin/resume/", 200),
    Request("a wrong method", "GET", "/admin/quiesce", 405, ("takes POST",)),
    Request("HEAD instead of GET", "HEAD", "/readyz", 200, token=None),
    Request("a misspelt route", "GET", "/admin/snapshots", 404, ("nothing at /admin/snapshots", "GET /docs")),
    Request("a misspelt field", "POST", "/admin/snapshot", 400, ("did you mean label?",), content='{"lable": "x"}'),
    Request("a misspelt parameter", "POST", "/admin/snapshot?wiat=false", 400, ("did you mean wait?", "takes wait")),
    Request("a field in the URL", "POST", "/admin/snapshot?label=x", 400, ("label as a field of a JSON body",)),
    Request(
        "quotes lost in a shell", "POST", "/admin/snapshot", 400, ("not JSON", "single quotes"), content="{label: x}"
    ),
    Request(
        "a form instead of JSON",
        "POST",
        "/admin/snapshot",
        400,
        ("send JSON", "Content-Type: application/json"),
        content="label=x",
        type="application/x-www-form-urlencoded",
    ),
    Request("a duration in words", "POST", "/admin/quiesce", 400, ("5m",), content='{"ttl_s": "5 minutes"}'),
    Request("a snapshot that does not exist", "POST", "/admin/snapshot/latest/restore", 404, ("POST /admin/snapshot",)),
    Request("a client before 1.0", "GET", "/api/v1/collections", 410, ("v2",)),
    Request("a misspelt route of Chroma", "GET", "/api/v2/tenant", 404),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda each: each.mistake)
def test_a_mistake_in_a_request(served: Gateway, request_: Request) -> None:
    """The status, and what was wrong or is to be done."""
    headers = {"Content-Type": request_.type} if request_.content is not None else {}
    if request_.token is not None:
        headers["Authorization"] = f"Bearer {request_.token}"
    answer = httpx.request(
        request_.method, served.url + request_.path, headers=headers, content=request_.content, timeout=30
    )
    assert answer.status_code == request_.status, answer.text
    for words in request_.words:
        assert words in said(answer), answer.text


def said(answer: httpx.Response) -> str:
    body: dict[str, Any] = answer.json()
    return f"{body['message']} {body.get('hint', '')}"


class Command(NamedTuple):
    """A command, and what must be in its two lines on stderr."""

    mistake: str
    arguments: tuple[str, ...]
    exit_code: int
    words: tuple[str, ...]
    env: dict[str, str] = {}  # noqa: RUF012  # nothing writes to it


COMMANDS = [
    Command(
        "a gateway that does not run", ("status", "--url", "http://127.0.0.1:9"), 1, ("no gateway answers", "serve")
    ),
    Command("Chroma's port", ("status", "--url", "CHROMA"), 1, ("Chroma itself", "--url")),
    Command("a wrong token", ("status", "--token", "wrong-token"), 2, ("not known here", "--token")),
    Command("no scheme", ("status", "--url", "127.0.0.1:8000"), 2, ("not an HTTP URL", "http://127.0.0.1:8000")),
    Command("a misspelt command", ("snapshto",), 2, ("snapshto", "--help")),
    Command("a misspelt option", ("snapshot", "--lable", "x"), 2, ("--lable", "--label")),
    Command("a wrong role", ("key", "new", "me", "--role", "owner"), 2, ("role", "reader", "writer")),
    Command("a wrong level", ("verify", "--level", "full"), 2, ("--level data",)),
    Command("an id that does not exist", ("restore", "20200101T000000Z-000000"), 4, ("chroma-gateway list",)),
    Command("no store", ("list", "--store", "s3:bucket"), 2, ("s3://",)),
    Command("equal ports", ("status",), 2, ("GATEWAY_CHROMA_PORT", "port of its own"), {"GATEWAY_CHROMA_PORT": "PORT"}),
    Command("a misspelt setting", ("status",), 2, ("did you mean GATEWAY_STORE?",), {"GATEWAY_STOR": "x"}),
    Command(
        "open to all", ("status",), 2, ("GATEWAY_KEYS_FILE", "key new"), {"HOST": "0.0.0.0", "GATEWAY_ADMIN_TOKEN": ""}
    ),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.mistake)
def test_a_mistake_in_a_command(served: Gateway, command: Command) -> None:
    """The exit code, and on stderr what was wrong and what to do. Nothing on stdout, and no traceback."""
    places = {"CHROMA": f"http://127.0.0.1:{served.chroma_port}", "PORT": str(served.port)}
    arguments = [places.get(each, each) for each in command.arguments]
    env = {name: places.get(value, value) for name, value in command.env.items()}
    ended = run_command(served, *arguments, **env)
    assert (ended.returncode, ended.stdout) == (command.exit_code, ""), ended.stderr
    assert ended.stderr.startswith("error: ")
    assert len(ended.stderr.splitlines()) <= 2, ended.stderr
    for words in command.words:
        assert words in ended.stderr


def test_a_first_snapshot_may_be_empty(served: Gateway) -> None:
    """It is taken before anything was written, by somebody who tries the command first."""
    ended = run_command(served, "snapshot", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["collections"] == []
    assert run_command(served, "restore").returncode == 0
