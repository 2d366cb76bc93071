"""A collection of Milvus Lite becomes one of Chroma: ids, vectors, text and metadata."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from chromadb import Collection
from chromadb.api.types import Space
from pymilvus import DataType, MilvusClient

from examples.connection import client
from examples.migrate.report import Check, vectors_differ

# Milvus's metrics as Chroma's spaces.
_SPACES: dict[str, Space] = {"L2": "l2", "COSINE": "cosine", "IP": "ip"}
_TEXT_NAMES = ("text", "document", "content", "page_content", "chunk")
_BATCH = 500
_ASKED = 50
_NEAREST = 10


class Source(NamedTuple):
    """A collection of Milvus: its fields, and the space that its distances are of."""

    milvus: MilvusClient
    name: str
    key: str
    vector: str
    text: str | None
    space: Space


def open_source(file: Path, name: str, text: str | None = None) -> Source:
    """Raises SystemExit if it cannot be moved: no such collection, several vectors, a metric that Chroma lacks."""
    if not file.exists():
        raise SystemExit(f"there is no file {file}")
    milvus = MilvusClient(str(file))
    if not milvus.has_collection(name):
        raise SystemExit(f"{file} has no collection {name}, but {', '.join(milvus.list_collections()) or 'none'}")
    milvus.load_collection(name)
    fields = milvus.describe_collection(name)["fields"]
    key = next(field["name"] for field in fields if field.get("is_primary"))
    vectors = [field["name"] for field in fields if field["type"] == DataType.FLOAT_VECTOR]
    if len(vectors) != 1:
        raise SystemExit(f"{name} has {len(vectors)} fields of float vectors; a collection of Chroma has one")
    metric = str(milvus.describe_index(name, milvus.list_indexes(name)[0])["metric_type"])
    if metric not in _SPACES:
        raise SystemExit(f"{name} uses the metric {metric}; Chroma has {', '.join(_SPACES)}")
    names = {field["name"] for field in fields}
    text = text or next((each for each in _TEXT_NAMES if each in names), None)
    return Source(milvus, name, key, vectors[0], text, _SPACES[metric])


def rows(source: Source) -> Iterator[list[dict[str, Any]]]:
    """All rows, in batches."""
    iterator = source.milvus.query_iterator(source.name, batch_size=_BATCH, output_fields=["*"])
    try:
        while batch := iterator.next():
            yield batch
    finally:
        iterator.close()


def copy(source: Source, name: str) -> Collection:
    """Write all rows to the collection `name`, which is made with the source's space. Safe to repeat."""
    target = client().get_or_create_collection(
        name, embedding_function=None, configuration={"hnsw": {"space": source.space}}
    )
    for batch in rows(source):
        metadata: Any = [_metadata(source, row) for row in batch]
        target.upsert(
            ids=[str(row[source.key]) for row in batch],
            embeddings=_vectors(source, batch),
            documents=None if source.text is None else [_text(source, row) for row in batch],
            metadatas=metadata,
        )
    return target


def compare(source: Source, target: Collection) -> list[Check]:
    """Read both, and compare the number of records, every record, and what some searches find."""
    wrong: dict[str, list[str]] = {"vectors": [], "texts": [], "metadata": []}
    seen = 0
    asked: list[np.ndarray] = []
    for batch in rows(source):
        ids = [str(row[source.key]) for row in batch]
        got = target.get(ids=ids, include=["embeddings", "documents", "metadatas"])
        at = {id_: index for index, id_ in enumerate(got["ids"])}
        found = [row for row in batch if str(row[source.key]) in at]
        order = [at[str(row[source.key])] for row in found]
        seen += len(batch)
        wrong["vectors"] += [id_ for id_ in ids if id_ not in at]
        if not found:
            continue
        theirs = _vectors(source, found)
        ours = np.asarray(got["embeddings"], dtype=np.float32)[order]
        wrong["vectors"] += [
            str(row[source.key])
            for row, bad in zip(found, vectors_differ(ours, theirs, source.space), strict=True)
            if bad
        ]
        for row, index in zip(found, order, strict=True):
            if (got["documents"] or [])[index] != _text(source, row):
                wrong["texts"].append(str(row[source.key]))
            if not _same((got["metadatas"] or [])[index] or {}, _metadata(source, row) or {}):
                wrong["metadata"].append(str(row[source.key]))
        asked += list(theirs[: max(0, _ASKED - len(asked))])
    count = target.count()
    return [
        Check("records", count, [] if count == seen else [f"{seen} in Milvus, {count} in Chroma"]),
        *(Check(what, seen, differ) for what, differ in wrong.items()),
        _search_check(source, target, asked),
    ]


def _search_check(source: Source, target: Collection, asked: list[np.ndarray]) -> Check:
    """The same questions to both. Both are approximate, so one of ten may be another."""
    differ = []
    for number, vector in enumerate(asked):
        theirs = source.milvus.search(source.name, [vector.tolist()], limit=_NEAREST, anns_field=source.vector)[0]
        ours = target.query(query_embeddings=[vector], n_results=_NEAREST, include=[])["ids"][0]
        common = {str(hit[source.key] if source.key in hit else hit["id"]) for hit in theirs} & set(ours)
        if len(common) < min(_NEAREST, len(theirs)) - 1:
            differ.append(f"question {number}: {len(common)} of {len(theirs)} results are the same")
    return Check(f"searches, of their first {_NEAREST} results", len(asked), differ)


def _same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether metadata are the same. Chroma changes the last digit of some floats, such as 271 / 3."""
    return ours.keys() == theirs.keys() and all(
        math.isclose(value, theirs[name], rel_tol=1e-12) if isinstance(value, float) else value == theirs[name]
        for name, value in ours.items()
    )


def _vectors(source: Source, batch: list[dict[str, Any]]) -> np.ndarray:
    return np.array([row[source.vector] for row in batch], dtype=np.float32)


def _text(source: Source, row: dict[str, Any]) -> Any:
    """None where the collection has no text; a null becomes an empty text."""
    return None if source.text is None else row.get(source.text) or ""


def _metadata(source: Source, row: dict[str, Any]) -> dict[str, Any] | None:
    """The other fields. Chroma has no null, and nested values only as text: they become JSON."""
    kept = {name: value for name, value in row.items() if name not in {source.key, source.vector, source.text}}
    found = {
        name: value if isinstance(value, str | int | float | bool) else json.dumps(value, default=str, sort_keys=True)
        for name, value in kept.items()
        if value is not None
    }
    return found or None
