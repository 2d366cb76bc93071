"""Chroma's log, the table `embeddings_queue`: kept as long as a snapshot may need it, and trimmed. All of it blocks.

Chroma deletes rows of its log once they are in the files of the index, unless `embeddings_queue_config` has
`automatically_purge: false` (`rust/log/src/sqlite_log.rs`, `purge_logs`). It reads that setting at every write.

If the rows are kept, the stored copy of an index may be older than the database: Chroma replays the rows after the
index's position, and the records come back exact (docs/chroma-internals.md, "The log replaces an index"). So a snapshot
need not contain every index anew, and no index is copied while writes wait. In return the gateway must trim the log.
"""

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from gateway.chroma.database import ReadTransaction, is_log_kept, open_database, translated, write_lock_on
from gateway.chroma.disk import DATABASE
from gateway.chroma.segments import topic_of

_SET_CONFIG = "insert or replace into embeddings_queue_config (id, config_json_str) values (1, ?)"
_KIND = "EmbeddingsQueueConfigurationInternal"
# Few, so that writes wait for milliseconds. Chroma itself purges up to `sync_threshold` rows (1000) in one statement.
_ROWS_AT_ONCE = 500


def keep_log(data_dir: Path) -> None:
    """Configure Chroma to keep the rows of its log. Takes effect with the next write. May be repeated."""
    with translated(data_dir / DATABASE), closing(open_database(data_dir / DATABASE)) as connection:
        if not is_log_kept(connection):
            with write_lock_on(connection, commit=True):
                set_purging(connection, automatically=False)


def synced_to(data_dir: Path) -> dict[str, int]:
    """The position of each vector segment that was synced."""
    with translated(data_dir / DATABASE), closing(open_database(data_dir / DATABASE)) as connection:
        return dict(
            connection.execute(
                "select s.id, m.seq_id from segments s join max_seq_id m on m.segment_id = s.id"
                " where s.scope = 'VECTOR'"
            )
        )


def count_log(data_dir: Path) -> int:
    """The number of rows in the log."""
    with translated(data_dir / DATABASE), closing(open_database(data_dir / DATABASE)) as connection:
        return int(connection.execute("select count(*) from embeddings_queue").fetchone()[0])


def set_purging(connection: sqlite3.Connection, *, automatically: bool) -> None:
    """Configure whether Chroma deletes rows of its log by itself, as it does by default."""
    connection.execute(_SET_CONFIG, (json.dumps({"automatically_purge": automatically, "_type": _KIND}),))


def rows_after(cut: ReadTransaction, positions: Mapping[str, int]) -> dict[str, int]:
    """The number of rows that Chroma would replay for each vector segment, if its index were at `positions`."""
    counts = {}
    for segment_id, collection_id in cut.segment_collections().items():
        counts[segment_id] = cut.log_rows(topic_of(collection_id), positions.get(segment_id, 0))
    return counts


def whole_after(cut: ReadTransaction, positions: Mapping[str, int]) -> set[str]:
    """The vector segments for which the log has every row after their position.

    Rows are deleted in order, and only those below a position (`_delete` here, `purge_logs` in Chroma). So if the
    row at the position exists, no later one was deleted.
    """
    topics = {segment_id: topic_of(collection_id) for segment_id, collection_id in cut.segment_collections().items()}
    return {each for each, seq_id in positions.items() if each in topics and cut.has_log_row(topics[each], seq_id)}


def trim_log(data_dir: Path, positions: Mapping[str, int]) -> int:
    """Delete the rows that no index at `positions` (by vector segment) or newer can need. Return their number.

    Deletes in small steps, so that Chroma can write between them. Does nothing if Chroma purges its log itself.
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


def _bounds(connection: sqlite3.Connection, positions: Mapping[str, int]) -> dict[str, int]:
    """By the topic of every collection: the lowest position of its two segments and of the stored index."""
    rows = connection.execute(
        "select s.id, s.scope, s.collection, coalesce(m.seq_id, 0) from segments s"
        " left join max_seq_id m on m.segment_id = s.id"
    )
    bounds: dict[str, int] = {}
    for segment_id, scope, collection_id, seq_id in rows.fetchall():
        bound = min(seq_id, positions.get(segment_id, 0)) if scope == "VECTOR" else seq_id
        topic = topic_of(collection_id)
        bounds[topic] = min(bound, bounds.get(topic, bound))
    return bounds


def _delete(connection: sqlite3.Connection, topic: str, before: int) -> int:
    # The row at the position stays. SQLite numbers the next row one above the highest that exists, so deleting the
    # highest would give its number to another row.
    with write_lock_on(connection, commit=True):
        return connection.execute(
            "delete from embeddings_queue where seq_id in"
            " (select seq_id from embeddings_queue where topic = ? and seq_id < ? order by seq_id limit ?)",
            (topic, before, _ROWS_AT_ONCE),
        ).rowcount


def set_positions(data_dir: Path, positions: Mapping[str, int], *, keep: bool) -> None:
    """Set the positions of a restored database to those of its index files; 0 means that there are no files.

    Chroma replays the rest of the log when it first reads a collection. `keep` False makes Chroma purge its log
    again, for data that no gateway will trim. May be repeated.
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
