"""`ingest`: make a folder of files a collection, with or without the store."""

import asyncio
import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from gateway.admin import Body
from gateway.admin.client import Documents
from gateway.admin.http import authorization
from gateway.cli.client import base_url, find_token
from gateway.cli.documents import Request, json_object, open_documents, train
from gateway.cli.options import AsJson, Token, Url
from gateway.cli.output import print_json, validation_problems
from gateway.cli.progress_bars import ProgressBars
from gateway.config import load_settings
from gateway.documents.layout import VECTORSTORE_DATA, check_name
from gateway.errors import ConfigError, GatewayError, InvalidRequest
from gateway.jobs import Progress

if TYPE_CHECKING:
    from gateway.documents.train import Training

_UPLOADS_AT_ONCE = 4


def ingest(
    directory: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Files with text, at any depth.")],
    avatar: Annotated[str | None, typer.Option(help="Upload the files for this avatar, and train it.")] = None,
    collection: Annotated[
        str | None, typer.Option(help="Train this collection. Without --avatar nothing is uploaded to the store.")
    ] = None,
    url: Url = None,
    token: Token = None,
    request: Request = "{}",
    delete: Annotated[
        bool, typer.Option("--delete", help="With --avatar: delete documents of the store that the folder lacks.")
    ] = False,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Go on if the folder has no files; the collection becomes empty.")
    ] = False,
    keep_going_ok: Annotated[
        bool, typer.Option("--keep-going-ok", help="Exit with 0 although documents failed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a folder of files a collection. Files that did not change since the last time cost nothing.

    A file that cannot be read, named or uploaded is reported in `failed`, with the reason; the others are done. The
    command then exits with 1. Chunks are only deleted of files that are certainly gone.
    """
    from gateway.documents.readers.kinds import kind_of_name  # noqa: PLC0415  # loads the readers of all kinds

    if avatar is None and collection is None:
        raise ConfigError("neither an avatar nor a collection is named", "use --avatar or --collection")
    training = _training(json_object(request) | ({"collection": collection} if collection else {}))
    found = _find(directory, kind_of_name)
    _require_files(found, directory, allow_empty=allow_empty)
    with ProgressBars(shown=not as_json) as bars:
        digests = _digests(found, bars)
        if avatar is not None:
            with open_documents(url, token) as client:
                result = _ingest_into_avatar(client, avatar, found, digests, training, bars, delete=delete)
        else:
            result = _ingest_into_collection(found, digests, directory, training, url, token, bars)
    failed = found.failed | result["failed"]
    print_json(result | {"failed": failed, "skipped": found.skipped, "counts": _counts(result, found, failed)})
    if failed:
        typer.echo(f"{len(failed)} documents failed: see 'failed'", err=True)
        if not keep_going_ok:
            raise typer.Exit(GatewayError.exit_code)


@dataclass(slots=True)
class _Found:
    """What a directory has: files to train, names that are left out, and names that failed with the reason."""

    files: dict[str, Path] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    is_complete: bool = True


def _training(asked: dict[str, Any]) -> "Training":
    """Check the training's request before anything is uploaded. Raises ConfigError."""
    from gateway.documents.train import Training  # noqa: PLC0415  # loads what training needs

    try:
        return Training.model_validate(asked)
    except ValidationError as error:
        raise ConfigError(f"--request or --collection is not valid: {validation_problems(error)}") from None


def _find(directory: Path, kind_of_name: Any) -> _Found:
    """Look through a directory. Links are not followed; hidden files are left out."""
    found = _Found()

    def unlisted(error: OSError) -> None:
        found.failed[_shown(os.path.relpath(error.filename, directory))] = f"it cannot be listed: {error.strerror}"
        found.is_complete = False

    for parent, folders, names in os.walk(directory, onerror=unlisted):
        for name in sorted(folders):
            path = Path(parent, name)
            if name.startswith(".") or path.is_symlink():
                reason = "it is hidden" if name.startswith(".") else "it is a link"
                found.skipped[_shown(path.relative_to(directory).as_posix())] = reason
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not Path(parent, name).is_symlink()
        )
        for name in sorted(names):
            _sort_in(Path(parent, name), directory, found, kind_of_name)
    return found


def _sort_in(path: Path, directory: Path, found: _Found, kind_of_name: Any) -> None:
    name = path.relative_to(directory).as_posix()
    shown = _shown(name)
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        found.failed[shown] = f"it cannot be read: {error.strerror}"
        found.is_complete = False
        return
    if path.name.startswith("."):
        found.skipped[shown] = "it is hidden"
    elif not stat.S_ISREG(mode):
        found.skipped[shown] = "it is a link" if stat.S_ISLNK(mode) else "it is no regular file"
    elif kind_of_name(name) is None:
        found.skipped[shown] = f"no text can be read from {path.suffix or 'a name without an ending'}"
    else:
        try:
            name.encode()
            check_name(name, VECTORSTORE_DATA)
        except UnicodeEncodeError:
            found.failed[shown] = "its name is not UTF-8: rename it"
        except InvalidRequest as error:
            found.failed[shown] = error.message
        else:
            found.files[name] = path


def _shown(name: str) -> str:
    """A name that can be printed: bytes that are not UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _require_files(found: _Found, directory: Path, *, allow_empty: bool) -> None:
    """Raises ConfigError for a folder without files: it may be one that is not mounted."""
    if not found.files and not allow_empty:
        raise ConfigError(
            f"{directory} has no file to train" + (f", {len(found.failed)} failed" if found.failed else ""),
            "is it mounted? To empty the collection use --allow-empty",
        )


def _digests(found: _Found, bars: ProgressBars) -> dict[str, str]:
    """The SHA-256 of each file, in hex. Files that cannot be read move to `failed`."""
    bars.progress.phase("look", len(found.files), "files")
    digests = {}
    for name, file in list(found.files.items()):
        try:
            with file.open("rb") as opened:
                digests[name] = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            del found.files[name]
            found.failed[name] = f"it cannot be read: {error.strerror}"
        bars.progress.advance(1)
    return digests


def _ingest_into_avatar(
    client: Documents,
    avatar: str,
    found: _Found,
    digests: dict[str, str],
    training: "Training",
    bars: ProgressBars,
    *,
    delete: bool,
) -> dict[str, Any]:
    """Upload new and changed files, delete removed ones if asked, and train the avatar's collection.

    Flags of documents that are in the store stay as they are.
    """
    folder = f"{avatar}/{VECTORSTORE_DATA.path}"
    stored = {document["name"]: document for document in client.all(folder, digests=True)}
    new = [name for name in found.files if name not in stored or stored[name]["digest"] != f"sha256:{digests[name]}"]
    bars.progress.phase("upload", sum(_size_bytes(found.files[name]) for name in new))
    uploaded: list[str] = []

    def upload(name: str) -> None:
        try:
            body = _counted(found.files[name], bars.progress)
            client.put(
                f"{folder}/{name}", body, sha256=digests[name], defer_flag=True
            )  # the training writes all new flags
        except (OSError, GatewayError) as error:
            found.failed[name] = f"it cannot be uploaded: {error}"
        else:
            uploaded.append(name)

    with ThreadPoolExecutor(_UPLOADS_AT_ONCE) as uploads:
        list(uploads.map(upload, new))
    gone = sorted(stored.keys() - found.files.keys() - found.failed.keys()) if delete else []
    if gone and not found.is_complete:
        raise ConfigError("nothing was deleted or trained: some folders could not be listed", "run without --delete")
    for name in gone:
        client.delete(f"{folder}/{name}")
    trained = train(client, avatar, training.model_dump(), bars)
    return trained | {"uploaded": sorted(uploaded), "deleted_documents": gone}


def _counted(path: Path, progress: Progress) -> Body:
    """The bytes of a file, which advance `progress` as they are sent. Several may be sent at once. Raises OSError."""
    body = Body.of_file(path)

    def pieces() -> Iterator[bytes]:
        for piece in body.pieces:
            progress.advance(len(piece))
            yield piece

    return Body(pieces(), body.size_bytes)


def _size_bytes(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _ingest_into_collection(
    found: _Found,
    digests: dict[str, str],
    directory: Path,
    training: "Training",
    url: str | None,
    token: str | None,
    bars: ProgressBars,
) -> dict[str, Any]:
    """Train a collection from the files, in this process and through the gateway's `/api/`."""
    from gateway.cli.folder_training import FolderSource, train_folder  # noqa: PLC0415

    settings = load_settings()
    target = base_url(settings, url)
    key = find_token(settings, target, token)
    headers = authorization(key) if key is not None else None
    source = FolderSource(found.files, digests, unread=set(found.failed), is_complete=found.is_complete)
    owner = f"folder:{directory.resolve().name}"
    return asyncio.run(train_folder(source, owner, training, settings, target, headers, bars.progress))


def _counts(result: dict[str, Any], found: _Found, failed: dict[str, str]) -> dict[str, int]:
    lists = ("added", "changed", "removed", "uploaded")
    return {
        "files": len(found.files),
        **{name: len(result.get(name, ())) for name in lists},
        "unchanged": result["unchanged"],
        "failed": len(failed),
        "skipped": len(found.skipped),
    }
