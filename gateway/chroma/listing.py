"""Collections and databases in pages, with what the database and the index files say of each. All of it blocks.

A page costs what its own collections cost, however many there are: records are counted and files are looked at for
these alone. What is counted in Chroma's log is one pass over the log, which has no index of topics.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from gateway.chroma.database import ReadTransaction, translated
from gateway.chroma.disk import DATABASE, ID_MAP, index_signatures
from gateway.chroma.index_health import IndexHealth
from gateway.chroma.segments import Segment, read_segments

_JOIN = " from collections c join databases d on d.id = c.database_id"


class IndexState(StrEnum):
    """What is known of the files of an index without reading them."""

    EMPTY = "empty"
    """Chroma has not synced it yet: the index is in its memory, and the records are in its log."""
    SOUND = "sound"
    """They are as they were when they were last read and found sound."""
    CHANGED = "changed"
    """Chroma has written them since they were last read."""


class Name(NamedTuple):
    """The full name of a collection. Collections are listed in this order."""

    tenant: str
    database: str
    collection: str


class Wanted(NamedTuple):
    """Which collections: of one tenant, of one database name, with a text in their name (in any case), after a name.

    An empty text is no restriction.
    """

    tenant: str = ""
    database: str = ""
    text: str = ""
    after: Name = Name("", "", "")


@dataclass(frozen=True, slots=True)
class ListedCollection:
    """One collection. `log_backlog`: rows of Chroma's log that the index files do not contain."""

    segment: Segment
    records: int
    index_bytes: int
    index_state: IndexState
    log_backlog: int


@dataclass(frozen=True, slots=True)
class CollectionPage:
    """Collections by tenant, database and name. `total`: how many there are, on all pages.

    `last`: the name after which the next page begins, None if there is none.
    """

    collections: list[ListedCollection]
    total: int
    last: Name | None


class ListedDatabase(NamedTuple):
    """A database, which may have no collection."""

    tenant: str
    database: str
    collections: int


def read_page(data_dir: Path, wanted: Wanted, limit: int) -> CollectionPage:
    """Return at most `limit` collections. Raises GatewayError if the database cannot be read."""
    chosen, values = _condition(wanted)
    with _reading(data_dir) as state:
        connection = state.connection
        (total,) = connection.execute(f"select count(*){_JOIN} where {chosen}", values).fetchone()
        rows = connection.execute(
            f"select c.id, d.tenant_id, d.name, c.name{_JOIN} where {chosen}"
            " and (d.tenant_id, d.name, c.name) > (?, ?, ?) order by d.tenant_id, d.name, c.name limit ?",
            [*values, *wanted.after, limit + 1],
        ).fetchall()
        last = Name(*rows[limit - 1][1:]) if len(rows) > limit else None
        return CollectionPage(_listed(data_dir, state, [row[0] for row in rows[:limit]]), total, last)


def read_one(data_dir: Path, collection_id: str) -> ListedCollection | None:
    """Return one collection by its id, None if it is gone. Raises GatewayError if the database cannot be read."""
    with _reading(data_dir) as state:
        return next(iter(_listed(data_dir, state, [collection_id])), None)


def read_databases(data_dir: Path, after: tuple[str, str], limit: int) -> tuple[list[ListedDatabase], bool]:
    """Return at most `limit` databases by tenant and name, and whether there are more; only those after a name.

    Raises GatewayError if the database cannot be read.
    """
    with _reading(data_dir) as state:
        rows = state.connection.execute(
            "select d.tenant_id, d.name, (select count(*) from collections c where c.database_id = d.id)"
            " from databases d where (d.tenant_id, d.name) > (?, ?) order by 1, 2 limit ?",
            (*after, limit + 1),
        ).fetchall()
        return [ListedDatabase(*row) for row in rows[:limit]], len(rows) > limit


@contextmanager
def _reading(data_dir: Path) -> Iterator[ReadTransaction]:
    with translated(data_dir / DATABASE), closing(ReadTransaction(data_dir)) as state:
        yield state


def _condition(wanted: Wanted) -> tuple[str, list[str]]:
    """A condition of SQL, and its values."""
    chosen = {
        "d.tenant_id = ?": wanted.tenant,
        "d.name = ?": wanted.database,
        "instr(lower(c.name), lower(?))": wanted.text,
    }
    given = {condition: value for condition, value in chosen.items() if value}
    return " and ".join(given) or "1", list(given.values())


def _listed(data_dir: Path, state: ReadTransaction, ids: Sequence[str]) -> list[ListedCollection]:
    segments, health = read_segments(state.connection, ids), IndexHealth(data_dir)
    backlogs, found = _log_backlogs(state, segments), []
    for segment in segments:
        (records,) = state.connection.execute(
            "select count(*) from embeddings where segment_id = ?", (segment.metadata_id,)
        ).fetchone()
        files = index_signatures(data_dir, [segment.id])
        found.append(
            ListedCollection(
                segment,
                records,
                sum(each.size_bytes for each in files.values()),
                _index_state(health, segment.id, files),
                backlogs.get(segment.topic, 0),
            )
        )
    return found


def _index_state(health: IndexHealth, segment_id: str, files: Collection[str]) -> IndexState:
    # Without it Chroma ignores the other files (docs/chroma-internals.md, "An index without an id map is rebuilt").
    if f"{segment_id}/{ID_MAP}" not in files:
        return IndexState.EMPTY
    return IndexState.SOUND if health.is_known_sound(segment_id) else IndexState.CHANGED


def _log_backlogs(state: ReadTransaction, segments: Sequence[Segment]) -> dict[str, int]:
    """By topic. One pass over the log, from the lowest position on."""
    positions = {segment.topic: segment.position or 0 for segment in segments}
    rows = state.connection.execute(
        "with page(topic, position) as (select key, value from json_each(?))"
        " select q.topic, count(*) from embeddings_queue q join page p on p.topic = q.topic"
        " where q.seq_id > ? and q.seq_id > p.position group by q.topic",
        (json.dumps(positions), min(positions.values(), default=0)),
    )
    return dict(rows.fetchall())
