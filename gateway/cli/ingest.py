"""`ingest`: make a folder of files a collection, with or without the store."""

import asyncio
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from gateway.cli.client import authorization, base_url, find_token
from gateway.cli.documents import DocumentClient, Request, json_object
from gateway.cli.options import Token, Url
from gateway.cli.output import ProgressBars, print_json, validation_problems
from gateway.config import load_settings
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.documents.train import Training


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(ingest)


def ingest(
    directory: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Files with text, at any depth.")],
    avatar: Annotated[str | None, typer.Option(help="Upload the files for this avatar, and train it.")] = None,
    collection: Annotated[
        str | None, typer.Option(help="Train this collection. Without --avatar nothing is uploaded to the store.")
    ] = None,
    url: Url = None,
    token: Token = None,
    request: Request = "{}",
) -> None:
    """Make a folder of files a collection. Files that did not change since the last time cost nothing."""
    from gateway.documents.readers.kinds import suffixes  # noqa: PLC0415  # loads the readers of all kinds of documents

    if avatar is None and collection is None:
        raise ConfigError("neither an avatar nor a collection is named", "use --avatar or --collection")
    training = _training(json_object(request) | ({"collection": collection} if collection else {}))
    files, skipped = _files(directory, suffixes())
    with ProgressBars() as bars:
        digests = _digests(files, bars)
        if avatar is not None:
            with DocumentClient.connect(url, token) as client:
                result = _ingest_into_avatar(client, avatar, files, digests, training, bars)
        else:
            result = _ingest_into_collection(files, digests, directory, training, url, token, bars)
    print_json(result | {"skipped": skipped})


def _training(asked: dict[str, Any]) -> "Training":
    """Check the training's request before anything is uploaded. Raises ConfigError."""
    from gateway.documents.train import Training  # noqa: PLC0415  # loads what training needs

    try:
        return Training.model_validate(asked)
    except ValidationError as error:
        raise ConfigError(f"--request or --collection is not valid: {validation_problems(error)}") from None


def _files(directory: Path, suffixes: Any) -> tuple[dict[str, Path], list[str]]:
    """The files whose text can be read, by their names in the directory, and the names of the others.

    Hidden files, and files in hidden directories, are in neither.
    """
    files, skipped = {}, []
    for file in sorted(directory.rglob("*")):
        name = file.relative_to(directory)
        if not file.is_file() or any(part.startswith(".") for part in name.parts):
            continue
        if file.suffix.lower() in suffixes:
            files[name.as_posix()] = file
        else:
            skipped.append(name.as_posix())
    return files, skipped


def _digests(files: dict[str, Path], bars: ProgressBars) -> dict[str, str]:
    """The SHA-256 of each file, in hex."""
    bars.progress.phase("look", len(files), "files")
    digests = {}
    for name, file in files.items():
        with file.open("rb") as opened:
            digests[name] = hashlib.file_digest(opened, "sha256").hexdigest()
        bars.progress.advance(1)
    return digests


def _ingest_into_avatar(
    client: DocumentClient,
    avatar: str,
    files: dict[str, Path],
    digests: dict[str, str],
    training: "Training",
    bars: ProgressBars,
) -> dict[str, Any]:
    """Upload new and changed files, flag all of them as used, and train the avatar's collection."""
    folder = f"{avatar}/vectorstore_data"
    stored = {document["name"]: document for document in client.list(folder, digests=True)}
    new = [name for name in files if name not in stored or stored[name]["digest"] != f"sha256:{digests[name]}"]
    bars.progress.phase("upload", sum(files[name].stat().st_size for name in new))
    for name in new:
        client.upload(f"{folder}/{name}", files[name], {"used": True, "sha256": digests[name]}, bars.progress)
    unused = {name: True for name in files if name in stored and not stored[name]["used"] and name not in new}
    if unused:
        client.request("PATCH", folder, json={"flags": unused})
    return client.train(avatar, training.model_dump(), bars) | {"uploaded": new}


def _ingest_into_collection(
    files: dict[str, Path],
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
    found = find_token(settings, token)
    headers = authorization(found) if found is not None else None
    source = FolderSource(files, digests)
    owner = f"folder:{directory.resolve().name}"
    return asyncio.run(train_folder(source, owner, training, settings, base_url(settings, url), headers, bars.progress))
