"""What a user of the command line sees of errors, and the exit codes."""

import ast
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import respx
import structlog
import typer

import gateway
from gateway.cli.hints import hint_for_commands
from gateway.cli.main import _COMMANDS, application, run
from gateway.errors import GatewayError
from gateway.server.program import program, settings_of

URL = ("--url", "http://gateway.test:8000", "--token", "a-token-of-tests")


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting and no token file of this machine is seen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATEWAY_ADMIN_TOKEN", raising=False)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command sets up the log of its process, which is the tests' too."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code and stderr of a command that fails, and prints nothing on stdout."""
    exit_code = run([*arguments])
    out, err = capsys.readouterr()
    assert (exit_code != 0, out) == (True, "")
    return exit_code, err


@pytest.mark.parametrize("name", _COMMANDS)
def test_a_command_is_found_in_its_module(name: str) -> None:
    """The table names a function or a group that is there."""
    command = typer.main.get_command(application([name]))
    assert list(getattr(command, "commands", ())) == [name]


def test_a_command_is_run_without_the_modules_of_the_others() -> None:
    """Importing all of them would delay each command."""
    code = """
import sys
from gateway.cli.main import _COMMANDS, run
assert run(["jobs", "list", "--help"]) == 0
modules = {"gateway.cli." + found.partition(".")[0] for found in _COMMANDS.values()}
assert modules & sys.modules.keys() == {"gateway.cli.jobs"}, modules & sys.modules.keys()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


@respx.mock
def test_an_error_is_two_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """What failed, and what to do; it is no log record."""
    body = {"error": "UniqueConstraintError", "message": "a snapshot is under way", "hint": "wait for it"}
    respx.post("http://gateway.test:8000/admin/snapshot").respond(409, json=body)
    assert refused(capsys, "snapshot", *URL) == (1, "error: a snapshot is under way\ntry: wait for it\n")


@respx.mock
def test_an_error_without_a_hint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """There is no empty `try:`."""
    body = {"error": "StorageUnavailable", "message": "the store does not answer"}
    respx.get("http://gateway.test:8000/admin/snapshot").respond(503, json=body)
    assert refused(capsys, "list", *URL) == (3, "error: the store does not answer\n")


@respx.mock
def test_with_json_an_error_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, with the name that the gateway gave; `hint` is null where there is none."""
    body = {"error": "NotFoundError", "message": "there is no snapshot x"}
    respx.get("http://gateway.test:8000/admin/snapshot/x").respond(404, json=body)
    exit_code, err = refused(capsys, "show", "x", "--json", *URL)
    assert (exit_code, json.loads(err)) == (4, body | {"hint": None})


def test_an_error_of_our_own_has_the_name_of_its_class(capsys: pytest.CaptureFixture[str]) -> None:
    """Not Chroma's name for its status, which would be InternalError."""
    exit_code, err = refused(capsys, "list", "--json")
    told = json.loads(err)
    assert (exit_code, told["error"]) == (2, "ConfigError")
    assert "GATEWAY_ADMIN_TOKEN" in told["message"]


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (
            {"status_code": 401, "json": {"error": "AuthorizationError", "message": "no", "hint": "send a header"}},
            "set --token or GATEWAY_ADMIN_TOKEN to the admin token of that gateway",
        ),
        ({"status_code": 502, "text": "<html>Bad Gateway</html>"}, "set --url to the gateway's address"),
        (
            {"status_code": 404, "json": {"error": "NotFoundError", "message": "no", "hint": "GET /admin/jobs lists"}},
            "`chroma-gateway jobs list` lists",
        ),
        (
            {
                "status_code": 409,
                "json": {
                    "error": "UniqueConstraintError",
                    "message": "no",
                    "hint": "wait for it, or for POST /admin/resume; see GET /admin/status",
                },
            },
            "wait for it, or for `chroma-gateway resume`; see `chroma-gateway status`",
        ),
    ],
)
@respx.mock
def test_hints_name_options_and_commands(capsys: pytest.CaptureFixture[str], answer: dict[str, Any], hint: str) -> None:
    """The gateway's are about headers and routes."""
    respx.get("http://gateway.test:8000/admin/status").respond(**answer)
    assert refused(capsys, "status", *URL)[1].endswith(f"\ntry: {hint}\n")


def test_every_route_in_a_hint_has_a_command() -> None:
    """A route of `/admin/` that some hint of the package names is replaced on the command line."""
    said = {
        node.value
        for file in Path(gateway.__file__).parent.rglob("*.py")
        if file.name != "hints.py"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 200
    }
    routes = [text for text in said if re.search(r"(GET|POST|DELETE) /(admin|readyz)", text)]
    assert len(routes) > 10
    left = [text for text in routes if " /" in str(hint_for_commands(GatewayError("", text)))]
    assert left == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("serve", "--port", "none"),
        ("serve", "--port", "65536"),
        ("quiesce", "--ttl-s", "soon", *URL),
        ("list", "--nonsense"),
        ("key", "new"),
        ("key", "new", "a", "--days", "0"),
        ("put-nothing", "--json"),
        ("documents", "put", "no-such-file", "ada/vectorstore_data/a.txt"),
        ("documents", "train", "ada", "--request", "[1"),
        ("documents", "train", "ada", "--request", "[1]"),
        ("documents", "list", "ada/vectorstore_data/a.txt", *URL),
        ("documents", "get", "ada/vectorstore_data", "file", *URL),
        ("documents", "get", "ada/nothing", "file", *URL),
        ("ingest", "."),
        ("ingest", ".", "--collection", "ab"),
        ("verify", "--level", "none", *URL),
        ("restore", "--data-dir", "x", *URL),
        ("restore", "--store", "file:///tmp/none"),
        ("list", "--store", "ftp://none"),
        ("import", "no-such-file", *URL),
        ("status", "--url", "localhost:8000"),
    ],
    ids=" ".join,
)
def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    """With the same two lines, or JSON, as all errors."""
    exit_code, err = refused(capsys, *arguments)
    assert exit_code == 2, err
    if "--json" in arguments:
        assert json.loads(err).keys() == {"error", "message", "hint"}
    else:
        assert err.startswith("error: ")
        assert len(err.splitlines()) <= 2


@pytest.mark.parametrize("name", ["chroma.sqlite3", "0b5dd2bc-7e84-4ec5-8e34-5f6b2f6d0a5e"])
def test_a_directory_with_links_is_not_imported(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    """The archive would lack what SQLite keeps beside the file that the link leads to, or all of an index."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).symlink_to(tmp_path / "moved")
    exit_code, err = refused(capsys, "import", str(tmp_path / "data"), *URL)
    assert exit_code == 2
    assert "is a symbolic link" in err


def test_a_usage_error_names_the_help_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    """As it can be typed."""
    assert refused(capsys, "jobs", "show")[1].endswith("try: chroma-gateway jobs show --help\n")


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", [(), ("list",), ("jobs", "show")], ids=lambda words: " ".join(words) or "none")
def test_help_has_a_short_option(capsys: pytest.CaptureFixture[str], command: tuple[str, ...], option: str) -> None:
    """On every level."""
    assert run([*command, option]) == 0
    assert "Usage: chroma-gateway" in capsys.readouterr().out


@pytest.mark.parametrize("command", [("documents", "put"), ("status",), ("jobs", "list")], ids=" ".join)
def test_a_flag_has_no_type_in_the_help(capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    """There is no value to type; other options have one."""
    assert run([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert ("<bool>" in out, "<str>" in out) == (False, True)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    """With the script that `--show-completion` prints, which asks the program itself."""
    # Typer looks for a shell among the processes above this one, where tests may have none.
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: shell)
    with pytest.raises(SystemExit):
        run(["--show-completion"])
    assert "_CHROMA_GATEWAY_COMPLETE" in capsys.readouterr().out
    for name, value in {
        "_CHROMA_GATEWAY_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "chroma-gateway jo",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "chroma-gateway jo",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_WORD_TO_COMPLETE": "jo",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        run([])
    assert "jobs" in capsys.readouterr().out


@pytest.mark.parametrize(
    "group", [(), ("jobs",), ("key",), ("documents",)], ids=lambda words: " ".join(words) or "none"
)
def test_a_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str], group: tuple[str, ...]) -> None:
    """That is a usage error, without words of its own."""
    assert run([*group]) == 2
    out, err = capsys.readouterr()
    assert ("Usage: chroma-gateway" in out, err) == (True, "")


def test_a_server_logs_its_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As JSON where stderr is no terminal, with the exit code of the error."""
    with pytest.raises(SystemExit) as ended:
        run(["serve", "--config", str(tmp_path / "none.conf")])
    event = json.loads(capsys.readouterr().err)
    assert ended.value.code == event["exit_code"] == 2
    assert (event["level"], event["program"]) == ("critical", "serve")


def test_a_server_logs_a_wrong_setting(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the settings that say how to log are not there."""
    monkeypatch.setenv("PORT", "none")
    with pytest.raises(SystemExit) as ended, program("gateway"):
        settings_of("gateway")
    event = json.loads(capsys.readouterr().err)
    assert (ended.value.code, event["level"]) == (2, "critical")
    assert "PORT" in event["message"]


@respx.mock
def test_status_can_be_json(capsys: pytest.CaptureFixture[str]) -> None:
    """All that the gateway answers."""
    respx.get("http://gateway.test:8000/admin/status").respond(json={"ready": True, "more": [1]})
    assert run(["status", "--json", *URL]) == 0
    assert json.loads(capsys.readouterr().out) == {"ready": True, "more": [1]}


@respx.mock
def test_jobs_are_listed_shown_and_cancelled(capsys: pytest.CaptureFixture[str]) -> None:
    """For people and as JSON."""
    started = {"started_at": "2026-11-20T21:04:55Z"}
    failed = {"ended_at": "2026-11-20T21:05:00Z", "error": {"error": "Conflict", "message": "it was changed"}}
    running = {"phase": "fetching", "done": 1 << 20, "total": 4 << 20, "remaining_s": 12}
    jobs = [
        {"id": "10", "kind": "restore", "subject": "20261120T210455Z-3f9a1c", "state": "running", **started, **running},
        {"id": "9", "kind": "gc", "subject": "", "state": "failed", **started, **failed},
    ]
    respx.get("http://gateway.test:8000/admin/jobs").respond(json={"jobs": jobs})
    respx.get("http://gateway.test:8000/admin/jobs/9").respond(json=jobs[1])
    respx.delete("http://gateway.test:8000/admin/jobs/10").respond(json=jobs[0] | {"state": "cancelled"})
    assert run(["jobs", "list", *URL]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "10  restore  20261120T210455Z-3f9a1c  running  2026-11-20T21:04:55Z  fetching 1.0 MiB of 4.0 MiB, 12 s left",
        " 9  gc                                failed   2026-11-20T21:04:55Z  took 5 s",
    ]
    assert run(["jobs", "list", "--json", *URL]) == 0
    assert json.loads(capsys.readouterr().out) == {"jobs": jobs}
    assert run(["jobs", "show", "9", *URL]) == 0
    assert "it was changed" in capsys.readouterr().out
    assert run(["jobs", "cancel", "10", *URL]) == 0
    assert "cancelled" in capsys.readouterr().out


@respx.mock
def test_writes_are_held_back_and_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    """quiesce passes its time on, and says until when; resume says whether there was anything to end."""
    expires_at = "2026-11-20T21:05:25Z"
    route = respx.post("http://gateway.test:8000/admin/quiesce")
    route.respond(json={"state": "closed", "expires_at": expires_at, "drain_ms": 1.5})
    assert run(["quiesce", "--ttl-s", "30", *URL]) == 0
    assert expires_at in capsys.readouterr().out
    assert json.loads(route.calls.last.request.content) == {"ttl_s": 30}
    respx.post("http://gateway.test:8000/admin/resume").respond(json={"state": "open", "was_quiesced": True})
    assert run(["resume", *URL]) == 0
    assert capsys.readouterr().out == "writes go on\n"
