"""`documents`: the training documents of avatars."""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import quote

import typer

from gateway.cli.client import AdminClient, connect, counted_pieces, read_pieces
from gateway.cli.options import AsJson, Token, Url
from gateway.cli.output import print_json, whole_file
from gateway.cli.progress_bars import ProgressBars
from gateway.config import load_settings
from gateway.documents.layout import resolve
from gateway.errors import ConfigError, NotFound
from gateway.jobs import Progress

_PAGE = 1000

DocumentPath = Annotated[
    str, typer.Argument(help="AVATAR/FOLDER/NAME of a document, e.g. ada/vectorstore_data/a.md; or AVATAR/FOLDER.")
]
Request = Annotated[str, typer.Option(help="The body of the training request, as JSON.")]

# Results are JSON in any case. With `--json` errors are too (see `gateway.cli.main`), and there is no progress.
documents = typer.Typer(help="The training documents of avatars.")


class DocumentClient:
    """The documents of the user that GATEWAY_USER_ID names. Paths are AVATAR, AVATAR/FOLDER or AVATAR/FOLDER/NAME.

    Methods raise the errors of `AdminClient`.
    """

    def __init__(self, gateway: AdminClient, user_id: str) -> None:
        self.gateway = gateway
        self._avatars = f"/admin/users/{user_id}/avatars"

    @classmethod
    def connect(cls, url: str | None, token: str | None) -> Self:
        """The documents of the gateway that the settings and options name. Raises ConfigError."""
        return cls(connect(url, token), load_settings().user_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.gateway.__exit__()

    def route(self, path: str) -> str:
        """The path of the route for a document, a folder or an avatar."""
        return f"{self._avatars}/{quote(path)}"

    def request(self, method: str, path: str, **options: Any) -> Any:
        """Send a request about `path` and return the JSON of the answer."""
        return self.gateway.request(method, self.route(path), **options)

    def avatars(self) -> Any:
        """All avatars that have documents."""
        return self.gateway.request("GET", self._avatars)

    def list(self, folder: str, *, digests: bool) -> Iterator[dict[str, Any]]:
        """All documents of a folder, by name. With `digests` the gateway reads those whose SHA-256 it does not know."""
        after = ""
        while True:
            page = self.request("GET", folder, params={"limit": _PAGE, "after": after, "digests": digests})
            yield from page["documents"]
            if page["next"] is None:
                return
            after = page["next"]

    def upload(self, path: str, file: Path, params: dict[str, Any], progress: Progress) -> Any:
        """Store `file` as the document `path`, and advance `progress` by the bytes sent. Return the document."""
        headers = {"Content-Length": str(file.stat().st_size)}
        body = counted_pieces(read_pieces(file), progress)
        return self.request("PUT", path, content=body, headers=headers, params=params)

    def train(self, avatar: str, request: dict[str, Any], bars: ProgressBars) -> dict[str, Any]:
        """Train the collection of an avatar. Return what changed. At Ctrl-C, ask whether the training is to go on."""
        route = f"{self.route(avatar)}/vectorstore/train"
        goes_on = partial(_lets_it_go_on, bars)
        return self.gateway.run_job("POST", route, on_status=bars.show_job, goes_on=goes_on, json=request)


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
    with DocumentClient.connect(url, token) as client:
        print_json(client.avatars())


@documents.command("list")
def list_documents(
    path: DocumentPath, url: Url = None, token: Token = None, digests: bool = False, _as_json: AsJson = False
) -> None:
    """List the documents of a folder."""
    _require_folder(path)
    with DocumentClient.connect(url, token) as client:
        print_json(list(client.list(path, digests=digests)))


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
    params = {} if used is None else {"used": used}
    with DocumentClient.connect(url, token) as client, ProgressBars(shown=not as_json) as bars:
        bars.progress.phase("upload", file.stat().st_size)
        stored = client.upload(path, file, params, bars.progress)
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
    with DocumentClient.connect(url, token) as client, ProgressBars(shown=not as_json) as bars, whole_file(file) as out:
        client.gateway.download(client.route(path), out, bars.progress)


@documents.command("delete")
def delete_document(path: DocumentPath, url: Url = None, token: Token = None, _as_json: AsJson = False) -> None:
    """Delete a document."""
    with DocumentClient.connect(url, token) as client:
        client.request("DELETE", path)


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
    avatar, _, target = to.partition("/")
    with DocumentClient.connect(url, token) as client:
        print_json(client.request("POST", path, json={"avatar_id": avatar, "path": target, "replace": replace}))


@documents.command("flag")
def flag_document(
    path: DocumentPath,
    used: Annotated[bool, typer.Option("--used/--unused", help="Whether training uses the document.")],
    url: Url = None,
    token: Token = None,
    _as_json: AsJson = False,
) -> None:
    """Set whether training uses a document, or every document of a folder."""
    with DocumentClient.connect(url, token) as client:
        print_json(client.request("PATCH", path, json={"used": used}))


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
    with DocumentClient.connect(url, token) as client:
        print_json(client.request("GET", path, params={"link_s": seconds}))


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
    with DocumentClient.connect(url, token) as client, ProgressBars(shown=not as_json) as bars:
        route, body = client.route(avatar), {"avatar_id": avatar}
        result = client.gateway.run_job("DELETE", route, on_status=bars.show_job, json=body)
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
    with DocumentClient.connect(url, token) as client, ProgressBars(shown=not as_json) as bars:
        result = client.train(avatar, body, bars)
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
