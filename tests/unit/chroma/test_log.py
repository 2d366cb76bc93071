"""Chroma's log is kept, trimmed no further than every index has it, and set back together with its indexes."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from chromadb.api.models.Collection import Collection

from gateway.chroma import log
from gateway.chroma.database import ReadTransaction, prepare
from gateway.chroma.disk import DATABASE
from gateway.chroma.log import count_log, keep_log, rows_after, set_positions, synced_to, trim_log, whole_after
from tests.bare_chroma import bare_chroma

DIMENSION = 4
CONFIG = {"hnsw": {"sync_threshold": 10, "batch_size": 5}}


def rows(data_dir: Path) -> dict[str, list[int]]:
    """Sequence ids in the log by collection."""
    found: dict[str, list[int]] = {}
    with closing(sqlite3.connect(data_dir / DATABASE)) as database:
        for topic, seq_id in database.execute("select topic, seq_id from embeddings_queue order by seq_id"):
            found.setdefault(topic.rpartition("/")[2], []).append(seq_id)
    return found


def vectors(count: int, seed: int = 0) -> list[list[float]]:
    return np.random.default_rng(seed).random((count, DIMENSION), np.float32).tolist()


def add(collection: Collection, first: int, count: int) -> None:
    for start in range(first, first + count, 5):
        ids = [str(number) for number in range(start, start + 5)]
        collection.upsert(ids=ids, embeddings=vectors(5, start))
    collection.count()


class Kept:
    """A data directory whose log was kept from the first record on, with the ids of its collections by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        prepare(path)
        with bare_chroma(path) as chroma:
            client = chroma.client()
            keep_log(path)
            self.collections = {
                name: client.create_collection(name, embedding_function=None, configuration=CONFIG)
                for name in ("one", "two")
            }
            self.ids = {name: str(each.id) for name, each in self.collections.items()}
            add(self.collections["one"], 0, 50)
            add(self.collections["two"], 0, 25)
        with closing(sqlite3.connect(path / DATABASE)) as database:
            query = "select c.name, s.id from segments s join collections c on c.id = s.collection where scope='VECTOR'"
            self.segments = dict(database.execute(query).fetchall())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def kept(made: Kept, tmp_path: Path) -> Path:
    """A copy for one test."""
    shutil.copytree(made.path, tmp_path / "data")
    return tmp_path / "data"


# ---------------------------------------------------------------------- keeping


def test_chroma_keeps_its_log_when_configured(kept: Path, made: Kept) -> None:
    """Every row of both collections exists, although both were synced."""
    assert [len(each) for each in rows(kept).values()] == [50, 25]
    assert count_log(kept) == 75
    assert all(seq_id > 0 for seq_id in synced_to(kept).values())


def test_a_log_is_whole_from_the_moment_it_is_kept(data_dir: Path) -> None:
    """It is whole after the last sync. Earlier rows are gone."""
    keep_log(data_dir)
    pinned = ReadTransaction(data_dir)
    assert pinned.keeps_log
    assert whole_after(pinned, synced_to(data_dir)) == set(synced_to(data_dir))
    pinned.close()
    assert count_log(data_dir) < 400


def test_chroma_keeps_the_row_at_the_position_of_an_index(data_dir: Path) -> None:
    """Also while it purges. So the row proves that no later one is missing."""
    pinned = ReadTransaction(data_dir)
    synced = {each: seq_id for each, seq_id in synced_to(data_dir).items() if seq_id}
    assert whole_after(pinned, synced) == set(synced)
    assert whole_after(pinned, dict.fromkeys(synced, 1)) == set()
    pinned.close()


# ---------------------------------------------------------------------- trimming


def test_trim_deletes_what_every_index_has_and_keeps_the_rest(kept: Path, made: Kept) -> None:
    """The row at the position of each collection stays, and so do all after it."""
    before = rows(kept)
    positions = {made.segments["one"]: before[made.ids["one"]][19], made.segments["two"]: 0}
    assert trim_log(kept, positions) == 19
    after = rows(kept)
    assert after[made.ids["one"]] == before[made.ids["one"]][19:]
    assert after[made.ids["two"]] == before[made.ids["two"]]
    assert trim_log(kept, positions) == 0


def test_trim_never_goes_past_what_chroma_itself_has_synced(kept: Path, made: Kept) -> None:
    """A position ahead of the database is ignored."""
    synced, before = synced_to(kept), rows(kept)
    trim_log(kept, dict.fromkeys(synced, 1 << 40))
    for name, segment in made.segments.items():
        metadata = before[made.ids[name]][-1]
        assert rows(kept)[made.ids[name]][0] <= min(synced[segment], metadata)
        assert synced[segment] in rows(kept)[made.ids[name]]


def test_the_highest_row_is_never_deleted(kept: Path, made: Kept) -> None:
    """SQLite numbers the next row one above the highest, and no number may be used twice."""
    highest = max(seq_id for each in rows(kept).values() for seq_id in each)
    with closing(sqlite3.connect(kept / DATABASE)) as database, database:
        database.execute("update max_seq_id set seq_id = ?", (highest,))
    trim_log(kept, dict.fromkeys(made.segments.values(), highest))
    remaining = rows(kept)
    assert max(seq_id for each in remaining.values() for seq_id in each) == highest
    with bare_chroma(kept) as chroma:
        add(chroma.client().get_collection("one", embedding_function=None), 1000, 5)
    assert min(rows(kept)[made.ids["one"]][-5:]) == highest + 1


def test_trim_goes_in_small_steps_and_deletes_all(kept: Path, made: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chroma can write between the steps."""
    monkeypatch.setattr(log, "_ROWS_AT_ONCE", 7)
    position = rows(kept)[made.ids["one"]][39]
    assert trim_log(kept, {made.segments["one"]: position}) == 39


def test_nothing_is_trimmed_while_chroma_purges_its_log(data_dir: Path) -> None:
    """Chroma deletes rows itself."""
    before = rows(data_dir)
    assert trim_log(data_dir, synced_to(data_dir)) == 0
    assert rows(data_dir) == before


def test_rows_after_counts_what_would_be_replayed(kept: Path, made: Kept) -> None:
    """By segment, from its own collection alone."""
    found = rows(kept)
    pinned = ReadTransaction(kept)
    positions = {made.segments["one"]: found[made.ids["one"]][9]}
    assert rows_after(pinned, positions) == {made.segments["one"]: 40, made.segments["two"]: 25}
    pinned.close()


def test_a_log_is_whole_after_a_position_while_its_row_exists(kept: Path, made: Kept) -> None:
    """After trimming past it, it is not. A segment that does not exist has no log."""
    one = made.segments["one"]
    found = rows(kept)[made.ids["one"]]
    trim_log(kept, {one: found[19]})
    pinned = ReadTransaction(kept)
    assert whole_after(pinned, {one: found[19]}) == {one}
    assert whole_after(pinned, {one: found[30]}) == {one}
    assert whole_after(pinned, {one: found[18]}) == set()
    assert whole_after(pinned, {"00000000-0000-0000-0000-000000000000": found[30]}) == set()
    # A row of another collection is none of its own.
    assert whole_after(pinned, {one: rows(kept)[made.ids["two"]][0]}) == set()
    pinned.close()


# ---------------------------------------------------------------------- putting back


@pytest.mark.parametrize("keep", [True, False])
def test_a_missing_index_is_rebuilt_from_the_log(kept: Path, made: Kept, keep: bool) -> None:
    """With position 0 and without files, Chroma finds every record by its own vector."""
    for segment in made.segments.values():
        shutil.rmtree(kept / segment)
    set_positions(kept, dict.fromkeys(made.segments.values(), 0), keep=keep)
    assert synced_to(kept) == {}
    with bare_chroma(kept) as chroma:
        for name, count in (("one", 50), ("two", 25)):
            collection = chroma.client().get_collection(name, embedding_function=None)
            held = collection.get(include=["embeddings"])
            assert len(held["ids"]) == count
            nearest = collection.query(query_embeddings=held["embeddings"], n_results=1)["ids"]
            assert nearest == [[each] for each in held["ids"]]


def test_set_positions_changes_only_vector_segments(kept: Path, made: Kept) -> None:
    """The positions of METADATA segments stay, because their data are in the database."""
    query = "select m.segment_id, m.seq_id from max_seq_id m join segments s on s.id = m.segment_id where scope <> ?"
    with closing(sqlite3.connect(kept / DATABASE)) as database:
        before = database.execute(query, ("VECTOR",)).fetchall()
    set_positions(kept, {made.segments["one"]: 17, made.segments["two"]: 0}, keep=True)
    assert synced_to(kept) == {made.segments["one"]: 17}
    with closing(sqlite3.connect(kept / DATABASE)) as database:
        assert database.execute(query, ("VECTOR",)).fetchall() == before
    assert before


@pytest.mark.parametrize("keep", [True, False])
def test_a_chroma_without_a_gateway_purges_its_log(kept: Path, made: Kept, keep: bool) -> None:
    """No gateway would trim it."""
    set_positions(kept, synced_to(kept), keep=keep)
    with closing(sqlite3.connect(kept / DATABASE)) as database:
        (config,) = database.execute("select config_json_str from embeddings_queue_config").fetchone()
    assert json.loads(config)["automatically_purge"] is (not keep)
