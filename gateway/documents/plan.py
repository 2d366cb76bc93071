"""What the collection's records say about the documents they were made of. Pure."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# The metadata that training writes into each record.
RESERVED = frozenset({"document", "chunk", "chunks", "position", "digest", "tag", "training"})
# Changes with the text that readers make of the same bytes, so that documents are trained again.
_READERS_VERSION = 2


@dataclass(slots=True)
class TrainedRecords:
    """The records that the collection has of one document. `is_whole`: they are all chunks of one training.

    `made_of` is their tag, digest, training and number of chunks.
    """

    made_of: tuple[Any, ...] = (None, None, None, None)
    ids: set[str] = field(default_factory=set)
    is_whole: bool = True

    @property
    def tag(self) -> Any:
        return self.made_of[0]

    @property
    def digest(self) -> Any:
        return self.made_of[1]

    @property
    def training(self) -> Any:
        return self.made_of[2]


def record_id(document: str, chunk: int) -> str:
    """Return the id of a chunk's record. It is stable, so that a repeated write overwrites."""
    return f"{document}#{chunk}"


def by_document(
    records: Iterable[tuple[str, Mapping[str, Any] | None]],
) -> tuple[dict[str, TrainedRecords], list[str]]:
    """Return the records of each document by its name, and the ids of records that belong to no document."""
    documents: dict[str, TrainedRecords] = {}
    foreign = []
    for key, nullable in records:
        metadata = nullable or {}
        document, chunk = metadata.get("document"), metadata.get("chunk")
        if not isinstance(document, str) or not isinstance(chunk, int) or key != record_id(document, chunk):
            foreign.append(key)
            continue
        made_of = tuple(metadata.get(name) for name in ("tag", "digest", "training", "chunks"))
        trained = documents.setdefault(document, TrainedRecords(made_of))
        trained.is_whole &= made_of == trained.made_of
        trained.ids.add(key)
    for document, trained in documents.items():
        chunks = trained.made_of[3]
        trained.is_whole &= isinstance(chunks, int) and trained.ids == {record_id(document, n) for n in range(chunks)}
    return documents, foreign


def training_of(reading: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """Return a short digest of how a document is trained. Another digest means that its chunks must be replaced.

    `reading` says how the document becomes chunks.
    """
    parameters = json.dumps([_READERS_VERSION, dict(reading), dict(metadata)], sort_keys=True)
    return hashlib.sha256(parameters.encode()).hexdigest()[:16]
