"""`chroma-gateway documents …` and `ingest` against a gateway that stores in a directory, or on a real S3 server."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.commands import run_command, run_process
from tests.gateway_process import Gateway, gateway_process
from tests.keys import Keys
from tests.servers import S3Server
from tests.system.test_documents import EMBEDDING

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")


@pytest.fixture(scope="module", params=[pytest.param("file", marks=pytest.mark.soak), "s3"])
def home(
    request: pytest.FixtureRequest, ministack: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """A gateway that asks for keys."""
    keys = Keys(tmp_path_factory.mktemp("keys") / "keys.json")
    env = EMBEDDING | {"GATEWAY_KEYS_FILE": str(keys.path), "A_WRITERS_KEY": keys.add("writer", "writer")}
    if request.param == "s3":
        bucket = ministack.new_bucket("documents")
        env |= ministack.env | {"GATEWAY_STORE": f"s3://{bucket}/some/prefix", "GATEWAY_SNAPSHOT_ON_EXIT": "false"}
    with gateway_process(**env) as built:
        yield built.start()


def say(home: Gateway, *arguments: str, **env: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    done = run_command(home, *arguments, **env)
    return done.returncode, done.stdout, done.stderr


def say_in_a_shell(home: Gateway, *arguments: str) -> tuple[int, str, str]:
    """The same, of a process of its own."""
    done = run_process(home, *arguments)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.returncode, done.stdout, done.stderr


def said(home: Gateway, *arguments: str) -> Any:
    """The result of `documents …`."""
    status, out, err = say(home, "documents", *arguments)
    assert status == 0, err[-3000:]
    return json.loads(out) if out else None


def refused(home: Gateway, *arguments: str) -> str:
    """What stderr says when `documents …` fails."""
    status, out, err = say(home, "documents", *arguments)
    assert (status != 0, out) == (True, ""), (status, out)
    return err


def test_every_documents_command_does_what_it_says(home: Gateway, tmp_path: Path) -> None:
    """From the upload to the deletion of the avatar. Results are JSON on stdout, progress bars are on stderr."""
    file, got = tmp_path / "notes ü.txt", tmp_path / "got"
    file.write_bytes(b"The exam is in May. " * 100_000)
    document = "ada/vectorstore_data/a/notes ü #1%.txt"
    assert said(home, "avatars") == {"avatars": []}
    stored = said(home, "put", str(file), document)
    assert (stored["name"], stored["size_bytes"], stored["used"]) == ("a/notes ü #1%.txt", 2_000_000, True)
    assert "upload" in say_in_a_shell(home, "documents", "put", str(file), document)[2]
    said(home, "put", str(file), "ada/vectorstore_data/unused.txt", "--no-used")
    assert said(home, "avatars") == {"avatars": ["ada"]}
    listed = {each["name"]: each for each in said(home, "list", "ada/vectorstore_data", "--digests")}
    assert {name: each["used"] for name, each in listed.items()} == {"a/notes ü #1%.txt": True, "unused.txt": False}
    assert listed["unused.txt"]["digest"].startswith("sha256:")
    said(home, "get", document, str(got))
    assert got.read_bytes() == file.read_bytes()
    short = tmp_path / "short.txt"
    short.write_text("Cranes are grey.")
    said(home, "put", str(short), document)
    copied = said(home, "copy", document, "bob/media/original/text/c.txt")
    assert (copied["name"], copied["used"]) == ("c.txt", None)
    assert "exists already" in refused(home, "copy", document, "bob/media/original/text/c.txt")
    said(home, "copy", document, "bob/media/original/text/c.txt", "--replace")
    said(home, "copy", document, document, "--replace")
    assert said(home, "flag", document, "--unused")["used"] is False
    assert set(said(home, "flag", "ada/vectorstore_data", "--used")["flags"].values()) == {True}
    said(home, "flag", "ada/vectorstore_data/unused.txt", "--unused")
    if "GATEWAY_STORE" in home.env:
        assert httpx.get(said(home, "link", document)["url"]).text == "Cranes are grey."
    else:
        assert "has no links" in refused(home, "link", document)
    assert said(home, "train", "ada", "--dry-run")["added"] == ["a/notes ü #1%.txt"]
    assert said(home, "train", "ada", "--request", '{"metadata": {"course": "birds"}}')["written"] == 1
    said(home, "delete", document)
    assert "there is no document" in refused(home, "delete", document)
    assert said(home, "train", "ada")["removed"] == ["a/notes ü #1%.txt"]
    assert said(home, "delete-avatar", "ada", "--yes")["collection"] == "avatar-ada"
    said(home, "delete-avatar", "bob", "--yes")
    assert said(home, "avatars") == {"avatars": []}


def test_a_wrong_argument_is_reported_and_leaves_nothing_behind(home: Gateway, tmp_path: Path) -> None:
    """A folder in place of a document, a document in place of a folder, and files that cannot be read or written."""
    short, got = tmp_path / "short.txt", tmp_path / "got"
    short.write_text("Cranes are grey.")
    said(home, "put", str(short), "ada/vectorstore_data/a.txt")
    assert "is a folder" in refused(home, "put", str(short), "ada/vectorstore_data")
    assert "is a folder" in refused(home, "get", "ada/vectorstore_data", str(got))
    assert "is a folder" in refused(home, "link", "ada/vectorstore_data")
    assert "is a document" in refused(home, "list", "ada/vectorstore_data/a.txt")
    assert "no folder for" in refused(home, "list", "ada/nothing")
    assert "there is no document" in refused(home, "get", "ada/vectorstore_data/b.txt", str(got))
    assert "cannot be written" in refused(home, "get", "ada/vectorstore_data/a.txt", str(tmp_path / "no" / "got"))
    assert "JSON" in refused(home, "train", "ada", "--request", "[1")
    assert "no gateway answers" in refused(home, "avatars", "--url", "http://127.0.0.1:9")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.txt"]
    said(home, "delete-avatar", "ada", "--yes")
    assert "has no documents" in refused(home, "delete-avatar", "ada", "--yes")


def test_ingest_trains_a_collection_where_keys_are_required(home: Gateway, tmp_path: Path) -> None:
    """With the admin token, or with a key in its place. A wrong one is reported."""
    (tmp_path / "a.txt").write_text("Cranes are grey.")
    for written in (1, 0):
        status, out, err = say(home, "ingest", str(tmp_path), "--collection", "birds-of-ada", "--avatar", "ada")
        assert (status, json.loads(out or "{}").get("written")) == (0, written), err[-3000:]
    writer = home.env["A_WRITERS_KEY"]
    ingest = ("ingest", str(tmp_path), "--collection")
    status, out, err = say(home, *ingest, "of-a-writer", GATEWAY_ADMIN_TOKEN=writer)
    assert (status, json.loads(out or "{}").get("written")) == (0, 1), err[-3000:]
    status, _, err = say(home, *ingest, "birds", GATEWAY_ADMIN_TOKEN="a-token-of-nobody")
    assert (status != 0, "401" in err) == (True, True), err[-3000:]
    said(home, "delete-avatar", "ada", "--yes")


def test_ingest_goes_on_past_files_that_fail(home: Gateway, tmp_path: Path) -> None:
    """Names that cannot be, files that cannot be read: reported with the reason, and the command fails at its end."""
    folder = tmp_path / "course"
    folder.mkdir()
    (folder / "good.txt").write_text("Cranes are grey.")
    (folder / "broken.json").write_text("{")
    (folder / "back\\slash.txt").write_text("x")
    (folder / "control\x07.txt").write_text("x")
    Path(os.fsdecode(os.fsencode(folder) + b"/not-utf8-\xff.txt")).write_text("x")
    (folder / ".hidden.txt").write_text("x")
    (folder / "link.txt").symlink_to("good.txt")
    os.mkfifo(folder / "pipe.txt")
    (folder / "photo.png").write_bytes(b"\x89PNG")
    for ingest, arguments in ((say, ("--avatar", "ada")), (say_in_a_shell, ("--collection", "course"))):
        status, out, err = ingest(home, "ingest", str(folder), *arguments)
        assert status == 1, err[-3000:]
        result = json.loads(out)
        assert result["added"] == ["good.txt"]
        assert sorted(result["failed"]) == ["back\\slash.txt", "broken.json", "control\x07.txt", "not-utf8-\\xff.txt"]
        assert sorted(result["skipped"]) == [".hidden.txt", "link.txt", "photo.png", "pipe.txt"]
        assert (result["counts"]["failed"], result["counts"]["skipped"]) == (4, 4)
    assert say(home, "ingest", str(folder), "--collection", "course", "--keep-going-ok")[0] == 0
    said(home, "delete-avatar", "ada", "--yes")


def test_ingest_deletes_nothing_that_it_did_not_list(home: Gateway, tmp_path: Path) -> None:
    """An empty folder may be one that is not mounted; flags stay, and documents go only if that is asked for."""
    folder = tmp_path / "course"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(f"Text of {name}")
    for arguments in (("--avatar", "ada"), ("--collection", "empty-course")):
        assert say(home, "ingest", str(folder), *arguments)[0] == 0
    said(home, "flag", "ada/vectorstore_data/a.txt", "--unused")
    result = json.loads(say(home, "ingest", str(folder), "--avatar", "ada")[1])
    assert (result["removed"], result["unchanged"]) == (["a.txt"], 1)
    assert said(home, "list", "ada/vectorstore_data")[0]["used"] is False
    (folder / "a.txt").unlink()
    assert say(home, "ingest", str(folder), "--avatar", "ada")[0] == 0
    assert len(said(home, "list", "ada/vectorstore_data")) == 2
    assert json.loads(say(home, "ingest", str(folder), "--avatar", "ada", "--delete")[1])["deleted_documents"] == [
        "a.txt"
    ]
    (folder / "b.txt").unlink()
    for arguments in (("--avatar", "ada"), ("--collection", "empty-course")):
        status, out, err = say(home, "ingest", str(folder), *arguments)
        assert (status, out, "mounted" in err) == (2, "", True), err
    result = json.loads(say(home, "ingest", str(folder), "--collection", "empty-course", "--allow-empty")[1])
    assert result["removed"] == ["a.txt", "b.txt"]
    said(home, "delete-avatar", "ada", "--yes")
