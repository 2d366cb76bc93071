"""Chroma's log, `embeddings_queue`, kept for as long as a snapshot may need it. All blocking.

Chroma deletes rows of its log once they are in an index's files, unless `embeddings_queue_config` says
`automatically_purge: false` (`rust/log/src/sqlite_log.rs`, `purge_logs`; asked anew at every write). With
the rows at hand an index may be older than the database: Chroma replays what came after the index's
`max_seq_id`, and the result is exact (`shared/lab/replay.py`). So an index need not be stored with every
snapshot, nor copied while writes wait. Whoever tells Chroma to keep its log has to trim it.
"""

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from gateway.chroma.database import Pinned, is_log_kept, open_database, translated, write_lock_on
from gateway.chroma.disk import DATABASE

_SET_CONFIG = "insert or replace into embeddings_queue_config (id, config_json_str) values (1, ?)"
# Tenant and namespace of the log, which are always these on one node (`rust/sqlite/src/helpers.rs`,
# `get_embeddings_queue_topic_name`; `rust/log/src/config.rs`).
_TOPICS = "persistent://default/default/"
_KIND = "EmbeddingsQueueConfigurationInternal"
# Chroma purges as many when an index is synced, writes waiting.
_ROWS_AT_ONCE = 500


def keep_log(data_dir: Path) -> dict[str, int] | None:
    """See to it that Chroma keeps its log; None if it does already.

    Else the `max_seq_id` of each vector segment from which on it is kept now.
    """
    with translated(data_dir / DATABASE), closing(open_database(data_dir / DATABASE)) as connection:
        if is_log_kept(connection):
            return None
        with write_lock_on(connection, commit=True):
            set_purging(connection, automatically=False)
            return _synced(connection)


def synced_to(data_dir: Path) -> dict[str, int]:
    """`max_seq_id` of each vector segment that has one."""
    with translated(data_dir / DATABASE), closing(open_database(data_dir / DATABASE)) as connection:
        return _synced(connection)


def count_log(data_dir: Path) -> int:
    """How many rows the log has."""
    with translated(data_dir / DATABASE), closing(open_database(data_dir / DATABASE)) as connection:
        return int(connection.execute("select count(*) from embeddings_queue").fetchone()[0])


def set_purging(connection: sqlite3.Connection, *, automatically: bool) -> None:
    """Say whether Chroma is to delete rows of its log by itself, as it does by default."""
    connection.execute(_SET_CONFIG, (json.dumps({"automatically_purge": automatically, "_type": _KIND}),))


def rows_after(cut: Pinned, positions: Mapping[str, int]) -> dict[str, int]:
    """How many rows of the log Chroma would replay, by vector segment, on indexes that are at `positions`."""
    counts = {}
    for segment_id, collection_id in cut.segment_collections().items():
        counts[segment_id] = cut.log_rows(_topic(collection_id), positions.get(segment_id, 0))
    return counts


def trim_log(data_dir: Path, positions: Mapping[str, int]) -> int:
    """Delete what no index at `positions` (seq_id by vector segment) or newer can need; return how many rows.

    In small steps, between which others write. Does nothing unless Chroma was told to keep its log.
    May be repeated.
    """
    deleted = 0
    with translated(data_dir / DATABASE), closing(open_database(data_dir / DATABASE)) as connection:
        if not is_log_kept(connection):
            return 0
        for topic, seq_id in _bounds(connection, positions).items():
            while count := _delete(connection, topic, seq_id):
                deleted += count
    return deleted


def _synced(connection: sqlite3.Connection) -> dict[str, int]:
    return dict(
        connection.execute(
            "select s.id, m.seq_id from segments s join max_seq_id m on m.segment_id = s.id where s.scope = 'VECTOR'"
        )
    )


def _bounds(connection: sqlite3.Connection, positions: Mapping[str, int]) -> dict[str, int]:
    """By topic of every collection: up to where both of its segments, and the stored index, have the log."""
    rows = connection.execute(
        "select s.id, s.scope, s.collection, coalesce(m.seq_id, 0) from segments s"
        " left join max_seq_id m on m.segment_id = s.id"
    )
    bounds: dict[str, int] = {}
    for segment_id, scope, collection_id, seq_id in rows.fetchall():
        bound = min(seq_id, positions.get(segment_id, 0)) if scope == "VECTOR" else seq_id
        topic = _topic(collection_id)
        bounds[topic] = min(bound, bounds.get(topic, bound))
    return bounds


def _delete(connection: sqlite3.Connection, topic: str, before: int) -> int:
    # Before, not up to: the next row's number is one more than the highest there is, and must not come twice.
    with write_lock_on(connection, commit=True):
        return connection.execute(
            "delete from embeddings_queue where seq_id in"
            " (select seq_id from embeddings_queue where topic = ? and seq_id < ? order by seq_id limit ?)",
            (topic, before, _ROWS_AT_ONCE),
        ).rowcount


def put_back(data_dir: Path, positions: Mapping[str, int], *, keep: bool) -> None:
    """Make a restored database agree with its indexes, which are at `positions`; 0 means there are no files.

    Chroma replays the rest of the log when it first reads a collection. `keep` False leaves a database
    that looks after its log by itself, for a Chroma without a gateway.
    """
    with (
        translated(data_dir / DATABASE),
        closing(open_database(data_dir / DATABASE)) as connection,
        write_lock_on(connection, commit=True),
    ):
        for segment_id, seq_id in positions.items():
            if seq_id:
                connection.execute(
                    "update max_seq_id set seq_id = ? where segment_id = ? and seq_id <> ?",
                    (seq_id, segment_id, seq_id),
                )
            else:
                connection.execute("delete from max_seq_id where segment_id = ?", (segment_id,))
        if not keep and is_log_kept(connection):
            set_purging(connection, automatically=True)


def _topic(collection_id: str) -> str:
    return _TOPICS + collection_id
