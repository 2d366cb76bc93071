"""A page of collections says what is known of each, and costs what its own collections cost."""

import os
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

import pytest

from gateway.chroma import index_health
from gateway.chroma.disk import DATABASE, LEVEL0
from gateway.chroma.index_health import IndexHealth
from gateway.chroma.listing import IndexState, Name, Wanted, read_databases, read_one, read_page
from gateway.chroma.segments import read_segments
from gateway.errors import GatewayError
from tests.unit.chroma.conftest import DIMENSION, RECORDS


def segment_of(data_dir: Path, name: str) -> str:
    with closing(sqlite3.connect(data_dir / DATABASE)) as database:
        return next(each.id for each in read_segments(database) if each.collection == name)


def add_collections(data_dir: Path, number: int) -> None:
    """More of them in the database alone, which is all that a list reads."""
    with closing(sqlite3.connect(data_dir / DATABASE)) as database:
        (home,) = database.execute("select id from databases").fetchone()
        for each in range(number):
            id_ = str(uuid.uuid4())
            database.execute(
                "insert into collections (id, name, database_id, config_json_str) values (?, ?, ?, '{}')",
                (id_, f"many-{each:05}", home),
            )
            for scope, kind in (("VECTOR", "vector/hnsw-local-persisted"), ("METADATA", "metadata/sqlite")):
                database.execute(
                    "insert into segments (id, type, scope, collection) values (?, ?, ?, ?)",
                    (str(uuid.uuid4()), f"urn:chroma:segment/{kind}", scope, id_),
                )
        database.commit()


def test_a_collection_is_described(data_dir: Path) -> None:
    """Records, dimension and distance of the database; the size of the files, and what of the log is not in them."""
    synced, unsynced = read_page(data_dir, Wanted(), 10).collections
    assert (synced.segment.collection, synced.records, synced.segment.dimension) == ("synced", RECORDS, DIMENSION)
    assert (synced.segment.space, synced.index_state, synced.log_backlog) == ("l2", IndexState.CHANGED, 0)
    index = data_dir / synced.segment.id
    assert synced.index_bytes == sum(file.stat().st_size for file in index.iterdir())
    assert (unsynced.records, unsynced.index_state) == (1, IndexState.EMPTY)
    assert unsynced.log_backlog == 1
    assert read_one(data_dir, synced.segment.collection_id) == synced
    assert read_one(data_dir, str(uuid.uuid4())) is None


def test_an_index_is_sound_until_its_files_change(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list reads no index file: it compares them with what they were when they were last read."""
    monkeypatch.setattr(index_health, "_SETTLED_NS", 0)  # else nothing is remembered of files written just now
    segment = segment_of(data_dir, "synced")
    (data_dir / ".gateway").mkdir(exist_ok=True)
    health = IndexHealth(data_dir)
    assert not health.unsound([segment])
    health.save()
    assert read_page(data_dir, Wanted(text="synced"), 1).collections[0].index_state is IndexState.SOUND
    os.utime(data_dir / segment / LEVEL0)
    assert read_page(data_dir, Wanted(text="synced"), 1).collections[0].index_state is IndexState.CHANGED


def test_pages_have_every_collection_once(data_dir: Path) -> None:
    """In the order of their names, also where collections come and go between the pages."""
    add_collections(data_dir, 10)
    page = read_page(data_dir, Wanted(), 5)
    assert (page.total, page.last) == (12, Name("default_tenant", "default_database", "many-00004"))
    assert page.last is not None
    rest = read_page(data_dir, Wanted(after=page.last), 100)
    found = [each.segment.collection for each in page.collections + rest.collections]
    assert found == [*(f"many-{each:05}" for each in range(10)), "synced", "unsynced"]
    assert (rest.total, rest.last) == (12, None)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(text="SYNC"), ["synced", "unsynced"]),
        (Wanted(text="%"), []),
        (Wanted(tenant="default_tenant", database="default_database", text="un"), ["unsynced"]),
        (Wanted(tenant="acme"), []),
        (Wanted(database="web"), []),
    ],
)
def test_a_list_is_filtered(data_dir: Path, wanted: Wanted, found: list[str]) -> None:
    page = read_page(data_dir, wanted, 10)
    assert ([each.segment.collection for each in page.collections], page.total) == (found, len(found))


def test_many_collections_are_read_in_linear_time(data_dir: Path) -> None:
    """SQLite's work for all of them is counted, not timed: a lookup for each collection would look at each segment."""
    add_collections(data_dir, 2000)
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    with closing(sqlite3.connect(data_dir / DATABASE)) as database:
        database.set_progress_handler(count, 1000)
        assert len(read_segments(database)) == 2002
    assert steps < 1000


def test_databases_are_listed(data_dir: Path) -> None:
    """Also one without a collection."""
    with closing(sqlite3.connect(data_dir / DATABASE)) as database:
        database.execute("insert into databases (id, name, tenant_id) values ('x', 'a', 'default_tenant')")
        database.commit()
    first, has_more = read_databases(data_dir, ("", ""), 1)
    assert (first, has_more) == ([("default_tenant", "a", 0)], True)
    assert read_databases(data_dir, ("default_tenant", "a"), 1) == (
        [("default_tenant", "default_database", 2)],
        False,
    )


def test_a_database_that_cannot_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"nonsense" * 1000)
    with pytest.raises(GatewayError):
        read_page(tmp_path, Wanted(), 1)
