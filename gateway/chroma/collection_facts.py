"""What the production check looks at in collections. Reads only, and blocks: call it from a thread.

Of each collection a handful of records is read, and a handful of vectors: the cost follows from how many collections
are asked for, not from their size.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import structlog

from gateway.chroma.database import Collection, ReadTransaction, translated
from gateway.chroma.disk import DATABASE, LEVEL0
from gateway.chroma.header import read_header
from gateway.chroma.level0 import read_vectors
from gateway.chroma.segments import VECTOR_INDEX, IndexSettings, index_settings, object_at, topic_of

log = structlog.get_logger()

_RECORDS = 50
_VECTORS = 16
_LOG_ROWS = 2000
_DOCUMENT = "chroma:document"  # `rust/types/src/metadata.rs`, `DOCUMENT_METADATA_KEY`
# `rust/types/src/collection_schema.rs`: Chroma adds every key of a record's metadata to the collection's schema.
_OWN_KEYS = frozenset(("#embedding", "#document"))


# What numbers that are none, infinite ones, vectors of half a number and documents that are too deep raise.
_NONSENSE = (ValueError, TypeError, ArithmeticError, RecursionError)


class EmbeddingFunction(NamedTuple):
    """What a collection says of the function that makes its embeddings, such as `openai`. `model` is empty if untold.

    `dimension` is set where the function was asked for vectors of a length that is not the model's own.
    """

    name: str
    model: str = ""
    dimension: int | None = None


class CollectionFacts(NamedTuple):
    """One collection.

    `keys`: those that any record's metadata ever had; None if the collection has no schema, as an old one.
    `has_metadata`, `has_documents`: whether any of the records that were read has some. `oldest`: when the oldest of
    them was written. `norms`: lengths of some of its vectors.
    """

    collection: Collection
    function: EmbeddingFunction | None
    settings: IndexSettings
    keys: tuple[str, ...] | None
    has_metadata: bool
    has_documents: bool
    oldest: datetime | None
    norms: tuple[float, ...]

    @property
    def name(self) -> str:
        """`tenant/database/collection`, without the parts that are Chroma's defaults."""
        tenant, database, name = self.collection[:3]
        return name if (tenant, database) == ("default_tenant", "default_database") else f"{tenant}/{database}/{name}"


def read_collection_facts(data_dir: Path, collections: Sequence[Collection]) -> list[CollectionFacts]:
    """The facts of `collections`, without those that are gone, or of which the database tells what makes no sense.

    Raises GatewayError if the database cannot be read.
    """
    with translated(data_dir / DATABASE), closing(ReadTransaction(data_dir)) as state:
        logged, rows = _logged_vectors(state.connection), _rows(state.connection, collections)
        found = []
        for each in collections:
            if each.id not in rows:
                continue
            try:
                found.append(_facts(data_dir, state.connection, each, rows[each.id], logged))
            except _NONSENSE as error:  # one collection must not hide the others
                log.warning("a collection cannot be checked", collection=each.id, cause=str(error))
        return found


class _Row(NamedTuple):
    config: str | None
    schema: str | None
    segment_id: str
    metadata_id: str


def _rows(connection: sqlite3.Connection, collections: Sequence[Collection]) -> dict[str, _Row]:
    rows = connection.execute(
        "select c.id, c.config_json_str, c.schema_str, v.id, m.id from collections c"
        # Joins, since SQLite makes an index for them: there is none of a segment's collection.
        " join segments v on v.collection = c.id and v.scope = 'VECTOR'"
        " join segments m on m.collection = c.id and m.scope = 'METADATA'"
        " where c.id in (select value from json_each(?))",
        (json.dumps([each.id for each in collections]),),
    )
    return {row[0]: _Row(*row[1:]) for row in rows}


def _facts(
    data_dir: Path, connection: sqlite3.Connection, collection: Collection, row: _Row, logged: Mapping[str, list[bytes]]
) -> CollectionFacts:
    config, schema, segment_id, metadata_id = row
    ids, oldest = _some_records(connection, metadata_id)
    names = {
        name
        for (name,) in connection.execute(
            "select distinct key from embedding_metadata where id in (select value from json_each(?))",
            (json.dumps(ids),),
        )
    }
    keys = tuple(sorted(object_at(schema, "keys").keys() - _OWN_KEYS)) if schema else None
    return CollectionFacts(
        collection,
        _function(object_at(schema, *VECTOR_INDEX, "embedding_function") or object_at(config, "embedding_function")),
        index_settings(connection, segment_id, config, schema),
        keys,
        bool(names - {_DOCUMENT}),
        _DOCUMENT in names,
        oldest,
        _norms(data_dir / segment_id, logged.get(topic_of(collection.id), [])),
    )


def _some_records(connection: sqlite3.Connection, metadata_id: str) -> tuple[list[int], datetime | None]:
    """Rows of some records, from both ends of the order of their ids, and when the oldest of them was written."""
    some = "select id, created_at from embeddings where segment_id = ? order by embedding_id"
    rows: list[tuple[int, str]] = []
    for order in ("asc", "desc"):
        rows += connection.execute(f"{some} {order} limit ?", (metadata_id, _RECORDS))
    oldest = min((created for _, created in rows), default=None)
    # SQLite's `current_timestamp` is UTC in whole seconds.
    return [row[0] for row in rows], datetime.fromisoformat(oldest).replace(tzinfo=UTC) if oldest else None


def _function(told: Mapping[str, Any]) -> EmbeddingFunction | None:
    if told.get("type") != "known" or not isinstance(told.get("name"), str):
        return None
    config = told.get("config")
    config = config if isinstance(config, dict) else {}
    model = next((config[name] for name in ("model_name", "model") if isinstance(config.get(name), str)), "")
    dimension = next((config[name] for name in ("dimensions", "dimension") if isinstance(config.get(name), int)), None)
    return EmbeddingFunction(told["name"], model, dimension)


def _logged_vectors(connection: sqlite3.Connection) -> dict[str, list[bytes]]:
    """Some vectors of the newest rows of the log, by topic: float32, little-endian."""
    found: dict[str, list[bytes]] = {}
    rows = connection.execute(
        "select topic, vector from embeddings_queue where vector is not null and encoding = 'FLOAT32'"
        " and seq_id > (select coalesce(max(seq_id), 0) from embeddings_queue) - ?",
        (_LOG_ROWS,),
    )
    for topic, vector in rows:
        some = found.setdefault(topic, [])
        if len(some) < _VECTORS:
            some.append(vector)
    return found


def _norms(directory: Path, logged: list[bytes]) -> tuple[float, ...]:
    """Lengths of some vectors: of those in the log, or else of those in the index files."""
    vectors = [np.frombuffer(each, "<f4") for each in logged]
    if len(vectors) < _VECTORS:
        vectors += _indexed_vectors(directory)
    norms = (float(np.linalg.norm(each.astype(np.float64))) for each in vectors[:_VECTORS])
    return tuple(norm for norm in norms if norm > 0 and np.isfinite(norm))


def _indexed_vectors(directory: Path) -> list[Any]:
    try:
        header = read_header(directory)
        if header is None or header.problems() or not header.elements:
            return []
        numbers = np.arange(min(_VECTORS, header.elements), dtype=np.int64)
        return list(read_vectors(directory / LEVEL0, header.layout, numbers))
    except (OSError, ValueError):  # Chroma may be writing the files
        return []
