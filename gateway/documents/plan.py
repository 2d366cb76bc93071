"""What training has to do, told from what the documents are and what the collection holds. Pure."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# What each record says of itself; `training` is a digest of everything beside the document that made it.
RESERVED = frozenset({"document", "chunk", "chunks", "position", "digest", "tag", "training"})


@dataclass(slots=True)
class Held:
    """The records that the collection has of one document. `whole` says that one training made them all."""

    ids: set[str] = field(default_factory=set)
    says: tuple[Any, ...] | None = None
    whole: bool = True

    @property
    def tag(self) -> Any:
        return self.says[0] if self.says else None

    @property
    def digest(self) -> Any:
        return self.says[1] if self.says else None

    @property
    def training(self) -> Any:
        return self.says[2] if self.says else None


def record_id(document: str, chunk: int) -> str:
    """The id of a chunk's record: the same each time, so that what was written twice is there once."""
    return f"{document}#{chunk}"


def held(records: Iterable[tuple[str, Mapping[str, Any] | None]]) -> tuple[dict[str, Held], list[str]]:
    """What there is of each document, and the ids of records that are of none."""
    documents: dict[str, Held] = {}
    foreign = []
    for key, metadata in records:
        says = metadata or {}
        document, chunk = says.get("document"), says.get("chunk")
        if not isinstance(document, str) or not isinstance(chunk, int) or key != record_id(document, chunk):
            foreign.append(key)
            continue
        of = documents.setdefault(document, Held())
        said = (says.get("tag"), says.get("digest"), says.get("training"), says.get("chunks"))
        of.whole = of.whole and of.says in (None, said)
        of.says = said
        of.ids.add(key)
    for document, of in documents.items():
        chunks = of.says[3] if of.says else None
        of.whole = of.whole and isinstance(chunks, int) and of.ids == {record_id(document, n) for n in range(chunks)}
    return documents, foreign


def training_of(splitting: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """A short digest of how a document is trained: chunks made otherwise are other chunks."""
    said = json.dumps([1, dict(splitting), dict(metadata)], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]
