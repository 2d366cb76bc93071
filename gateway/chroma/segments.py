"""What the database says of each collection's index, in any schema from chromadb 0.4 on. Reads only; all blocking.

A sequence id is a number in 1.x. In 0.4 and 0.5 it is a blob, a big-endian number
(`chromadb/db/impl/sqlite.py`, `encode_seq_id`; migration `metadb/00005-max-seq-id-int`).
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# The log's tenant and namespace are "default" on a single node, whatever the collection's are
# (`rust/sqlite/src/helpers.rs`, `get_embeddings_queue_topic_name`; `rust/log/src/config.rs`, `SqliteLogConfig`).
_TOPICS = "persistent://default/default/"
# `rust/types/src/hnsw_configuration.rs`
COSINE = "cosine"
VECTOR_INDEX = ("keys", "#embedding", "float_list", "vector_index", "config")
"""Where a collection's schema has its index (`rust/types/src/collection_schema.rs`)."""
_LOG_INDEX = "log_index"

ADD, UPDATE, UPSERT, DELETE = range(4)  # `rust/log/src/sqlite_log.rs`, `operation_from_code`


def topic_of(collection_id: str) -> str:
    """Under which a collection's rows are in the log."""
    return _TOPICS + collection_id


class IndexSettings(NamedTuple):
    """What an index is made with, and by default. `neighbors` is M."""

    space: str = "l2"
    neighbors: int = 16
    ef_construction: int = 100
    ef_search: int = 100
    sync_threshold: int = 1000


_DEFAULTS = IndexSettings()


@dataclass(frozen=True, slots=True)
class Segment:
    """The vector segment of one collection, with what is needed to read its index.

    `position`: its `max_seq_id`, None if there is no such row. `dimension`: None before the first record.
    `space`, `neighbors` (M) and `ef_construction` are those that Chroma would use.
    """

    id: str
    collection_id: str
    collection: str
    tenant: str
    database: str
    metadata_id: str | None
    dimension: int | None
    position: int | None
    metadata_position: int | None
    space: str
    neighbors: int
    ef_construction: int

    @property
    def topic(self) -> str:
        """Under which its rows are in the log."""
        return topic_of(self.collection_id)

    @property
    def name(self) -> str:
        """`tenant/database/collection`, without the parts that are Chroma's defaults."""
        default = (self.tenant, self.database) == ("default_tenant", "default_database")
        return self.collection if default else f"{self.tenant}/{self.database}/{self.collection}"


class LogRow(NamedTuple):
    """A row of the log without its vector."""

    seq_id: int
    operation: int
    id: str
    has_vector: bool


def read_segments(connection: sqlite3.Connection, collection_ids: Sequence[str] | None = None) -> list[Segment]:
    """Every persistent vector segment of a live collection, by name. Raises sqlite3.Error.

    `collection_ids`: of these collections only.
    """
    columns = {row[1] for row in connection.execute("pragma table_info(collections)")}
    config = "c.config_json_str" if "config_json_str" in columns else "null"
    schema = "c.schema_str" if "schema_str" in columns else "null"
    dimension = "c.dimension" if "dimension" in columns else "null"
    home = "d.tenant_id, d.name" if "database_id" in columns else "'default_tenant', 'default_database'"
    join = "left join databases d on d.id = c.database_id" if "database_id" in columns else ""
    chosen = "c.id in (select value from json_each(?))" if collection_ids is not None else "? is null"
    rows = connection.execute(
        f"select s.id, c.id, c.name, {home}, {dimension}, {config}, {schema}, m.id"  # noqa: S608  # names of columns
        f" from segments s join collections c on c.id = s.collection {join}"
        # A join, since SQLite makes an index for it: a subquery would look through all segments for each collection.
        " left join segments m on m.collection = c.id and m.scope = 'METADATA'"
        f" where s.scope = 'VECTOR' and s.type like '%hnsw-local-persisted' and {chosen} order by 4, 5, 3",
        (None if collection_ids is None else json.dumps(list(collection_ids)),),
    ).fetchall()
    found = []
    for segment_id, collection_id, name, tenant, database, dimension, config, schema, metadata_id in rows:
        told = index_settings(connection, segment_id, config, schema)
        found.append(
            Segment(
                segment_id,
                collection_id,
                name,
                tenant,
                database,
                metadata_id,
                dimension,
                _position(connection, segment_id),
                _position(connection, metadata_id),
                *told[:3],
            )
        )
    return found


def live_ids(connection: sqlite3.Connection, segment: Segment) -> set[str]:
    """Every record's id."""
    # An index of SQLite has all that is asked for, so no record is read.
    rows = connection.execute("select embedding_id from embeddings where segment_id = ?", (segment.metadata_id,))
    return {each for (each,) in rows}


def live_records(connection: sqlite3.Connection, segment: Segment) -> dict[str, int]:
    """Every record's id with the sequence id that last changed it, in the order in which they were first added."""
    rows = connection.execute(
        "select embedding_id, seq_id from embeddings where segment_id = ? order by id", (segment.metadata_id,)
    )
    found = dict(rows)
    if {int}.issuperset(map(type, found.values())):
        return found  # as in all but old versions
    return {each: decode_seq_id(seq_id) for each, seq_id in found.items()}


def index_log(connection: sqlite3.Connection) -> None:
    """Make `log_rows` fast for many collections, in one pass over the log: it has no index of topics.

    The index is a temporary table of this connection, and of this state of the log.
    """
    connection.execute(f"create temp table if not exists {_LOG_INDEX} (topic text, seq_id integer)")
    connection.execute(f"delete from {_LOG_INDEX}")  # noqa: S608  # a constant
    connection.execute(f"insert into {_LOG_INDEX} select topic, seq_id from main.embeddings_queue")  # noqa: S608
    connection.execute(f"create index if not exists temp.{_LOG_INDEX}_topic on {_LOG_INDEX} (topic, seq_id)")


def log_rows(connection: sqlite3.Connection, segment: Segment, after: int = 0) -> Iterator[LogRow]:
    """The rows of its collection after a sequence id, in order."""
    chosen = "topic = ? and seq_id > ?"
    if connection.execute("select 1 from sqlite_temp_master where name = ?", (_LOG_INDEX,)).fetchone():
        chosen = f"seq_id in (select seq_id from temp.{_LOG_INDEX} where topic = ? and seq_id > ?)"  # noqa: S608
    rows = connection.execute(
        f"select seq_id, operation, id, vector is not null from embeddings_queue where {chosen} order by seq_id",  # noqa: S608
        (segment.topic, after),
    )
    return (LogRow(seq_id, operation, each, bool(has)) for seq_id, operation, each, has in rows)


def decode_seq_id(value: Any) -> int:
    """A sequence id of any version as a number."""
    return int.from_bytes(value, "big") if isinstance(value, bytes) else int(value)


def has_number_seq_ids(connection: sqlite3.Connection) -> bool:
    """Whether `max_seq_id` has numbers, as since chromadb 0.6; else it has blobs."""
    columns = {row[1]: row[2] for row in connection.execute("pragma table_info(max_seq_id)")}
    return columns.get("seq_id") == "INTEGER"


def _position(connection: sqlite3.Connection, segment_id: str | None) -> int | None:
    row = connection.execute("select seq_id from max_seq_id where segment_id = ?", (segment_id,)).fetchone()
    return None if row is None else decode_seq_id(row[0])


def index_settings(
    connection: sqlite3.Connection, segment_id: str, config: str | None, schema: str | None
) -> IndexSettings:
    """What is told of an index: by the schema, by the configuration, or by the segment's own metadata.

    Chroma uses the metadata where the rest says nothing but defaults (`rust/types/src/collection_schema.rs`,
    `get_internal_hnsw_config_with_legacy_fallback`).
    """
    found = _DEFAULTS
    index = object_at(schema, *VECTOR_INDEX)
    # As 1.0 to 1.3 write it (`rust/types/src/collection_configuration.rs`, `InternalCollectionConfiguration`), and
    # as earlier versions did.
    nested = object_at(config, "vector_index", "hnsw") or object_at(config, "hnsw")
    nested = nested or object_at(config, "hnsw_configuration")
    for told in ({**index, **index.get("hnsw", {})}, nested):
        if found[:3] == _DEFAULTS[:3]:
            found = IndexSettings(
                str(told.get("space", found.space)),
                _number(told.get("max_neighbors", told.get("M")), found.neighbors),
                _number(told.get("ef_construction"), found.ef_construction),
                _number(told.get("ef_search"), found.ef_search),
                _number(told.get("sync_threshold"), found.sync_threshold),
            )
    if found[:3] == _DEFAULTS[:3]:
        metadata = dict(
            connection.execute(
                "select key, coalesce(str_value, int_value) from segment_metadata where segment_id = ?", (segment_id,)
            )
        )
        found = IndexSettings(
            str(metadata.get("hnsw:space", found.space)),
            _number(metadata.get("hnsw:M"), found.neighbors),
            _number(metadata.get("hnsw:construction_ef"), found.ef_construction),
            _number(metadata.get("hnsw:search_ef"), found.ef_search),
            _number(metadata.get("hnsw:sync_threshold"), found.sync_threshold),
        )
    return found


def _number(told: Any, otherwise: int) -> int:
    """What is told, if it is a number: one odd collection must not keep all others from being looked at."""
    try:
        return int(told)
    except (TypeError, ValueError, OverflowError):
        return otherwise


def object_at(document: str | None, *path: str) -> dict[str, Any]:
    """The object at `path` in a JSON document; empty if it is not there, or cannot be read."""
    try:
        found: Any = json.loads(document) if document else {}
    except (ValueError, RecursionError):
        return {}
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}
