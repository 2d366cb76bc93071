"""What `ingest` finds in a folder, uploads, and asks when it is interrupted. The gateway is respx."""

import errno
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx
import typer

from gateway.admin import Admin
from gateway.admin.client import Documents
from gateway.cli import documents, ingest
from gateway.cli.folder_training import FolderSource
from gateway.cli.main import run
from gateway.cli.progress_bars import ProgressBars
from gateway.documents.readers.kinds import kind_of_name
from gateway.errors import GatewayError

URL = "http://gateway.test:8000"
ADA = f"{URL}/admin/users/default/avatars/ada"
TRAINED = {"added": [], "changed": [], "removed": [], "failed": {}, "unchanged": 0}
JOB = {"id": "7", "kind": "train", "subject": "ada", "started_at": "2026-11-20T21:04:55Z"}


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting and no token file of this machine is seen."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name in ("HOST", "PORT") or name.startswith("GATEWAY_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def course(tmp_path: Path) -> Path:
    folder = tmp_path / "course"
    (folder / "notes").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "notes/c.txt", "notes/d.txt"):
        (folder / name).write_text(f"Text of {name}")
    return folder


@pytest.fixture
def client() -> Iterator[Documents]:
    with Admin(URL, token="a-token-of-tests") as gateway:
        yield gateway.documents()


def ended(state: str = "succeeded") -> httpx.Response:
    return httpx.Response(200, text=f"data: {json.dumps({**JOB, 'state': state, 'result': TRAINED})}\n\n")


@pytest.mark.parametrize(
    "name", ["back\\slash.txt", "control\x07.txt", os.fsdecode(b"not-utf8-\xff.txt"), "deep/" * 250 + "long.txt"]
)
def test_a_name_that_cannot_be_fails_alone(course: Path, name: str) -> None:
    """A backslash, a control character, bytes that are not UTF-8, more than 900 bytes; with the reason."""
    file = course
    for part in name.split("/"):
        file = file / part
    os.makedirs(file.parent, exist_ok=True)  # noqa: PTH103  # the path is too long for one call of pathlib
    file.write_text("x")
    found = ingest._find(course, kind_of_name)
    assert sorted(found.files) == ["a.txt", "b.txt", "notes/c.txt", "notes/d.txt"]
    assert len(found.failed) == 1
    assert found.is_complete


def test_a_folder_that_cannot_be_listed_keeps_its_chunks(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files may be there. It is reported, and the others are found."""
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("notes"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = ingest._find(course, kind_of_name)
    assert (sorted(found.files), found.failed) == (
        ["a.txt", "b.txt"],
        {"notes": "it cannot be listed: Permission denied"},
    )
    source = FolderSource(found.files, {}, unread=set(found.failed), is_complete=found.is_complete)
    assert source.may_exist("notes/c.txt")


def test_a_file_that_cannot_be_read_keeps_its_chunks(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only that one: what is not in the folder is gone."""
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "a.txt":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    found = ingest._find(course, kind_of_name)
    with ProgressBars(shown=False) as bars:
        digests = ingest._digests(found, bars)
    assert (sorted(digests), found.failed) == (
        ["b.txt", "notes/c.txt", "notes/d.txt"],
        {"a.txt": "it cannot be read: Permission denied"},
    )
    source = FolderSource(found.files, digests, unread=set(found.failed), is_complete=found.is_complete)
    assert (source.may_exist("a.txt"), source.may_exist("gone.txt")) == (True, False)


@respx.mock
def test_uploads_go_at_once_and_leave_the_flags_to_the_training(course: Path, client: Documents) -> None:
    """Four are under way together; one that fails is reported, and the others are done."""
    respx.get(f"{ADA}/vectorstore_data").respond(json={"documents": [], "next": None})
    respx.post(f"{ADA}/vectorstore/train").respond(202, json={**JOB, "state": "running"})
    respx.get(f"{URL}/admin/jobs/7/events").mock(return_value=ended())
    together = threading.Barrier(4, timeout=20)

    def store(request: httpx.Request) -> httpx.Response:
        request.read()
        together.wait()
        assert request.url.params["defer_flag"] == "true"
        if request.url.path.endswith("b.txt"):
            return httpx.Response(409, json={"error": "Conflict", "message": "no"})
        return httpx.Response(201, json={})

    respx.put(url__startswith=f"{ADA}/vectorstore_data/").mock(side_effect=store)
    found = ingest._find(course, kind_of_name)
    with ProgressBars(shown=False) as bars:
        digests = ingest._digests(found, bars)
        result = ingest._ingest_into_avatar(client, "ada", found, digests, ingest._training({}), bars, delete=False)
    assert result["uploaded"] == ["a.txt", "notes/c.txt", "notes/d.txt"]
    assert found.failed == {"b.txt": "it cannot be uploaded: no"}


@respx.mock
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_only_a_script_that_asks_for_json_sees_no_progress(
    course: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is JSON on stdout in both cases."""
    monkeypatch.setattr("gateway.cli.progress_bars._LINE_EVERY_S", 0)
    respx.get(f"{ADA}/vectorstore_data").respond(json={"documents": [], "next": None})
    respx.put(url__startswith=f"{ADA}/vectorstore_data/").respond(201, json={})
    respx.post(f"{ADA}/vectorstore/train").respond(202, json={**JOB, "state": "running"})
    respx.get(f"{URL}/admin/jobs/7/events").mock(return_value=ended())
    status = run(["ingest", str(course), "--avatar", "ada", "--url", URL, "--token", "a-token-of-tests", *options])
    out, err = capsys.readouterr()
    assert (status, len(json.loads(out)["uploaded"])) == (0, 4)
    assert ("upload" in err) == (options == ())


# ------------------------------------------------------------------ Ctrl-C


def interrupt(_: httpx.Request) -> httpx.Response:
    raise KeyboardInterrupt


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[respx.Route]:
    """A training at a terminal that meets Ctrl-C. The route that cancels it."""
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"gateway.cli.documents.sys.{stream}.isatty", lambda: True)
    with respx.mock(assert_all_called=False) as router:
        router.post(f"{ADA}/vectorstore/train").respond(202, json={**JOB, "state": "running"})
        router.get(f"{URL}/admin/jobs/7/events").mock(side_effect=interrupt)
        yield router.delete(f"{URL}/admin/jobs/7").respond(json={**JOB, "state": "cancelled"})


def test_ctrl_c_asks_whether_the_training_is_to_go_on(
    client: Documents, monkeypatch: pytest.MonkeyPatch, interrupted: respx.Route
) -> None:
    """If so, the command says how to watch it and fails; the job is left alone."""
    monkeypatch.setattr("typer.confirm", lambda *_, **__: True)
    with ProgressBars() as bars, pytest.raises(GatewayError, match="job 7 goes on") as ended_early:
        documents.train(client, "ada", {}, bars)
    assert "jobs show 7" in str(ended_early.value.hint)
    assert not interrupted.called


@pytest.mark.parametrize("how", ["no", "another Ctrl-C", "no terminal", "--json"])
def test_ctrl_c_cancels_the_training_otherwise(
    client: Documents, monkeypatch: pytest.MonkeyPatch, interrupted: respx.Route, how: str
) -> None:
    """Where the answer is no, or nobody can answer."""

    def answer(*_: Any, **__: Any) -> bool:
        assert how in ("no", "another Ctrl-C")
        if how == "no":
            return False
        raise typer.Abort

    monkeypatch.setattr("typer.confirm", answer)
    if how == "no terminal":
        monkeypatch.setattr("gateway.cli.documents.sys.stdin.isatty", lambda: False)
    with ProgressBars(shown=how != "--json") as bars, pytest.raises(KeyboardInterrupt):
        documents.train(client, "ada", {}, bars)
    assert interrupted.called
