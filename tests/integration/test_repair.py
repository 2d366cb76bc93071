"""Every file of an index, every damage, and what else there is: what was anywhere comes back bit for bit."""

import asyncio
import os
import shutil
import sqlite3
import struct
import uuid
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from chromadb.api import ClientAPI

from gateway.chroma.database import open_database
from gateway.chroma.disk import DATABASE, HEADER, ID_MAP, LENGTH, LEVEL0, LINK_LISTS
from gateway.chroma.relog import write_to_log
from gateway.chroma.repair import IndexCopy, Repair, Way, at_risk, repair_segment
from gateway.chroma.segments import read_segments
from tests.bare_chroma import bare_chroma

DIMENSION, NEIGHBORS = 24, 16
VECTOR, LABEL = 4 + 8 * NEIGHBORS, 4 + 8 * NEIGHBORS + 4 * DIMENSION
ELEMENT = LABEL + 8
# 80 records, then 20 of them changed, 10 deleted and 50 added: both are whole syncs. At last 6 that no index has.
FIRST, CHANGED, DELETED, ADDED, LATER, SYNC = 80, 20, 10, 50, 6, 80


def _missing(path: Path, _older: Path) -> None:
    path.unlink()


def _empty(path: Path, _older: Path) -> None:
    os.truncate(path, 0)


def _cut_early(path: Path, _older: Path) -> None:
    os.truncate(path, path.stat().st_size // 10 + 3)


def _cut_halfway(path: Path, _older: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _cut_late(path: Path, _older: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, min(size - 1, LABELS * ELEMENT - ELEMENT // 2) if path.name == LEVEL0 else size - 5)


def _zeroed(path: Path, _older: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _random(path: Path, _older: Path) -> None:
    path.write_bytes(np.random.default_rng(1).bytes(path.stat().st_size))


def _older(path: Path, older: Path) -> None:
    shutil.copyfile(older / path.name, path)


def _hole_inside(path: Path, _older: Path) -> None:
    """A page, or in a smaller file a third of it."""
    whole = path.read_bytes()
    start, length = (8192, 4096) if len(whole) > 16384 else (len(whole) // 3, len(whole) // 3)
    with path.open("wb") as file:
        file.write(whole[:start])
        file.seek(start + length)
        file.write(whole[start + length :])


def _hole_at_the_end(path: Path, _older: Path) -> None:
    """Its last quarter is a hole, and gigabytes after it are."""
    whole = path.read_bytes()
    os.truncate(path, 3 * min(len(whole), LABELS * ELEMENT) // 4)
    os.truncate(path, 300 << 30)


LABELS = FIRST + ADDED
FILES = (HEADER, LEVEL0, LENGTH, LINK_LISTS, ID_MAP)
DAMAGES: tuple[Callable[[Path, Path], None], ...] = (
    _missing,
    _empty,
    _cut_early,
    _cut_halfway,
    _cut_late,
    _zeroed,
    _random,
    _older,
    _hole_inside,
    _hole_at_the_end,
)
SOURCES = ("copy", "log", "neither")


@dataclass
class Case:
    """One collection of the matrix, what it held, and how it was damaged."""

    name: str
    file: str
    damage: Callable[[Path, Path], None]
    source: str
    space: str
    segment: str = ""
    position: int = 0
    older_position: int = 0
    held: dict[str, tuple[npt.NDArray[np.float32], str, Any]] = field(default_factory=dict)
    survives: set[str] = field(default_factory=set)
    repair: Repair | None = None


def ids(start: int, count: int) -> list[str]:
    return [f"record.{number}" for number in range(start, start + count)]


def vectors(seed: int, count: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)


def fill(client: ClientAPI, case: Case, seed: int, phase: int) -> None:
    collection = client.get_collection(case.name, embedding_function=None)
    if phase == 1:
        names = ids(0, FIRST)
        collection.add(
            ids=names,
            embeddings=vectors(seed, FIRST),
            documents=names,
            metadatas=[{"number": number} for number in range(FIRST)],
        )
        return
    collection.upsert(ids=ids(10, CHANGED), embeddings=vectors(seed + 1, CHANGED))
    collection.delete(ids=ids(40, DELETED))
    names = ids(FIRST, ADDED)
    collection.add(ids=names, embeddings=vectors(seed + 2, ADDED), documents=names)
    names = ids(FIRST + ADDED, LATER)
    collection.upsert(ids=names, embeddings=vectors(seed + 3, LATER), documents=names)


def held_by(client: ClientAPI, name: str, wanted: list[str] | None = None) -> dict[str, tuple[Any, str, Any]]:
    got = client.get_collection(name, embedding_function=None).get(
        ids=wanted, include=["embeddings", "documents", "metadatas"]
    )
    return dict(zip(got["ids"], zip(got["embeddings"], got["documents"], got["metadatas"], strict=True), strict=True))


def elements(index: Path) -> dict[int, bytes]:
    """Vector and label of every element, by label; read without the project's own code."""
    found: dict[int, bytes] = {}
    if not (index / LEVEL0).exists():
        return found
    with (index / LEVEL0).open("rb") as file:
        raw = file.read(LABELS * ELEMENT)
    for start in range(0, len(raw) - ELEMENT + 1, ELEMENT):
        part = raw[start + VECTOR : start + ELEMENT]
        found[struct.unpack("<Q", part[-8:])[0]] = part
    return found


def labels_of(index: Path) -> dict[str, int]:
    import pickle

    found: dict[str, int] = pickle.loads((index / ID_MAP).read_bytes())["id_to_label"]
    return found


class Matrix:
    """A data directory with a collection for each case; damaged, repaired, and what a bare Chroma then says."""

    def __init__(self, path: Path, older: Path) -> None:
        self.path, self.older = path, older
        self.cases = [
            Case(f"{source}-{file.partition('.')[0]}-{damage.__name__[1:]}", file, damage, source, space)
            for number, (file, damage, source) in enumerate(
                (file, damage, source) for file in FILES for damage in DAMAGES for source in SOURCES
            )
            for space in (("l2", "cosine")[number % 2 if file != LENGTH else 1],)
        ]
        self._write()
        self._damage_all()
        for case in self.cases:
            case.repair = repair_segment(path, case.segment, self._copies(case))
        with bare_chroma(path) as chroma:
            client = chroma.client()
            self.got = {case.name: self._look(client, case) for case in self.cases}

    def _damage_all(self) -> None:
        self._damage()

    def _copies(self, case: Case) -> list[IndexCopy]:
        return [IndexCopy(self.older / case.segment, case.older_position)] if case.source == "copy" else []

    def _write(self) -> None:
        """Let Chroma write one collection for each space; the others are copies, row by row, in the database."""
        templates = {space: Case(f"template-{space}", HEADER, _missing, "log", space) for space in ("l2", "cosine")}
        with bare_chroma(self.path) as chroma:
            client = chroma.client()
            with closing(sqlite3.connect(self.path / DATABASE, timeout=30)) as database, database:
                keep = '{"automatically_purge": false, "_type": "EmbeddingsQueueConfigurationInternal"}'
                database.execute("insert or replace into embeddings_queue_config values (1, ?)", (keep,))
            for seed, case in enumerate(templates.values()):
                configuration = {"hnsw": {"space": case.space, "sync_threshold": SYNC, "batch_size": 10}}
                client.create_collection(case.name, embedding_function=None, configuration=configuration)
                fill(client, case, 10 * seed, 1)
            self._note(templates, "older_position")
            for case in templates.values():
                shutil.copytree(self.path / case.segment, self.older / case.segment)
            for seed, case in enumerate(templates.values()):
                fill(client, case, 10 * seed, 2)
                case.held = held_by(client, case.name)
            self._note(templates, "position")
        with closing(sqlite3.connect(self.path / DATABASE)) as database, database:
            for number, case in enumerate(self.cases, 1):
                self._copy(database, templates[case.space], case, 1000 * number)

    def _note(self, templates: dict[str, Case], name: str) -> None:
        with closing(sqlite3.connect(self.path / DATABASE, timeout=30)) as database:
            rows = database.execute(
                "select c.name, s.id, m.seq_id from segments s join collections c on c.id = s.collection"
                " join max_seq_id m on m.segment_id = s.id where s.scope = 'VECTOR'"
            ).fetchall()
        found = {collection: (segment, position) for collection, segment, position in rows}
        for case in templates.values():
            case.segment, position = found[case.name]
            setattr(case, name, position)

    def _copy(self, database: sqlite3.Connection, template: Case, case: Case, by: int) -> None:
        collection, segments = str(uuid.uuid4()), {"VECTOR": str(uuid.uuid4()), "METADATA": str(uuid.uuid4())}
        case.segment, case.held = segments["VECTOR"], template.held
        case.position, case.older_position = template.position + by, template.older_position + by
        shutil.copytree(self.path / template.segment, self.path / case.segment)
        shutil.copytree(self.older / template.segment, self.older / case.segment)
        (source,) = database.execute("select collection from segments where id = ?", (template.segment,)).fetchone()

        def copy(table: str, where: str, change: dict[str, tuple[str, Any]], *values: Any) -> None:
            columns = [row[1] for row in database.execute(f"pragma table_info({table})")]
            chosen = ", ".join(change[each][0] if each in change else each for each in columns)
            given = [change[each][1] for each in columns if each in change]
            database.execute(f"insert into {table} select {chosen} from {table} where {where}", (*given, *values))

        copy("collections", "id = ?", {"id": ("?", collection), "name": ("?", case.name)}, source)
        for scope, segment in segments.items():
            (old,) = database.execute(
                "select id from segments where collection = ? and scope = ?", (source, scope)
            ).fetchone()
            copy("segments", "id = ?", {"id": ("?", segment), "collection": ("?", collection)}, old)
            shifted = {"segment_id": ("?", segment), "seq_id": ("seq_id + ?", by)}
            copy("max_seq_id", "segment_id = ?", shifted, old)
            copy("embeddings", "segment_id = ?", {"id": ("id + ?", by), **shifted}, old)
            of_segment = "id in (select id from embeddings where segment_id = ?)"
            copy("embedding_metadata", of_segment, {"id": ("id + ?", by)}, old)
        topic = "persistent://default/default/"
        moved = {"seq_id": ("seq_id + ?", by), "topic": ("?", topic + collection)}
        copy("embeddings_queue", "topic = ?", moved, topic + source)

    def _damage(self) -> None:
        with closing(sqlite3.connect(self.path / DATABASE)) as database, database:
            for case in self.cases:
                index = self.path / case.segment
                whole, labels = elements(index), labels_of(index)
                assert set(labels) == set(ids(0, LABELS)) - set(ids(40, DELETED)), "the index is not what it should be"
                before = {"copy": case.older_position, "log": 0, "neither": case.position}[case.source]
                database.execute(
                    "delete from embeddings_queue where seq_id < ? and topic like"
                    " '%' || (select collection from segments where id = ?)",
                    (before, case.segment),
                )
                case.damage(index / case.file, self.older / case.segment)
                left = elements(index) if case.file == LEVEL0 else whole
                case.survives = {each for each, label in labels.items() if left.get(label) == whole[label]}
                rows = database.execute(
                    "select id from embeddings_queue where vector is not null and topic like"
                    " '%' || (select collection from segments where id = ?)",
                    (case.segment,),
                )
                case.survives |= {each for (each,) in rows}

    def _look(self, client: ClientAPI, case: Case) -> dict[str, tuple[Any, str, Any]]:
        assert case.repair is not None
        wanted = sorted(case.held.keys() - set(case.repair.lost_ids))
        collection = client.get_collection(case.name, embedding_function=None)
        if wanted:
            nearest = collection.query(query_embeddings=case.held[wanted[0]][0], n_results=3, include=["distances"])
            assert len(nearest["ids"][0]) == min(3, len(wanted))
        assert collection.count() == len(case.held)
        return held_by(client, case.name, wanted) if wanted else {}


class RunningMatrix(Matrix):
    """The same, while a Chroma runs that has read every collection. What a repair would lose is asked of it first."""

    def _damage_all(self) -> None:
        with bare_chroma(self.path) as chroma:
            client = chroma.client()
            for case in self.cases:
                assert held_by(client, case.name).keys() == case.held.keys()
            self._damage()
            with closing(open_database(self.path / DATABASE)) as connection:
                segments = {segment.id: segment for segment in read_segments(connection)}
            for case in self.cases:
                ids = at_risk(self.path, case.segment, self._copies(case))
                lost = asyncio.run(write_to_log(chroma.port, segments[case.segment], ids, nullcontext))
                assert lost == [], case.name


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("older"))


@pytest.mark.soak
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda each: each.__name__[1:])
@pytest.mark.parametrize("file", FILES)
def test_what_was_anywhere_comes_back(
    matrix: Matrix, file: str, damage: Callable[[Path, Path], None], source: str
) -> None:
    """Same ids, documents, metadatas and embeddings, bit for bit; else exactly the lost ids are named."""
    (case,) = [each for each in matrix.cases if (each.file, each.damage, each.source) == (file, damage, source)]
    repair, got = case.repair, matrix.got[case.name]
    assert repair is not None
    assert repair.after.is_sound or {each.code for each in repair.after.problems} == {"records-without-vectors"}
    assert set(repair.after.missing_ids) == set(repair.lost_ids)
    assert set(repair.lost_ids) == (set() if source != "neither" else case.held.keys() - _named_or_there(case))
    different = {
        each
        for each, (embedding, *rest) in got.items()
        if not np.array_equal(embedding, case.held[each][0]) or rest != list(case.held[each][1:])
    }
    assert different <= set(repair.doubtful_ids) | set(repair.unscaled_ids)
    if file != LEVEL0 or source != "neither" or damage is not _older:
        assert not repair.doubtful_ids
    if file != LENGTH or source != "neither":
        assert not repair.unscaled_ids
    if source == "neither" and file == ID_MAP:
        assert repair.way is Way.ID_MAP
    if source == "log":
        assert repair.way in (Way.LOG, Way.NONE)
    if source == "copy":
        assert repair.way in (Way.COPY, Way.NONE)


def is_same(case: Case, got: dict[str, Any]) -> bool:
    """Whether everything is as it was. For cosine Chroma divides by the length again, and the last bit may change."""
    equal = np.array_equal if case.space == "l2" else partial(np.allclose, rtol=1e-6, atol=0)
    return got.keys() == case.held.keys() and all(
        equal(embedding, case.held[each][0]) and rest == list(case.held[each][1:])
        for each, (embedding, *rest) in got.items()
    )


@pytest.mark.soak
def test_while_chroma_runs_nothing_is_lost(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is damaged, and whatever else there is: its memory has it."""
    matrix = RunningMatrix(tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("older"))
    different = [case.name for case in matrix.cases if not is_same(case, matrix.got[case.name])]
    unsound = [case.name for case in matrix.cases if case.repair and not case.repair.after.is_sound]
    assert (different, unsound) == ([], [])


def _named_or_there(case: Case) -> set[str]:
    assert case.repair is not None
    return case.survives | set(case.repair.doubtful_ids)


def _older_with_remains(path: Path, older: Path) -> None:
    """An older file with the newest element beyond its end, as the memory may have it that Chroma writes from."""
    newest = max(labels_of(path.parent).values())
    with path.open("rb") as file:
        raw = file.read(LABELS * ELEMENT)
    start = next(
        at for at in range(0, len(raw), ELEMENT) if raw[at + LABEL : at + ELEMENT] == struct.pack("<Q", newest)
    )
    shutil.copyfile(older / path.name, path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // ELEMENT * ELEMENT - ELEMENT)
        file.write(raw[start : start + ELEMENT])


def test_an_older_file_is_known_by_what_it_holds_up_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by what lies beyond it: else older vectors would be taken for those of now, and nothing would say so."""
    monkeypatch.setattr(f"{__name__}.FILES", (LEVEL0,))
    monkeypatch.setattr(f"{__name__}.DAMAGES", (_older_with_remains,))
    (case,) = [each for each in Matrix(tmp_path / "data", tmp_path / "older").cases if each.source == "neither"]
    assert case.repair is not None
    changed = set(ids(10, CHANGED))
    assert changed <= set(case.repair.doubtful_ids) | set(case.repair.lost_ids)
    assert set(case.repair.lost_ids) == case.held.keys() - _named_or_there(case)


@pytest.mark.soak
def test_most_of_the_matrix_was_damage(matrix: Matrix) -> None:
    """A damage that is none proves nothing: nearly every case was repaired."""
    untouched = [case.name for case in matrix.cases if case.repair and case.repair.way is Way.NONE]
    assert len(untouched) <= 6, untouched


@pytest.mark.parametrize("space", ["l2", "cosine"])
def test_an_update_in_the_log_is_enough_for_a_record(tmp_path: Path, space: str) -> None:
    """Of a record whose first row is gone, and its element too: Chroma alone would ignore the update."""
    with bare_chroma(tmp_path) as chroma:
        configuration: Any = {"hnsw": {"space": space, "sync_threshold": 50, "batch_size": 10}}
        collection = chroma.client().create_collection("one", embedding_function=None, configuration=configuration)
        collection.add(ids=ids(0, 50), embeddings=vectors(0, 50), documents=ids(0, 50))
        collection.update(ids=ids(3, 2), embeddings=vectors(1, 2))
        held = held_by(chroma.client(), "one", ids(3, 2))
        (index,) = (path.parent for path in tmp_path.glob(f"*/{LEVEL0}"))
    (index / LEVEL0).unlink()
    repair = repair_segment(tmp_path, index.name)
    assert repair.way is Way.SALVAGE
    # The row at the position is never purged, and so the last of the fifty is there too.
    assert set(repair.lost_ids) == set(ids(0, 49)) - set(ids(3, 2))
    with bare_chroma(tmp_path) as chroma:
        got = held_by(chroma.client(), "one", ids(3, 2))
    assert all(np.array_equal(got[each][0], held[each][0]) for each in held)


def test_a_repair_may_be_cut_short_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after the position goes back, and before the directories are exchanged: the next one loses nothing."""
    with bare_chroma(tmp_path) as chroma:
        configuration: Any = {"hnsw": {"sync_threshold": 50, "batch_size": 10}}
        collection = chroma.client().create_collection("one", embedding_function=None, configuration=configuration)
        collection.add(ids=ids(0, 50), embeddings=vectors(0, 50), documents=ids(0, 50))
        held = held_by(chroma.client(), "one")
        (index,) = (path.parent for path in tmp_path.glob(f"*/{LEVEL0}"))
    (index / HEADER).write_bytes(b"")

    class Cut(Exception):
        pass

    def cut(*_: Any) -> None:
        raise Cut

    for step in ("build_index", "sync_files", "_set_position", "_exchange", "sync_directory"):
        with monkeypatch.context() as patch:
            patch.setattr(f"gateway.chroma.repair.{step}", cut)
            with pytest.raises(Cut):
                repair_segment(tmp_path, index.name)
    repair = repair_segment(tmp_path, index.name)
    assert repair.after.is_sound
    assert repair.lost_ids == ()
    with bare_chroma(tmp_path) as chroma:
        got = held_by(chroma.client(), "one")
    assert got.keys() == held.keys()
    assert all(np.array_equal(got[each][0], held[each][0]) for each in held)


@pytest.mark.parametrize("file", [HEADER, ID_MAP])
def test_a_repaired_index_has_the_owner_and_the_mode_of_the_old_one(tmp_path: Path, file: str) -> None:
    """Whoever repairs it, Chroma can read and write it as before."""
    with bare_chroma(tmp_path) as chroma:
        configuration: Any = {"hnsw": {"sync_threshold": 50, "batch_size": 10}}
        collection = chroma.client().create_collection("one", embedding_function=None, configuration=configuration)
        collection.add(ids=ids(0, 50), embeddings=vectors(0, 50))
        (index,) = (path.parent for path in tmp_path.glob(f"*/{LEVEL0}"))
    owner = 12345 if os.geteuid() == 0 else os.geteuid()
    paths = [tmp_path / DATABASE, index, *index.iterdir()]
    for path in paths:
        os.chown(path, owner, -1)
        path.chmod(0o750 if path == index else 0o640)
    os.truncate(index / file, 20)
    repair = repair_segment(tmp_path, index.name)
    assert repair.way is (Way.ID_MAP if file == ID_MAP else Way.SALVAGE)
    assert {path.stat().st_uid for path in (index, *index.iterdir())} == {owner}
    assert {path.stat().st_mode & 0o777 for path in index.iterdir()} == {0o640}
    assert index.stat().st_mode & 0o777 == 0o750
