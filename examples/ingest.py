"""Files into a collection: the gateway keeps them in its store, reads, splits and embeds them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from examples.connection import admin

OnProgress = Callable[[float, str], object]


def ingest(
    files: Mapping[str, Path],
    avatar: str,
    request: dict[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Upload files, by the names that they get, for an avatar, and train its collection. Return what changed.

    The collection `avatar-…` then has the chunks of all its documents, also of earlier ones. `request` is the body of
    the training: splitting, embedding, metadata. `on_progress` gets how far it is, from 0 to 1, and what is done. Safe
    to retry. Raises GatewayError.
    """
    said = on_progress or (lambda _done, _what: None)
    with admin() as gateway:
        documents = gateway.documents()
        for number, (name, file) in enumerate(files.items()):
            said(number / len(files) / 2, f"upload {name}")
            documents.put(f"{avatar}/vectorstore_data/{name}", file, defer_flag=True)
        return documents.train(avatar, request, on_job=lambda job: said(*_of_job(job)))


def files_of(folder: Path, pattern: str = "*") -> dict[str, Path]:
    """The files of a folder at any depth, by their names in it. Hidden ones are left out."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob(pattern)) if path.is_file()}
    return {name: path for name, path in found.items() if not any(part.startswith(".") for part in name.split("/"))}


def _of_job(job: Any) -> tuple[float, str]:
    """The second half of the way is the training's."""
    share = job["done"] / job["total"] if job.get("total") else 0.0
    return 0.5 + min(share, 1.0) / 2, job.get("phase") or "train"
