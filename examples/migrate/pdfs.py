"""A folder of PDFs, or of other documents, becomes documents of an avatar, and a collection of their chunks."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from examples.connection import admin, client
from examples.ingest import files_of, ingest
from examples.migrate.report import Check, vectors_differ
from examples.search import function_of, space_of

_PAGE = 500


def copy(folder: Path, avatar: str, pattern: str) -> dict[str, Any]:
    """Upload and train. Return what changed; `failed` has documents without text, with the reason. Safe to repeat."""
    if not (files := files_of(folder, pattern)):
        raise SystemExit(f"{folder} has no {pattern}: is it mounted?")
    return ingest(files, avatar)


def compare(folder: Path, avatar: str, pattern: str, done: dict[str, Any]) -> list[Check]:
    """Compare the stored bytes, which documents have chunks, and the vectors with those of embedding the text again."""
    files = files_of(folder, pattern)
    with admin() as gateway:
        stored = {
            each["name"]: each["digest"] for each in gateway.documents().all(f"{avatar}/vectorstore_data", digests=True)
        }
    digests = {name: f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" for name, file in files.items()}
    collection = client().get_collection(done["collection"])
    function, space = function_of(collection), space_of(collection)
    documents: set[str] = set()
    wrong, chunks = [], collection.count()
    for offset in range(0, chunks, _PAGE):
        page = collection.get(limit=_PAGE, offset=offset, include=["embeddings", "documents", "metadatas"])
        documents |= {str(metadata["document"]) for metadata in page["metadatas"] or []}
        again = np.array(function(page["documents"]), dtype=np.float32)
        bad = vectors_differ(np.asarray(page["embeddings"], dtype=np.float32), again, space)
        wrong += [id_ for id_, differs in zip(page["ids"], bad, strict=True) if differs]
    return [
        Check("files, by their SHA-256", len(files), [name for name in files if stored.get(name) != digests[name]]),
        Check("documents with chunks", len(files), sorted(files.keys() - documents - done["failed"].keys())),
        Check("vectors, embedded a second time", chunks, wrong),
    ]
