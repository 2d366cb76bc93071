"""`documents`: the training documents of avatars."""

import contextlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.admin.client import Documents
from gateway.cli.client import connect
from gateway.cli.options import AsJson, Token, Url
from gateway.cli.output import print_json, whole_file
from gateway.cli.progress_bars import ProgressBars
from gateway.config import load_settings
from gateway.documents.layout import resolve
from gateway.errors import ConfigError, NotFound
from gateway.jobs import counted

DocumentPath = Annotated[
    str, typer.Argument(help="AVATAR/FOLDER/NAME of a document, e.g. ada/vectorstore_data/a.md; or AVATAR/FOLDER.")
]
Request = Annotated[str, typer.Option(help="The body of the training request, as JSON.")]

# Results are JSON in any case. With `--json` errors are too (see `gateway.cli.main`), and there is no progress.
documents = typer.Typer(help="The training documents of avatars.")


@contextlib.contextmanager
def open_documents(url: str | None, token: str | None) -> Iterator[Documents]:
    """The documents of GATEWAY_USER_ID at the gateway that the settings and options name. Raises ConfigError."""
    with connect(url, token) as gateway:
        yield gateway.documents(load_settings().user_id)


def train(client: Documents, avatar: str, request: dict[str, Any], bars: ProgressBars) -> dict[str, Any]:
    """Train the collection of an avatar. Return what changed. At Ctrl-C, ask whether the training is to go on."""
    return client.train(avatar, request, on_job=bars.show_job, goes_on=partial(_lets_it_go_on, bars))


def _lets_it_go_on(bars: ProgressBars) -> bool:
    """Ask whether the training is to go on without this command. False without a terminal, or at another Ctrl-C."""
    if not (bars.shown and sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    bars.stop()
    try:
        return typer.confirm("Is the training to go on in the gateway? Otherwise it is cancelled", err=True)
    except typer.Abort:
        return False


@documents.command("avatars")
def list_avatars(url: Url = None, token: Token = None, _as_json: AsJson = False) -> None:
    """List avatars."""
    with open_documents(url, token) as client:
        print_json({"avatars": client.avatars()})


@documents.command("list")
def list_documents(
    path: DocumentPath, url: Url = None, token: Token = None, digests: bool = False, _as_json: AsJson = False
) -> None:
    """List the documents of a folder."""
    _require_folder(path)
    with open_documents(url, token) as client:
        print_json(list(client.all(path, digests=digests)))


@documents.command("put")
def put_document(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The file to upload.")],
    path: DocumentPath,
    url: Url = None,
    token: Token = None,
    used: Annotated[bool | None, typer.Option(help="Whether training uses the document.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a document."""
    with open_documents(url, token) as client, ProgressBars(shown=not as_json) as bars:
        stored = client.put(path, file, used=used, on_bytes=counted(bars.progress, "upload"))
    print_json(stored)


@documents.command("get")
def get_document(
    path: DocumentPath,
    file: Annotated[Path, typer.Argument(help="The file to write; '-' is standard output.")],
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Download a document."""
    _require_document(path)
    with open_documents(url, token) as client, ProgressBars(shown=not as_json) as bars, whole_file(file) as out:
        client.get(path, out, on_bytes=counted(bars.progress, "download"))


@documents.command("delete")
def delete_document(path: DocumentPath, url: Url = None, token: Token = None, _as_json: AsJson = False) -> None:
    """Delete a document."""
    with open_documents(url, token) as client:
        client.delete(path)


@documents.command("copy")
def copy_document(
    path: DocumentPath,
    to: DocumentPath,
    url: Url = None,
    token: Token = None,
    replace: bool = False,
    _as_json: AsJson = False,
) -> None:
    """Copy a document within the store."""
    with open_documents(url, token) as client:
        print_json(client.copy(path, to, replace=replace))


@documents.command("flag")
def flag_document(
    path: DocumentPath,
    used: Annotated[bool, typer.Option("--used/--unused", help="Whether training uses the document.")],
    url: Url = None,
    token: Token = None,
    _as_json: AsJson = False,
) -> None:
    """Set whether training uses a document, or every document of a folder."""
    with open_documents(url, token) as client:
        print_json(client.flag(path, used))


@documents.command("link")
def link_document(
    path: DocumentPath,
    seconds: Annotated[int, typer.Option(help="How long the link works.")] = 3600,
    url: Url = None,
    token: Token = None,
    _as_json: AsJson = False,
) -> None:
    """Make a link that downloads a document without a key."""
    _require_document(path)
    with open_documents(url, token) as client:
        print_json(client.link(path, seconds))


@documents.command("delete-avatar")
def delete_avatar(
    avatar: str,
    url: Url = None,
    token: Token = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete an avatar with all its documents and its collection."""
    if not yes and typer.prompt(f"This deletes everything of avatar {avatar}. Type its id again to go on") != avatar:
        raise ConfigError("the two ids differ; nothing was deleted")
    with open_documents(url, token) as client, ProgressBars(shown=not as_json) as bars:
        result = client.delete_avatar(avatar, on_job=bars.show_job)
    print_json(result)


@documents.command("train")
def train_avatar(
    avatar: str,
    url: Url = None,
    token: Token = None,
    request: Request = "{}",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train the collection of an avatar."""
    body = json_object(request) | {"dry_run": dry_run}
    with open_documents(url, token) as client, ProgressBars(shown=not as_json) as bars:
        result = train(client, avatar, body, bars)
    print_json(result)


def json_object(request: str) -> dict[str, Any]:
    """The value of the option `--request`. Raises ConfigError if it is not a JSON object."""
    try:
        value = json.loads(request)
    except ValueError as error:
        raise ConfigError(
            f"--request is not a JSON object: {error}", """use one such as '{"dry_run": true}'"""
        ) from None
    if not isinstance(value, dict):
        raise ConfigError("--request is not a JSON object", """use one such as '{"dry_run": true}'""")
    return value


def _require_document(path: str) -> None:
    """Raise ConfigError unless `path` names a document."""
    _, name = _resolve(path)
    if name is None:
        raise ConfigError(f"{path} is a folder", "name a document in it")


def _require_folder(path: str) -> None:
    """Raise ConfigError unless `path` names a folder."""
    folder, name = _resolve(path)
    if name is not None:
        raise ConfigError(f"{path} is a document", f"list its folder {folder}")


def _resolve(path: str) -> tuple[str, str | None]:
    """AVATAR/FOLDER and the document's name that `path` means; no name for the folder itself. Raises ConfigError."""
    avatar, _, below = path.partition("/")
    try:
        folder, name = resolve(below)
    except NotFound as error:
        raise ConfigError(error.message, error.hint) from None
    return f"{avatar}/{folder.path}", name
