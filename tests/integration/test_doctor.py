"""`chroma-gateway doctor` on real directories of several Chromas; a bare Chroma has the last word."""

import json
import os
import shutil
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from gateway.chroma.disk import DATABASE, HEADER, ID_MAP, LEVEL0, LINK_LISTS
from gateway.cli.main import application
from gateway.errors import ConfigError
from tests.bare_chroma import bare_chroma

DATA = Path(__file__).parents[1] / "data"
ORPHAN = "11111111-2222-4333-8444-555555555555"


def doctor(*arguments: str | Path) -> Result:
    return CliRunner().invoke(application(["doctor"]), ["doctor", *map(str, arguments)])


def examined(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    result = doctor("--json", *arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    found: dict[str, Any] = json.loads(result.stdout)
    return result.exit_code, found


def codes(found: dict[str, Any], severity: str = "error") -> set[str]:
    return {each["code"] for each in found["findings"] if each["severity"] == severity}


def records(path: Path) -> dict[str, dict[str, tuple[bytes, str, Any]]]:
    """Everything that a bare Chroma has there."""
    held = {}
    with bare_chroma(path) as chroma:
        client = chroma.client()
        for listed in client.list_collections():
            collection = client.get_collection(listed.name, embedding_function=None)
            got = collection.get(include=["embeddings", "documents", "metadatas"])
            values = zip(
                [each.tobytes() for each in got["embeddings"]], got["documents"], got["metadatas"], strict=True
            )
            held[listed.name] = dict(zip(got["ids"], values, strict=True))
            if got["ids"]:
                nearest = collection.query(query_embeddings=got["embeddings"], n_results=1)["ids"]
                assert len(nearest) == len(got["ids"])
    return held


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two synced collections and one with a log alone, by the installed Chroma."""
    path = tmp_path_factory.mktemp("written")
    random = np.random.default_rng(0)
    with bare_chroma(path) as chroma:
        client = chroma.client()
        for name, space in (("first", "l2"), ("second", "cosine"), ("unsynced", "l2")):
            configuration = {"hnsw": {"space": space, "sync_threshold": 100 if name != "unsynced" else 1000}}
            collection = client.create_collection(name, embedding_function=None, configuration=configuration)
            for start in range(0, 250, 50):
                ids = [f"{name}.{number}" for number in range(start, start + 50)]
                collection.add(ids=ids, embeddings=random.standard_normal((50, 16)).astype("f4"), documents=ids)
    return path


@pytest.fixture
def data(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "data")
    return tmp_path / "data"


def index_of(path: Path, name: str) -> Path:
    with closing(sqlite3.connect(path / DATABASE)) as database:
        (segment,) = database.execute(
            "select s.id from segments s join collections c on c.id = s.collection"
            " where s.scope = 'VECTOR' and c.name = ?",
            (name,),
        ).fetchone()
    return path / segment


def contents(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


def test_a_sound_directory_is_called_sound_and_not_changed(data: Path) -> None:
    """No finding, exit status 0, and every byte as before."""
    before = contents(data)
    status, found = examined(data)
    assert (status, found["findings"], found["worst"]) == (0, [], None)
    assert {each["name"]: each["is_sound"] for each in found["collections"]} == dict.fromkeys(
        ("first", "second", "unsynced"), True
    )
    assert contents(data) == before
    assert "nothing is wrong" in doctor(data).stdout


def test_repair_brings_back_what_bare_chroma_cannot_read(data: Path) -> None:
    """Two torn indexes: bit for bit as before, and a copy of the torn ones is kept."""
    shutil.copytree(data, data.with_name("whole"))
    want = records(data.with_name("whole"))
    first, second = index_of(data, "first"), index_of(data, "second")
    (first / HEADER).write_bytes(bytes(100))
    os.truncate(second / LINK_LISTS, 300 << 30)
    torn = (first / LEVEL0).read_bytes()
    (data / ORPHAN).mkdir()
    (data / ORPHAN / LEVEL0).write_bytes(b"x" * 1000)
    status, found = examined(data)
    assert status == 5
    assert codes(found) == {"header-wrong", "link-lists-size"}
    assert codes(found, "note") == {"orphaned-directory"}
    backup = data.with_name("backup")
    status, found = examined(data, "--repair", "--backup", backup)
    assert (status, found["findings"]) == (0, [])
    assert [each["way"] for each in found["repair"]["collections"]] == ["salvage", "salvage"]
    assert not any(each["lost_ids"] for each in found["repair"]["collections"])
    assert (backup / first.name / LEVEL0).read_bytes() == torn
    assert (backup / second.name / LINK_LISTS).stat().st_blocks < 1000
    assert {each.name for each in backup.iterdir()} == {DATABASE, first.name, second.name, ORPHAN}
    assert not (data / ".gateway").exists()
    assert records(data) == want


def test_a_database_behind_a_link_is_not_repaired(data: Path) -> None:
    """The copy that precedes a repair would lack what SQLite keeps beside the file that the link leads to."""
    (index_of(data, "first") / HEADER).write_bytes(bytes(100))
    (data / DATABASE).rename(data.with_name(DATABASE))
    (data / DATABASE).symlink_to(data.with_name(DATABASE))
    before = contents(data)
    assert examined(data)[0] == 5
    result = doctor("--repair", "--backup", data.with_name("backup"), data)
    assert isinstance(result.exception, ConfigError)
    assert (contents(data), data.with_name("backup").exists()) == (before, False)


@pytest.mark.parametrize("version", ["0.4.24", "0.5.23"])
@pytest.mark.parametrize("damage", ["none", "header", "id map", "vectors"])
def test_directories_of_old_chromas_are_repaired_too(tmp_path: Path, version: str, damage: str) -> None:
    """Sound, or damaged in one file: what the installed bare Chroma reads after is what it read before."""
    with tarfile.open(DATA / f"chroma-{version}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    data, whole = tmp_path / "chroma_db", tmp_path / "whole"
    shutil.copytree(data, whole)
    want = records(whole)
    index = index_of(data, "synced")
    if damage == "header":
        (index / HEADER).write_bytes(bytes(100))
    elif damage == "id map":
        os.truncate(index / ID_MAP, 300)
    elif damage == "vectors":
        os.truncate(index / LEVEL0, 20 * 172)
    status, found = examined(data)
    assert status == (0 if damage == "none" else 5)
    assert "migration-pending" in codes(found, "note")
    if damage != "none":
        status, found = examined(data, "--repair", "--backup", tmp_path / "backup")
        (repair,) = found["repair"]["collections"]
        lost = set(repair["lost_ids"])
        # 0.4 never purges its log; 0.5 does, and its labels are in no order that would tell the ids.
        assert bool(lost) is (version == "0.5.23" and damage in ("id map", "vectors"))
        assert status == (5 if lost else 0)
        if lost:
            return
    assert records(data) == want


def test_a_running_chroma_is_left_alone(data: Path) -> None:
    """Its process is named, and nothing is opened."""
    with bare_chroma(data) as chroma:
        chroma.client().get_collection("first", embedding_function=None).count()
        for arguments in ([data], [data, "--repair"]):
            result = doctor(*arguments)
            assert isinstance(result.exception, ConfigError)
            assert f"process {chroma.process.pid}" in result.exception.message
            assert result.exception.exit_code == 2


def test_what_is_no_chroma_directory_is_refused(tmp_path: Path) -> None:
    """And none is made of it."""
    result = doctor(tmp_path)
    assert isinstance(result.exception, ConfigError)
    assert list(tmp_path.iterdir()) == []


def test_the_full_text_index_is_checked_and_made_anew(data: Path) -> None:
    """Searches in documents find all of them again."""
    with closing(sqlite3.connect(data / DATABASE)) as database, database:
        database.execute("delete from embedding_fulltext_search_data where id > 1 and id % 2")
    status, found = examined(data)
    assert status == 5
    assert codes(found) == {"full-text-damaged"}
    status, found = examined(data, "--repair", "--backup", data.with_name("backup"))
    assert (status, found["findings"]) == (0, [])
    with bare_chroma(data) as chroma:
        collection = chroma.client().get_collection("first", embedding_function=None)
        assert collection.get(where_document={"$contains": "first.17"})["ids"] == ["first.17"] + [
            f"first.17{digit}" for digit in range(10)
        ]


def test_a_damaged_database_is_named_and_nothing_is_tried_on_it(data: Path) -> None:
    """Pages of nonsense: an error, with what to do, and the file as it was."""
    with (data / DATABASE).open("r+b") as file:
        file.seek(3 * 4096)
        file.write(os.urandom(40 * 4096))
    before = (data / DATABASE).read_bytes()
    status, found = examined(data, "--repair")
    assert status == 5
    assert codes(found) & {"database-damaged", "database-unreadable"}
    assert "repair" not in found
    assert (data / DATABASE).read_bytes() == before


def test_a_newer_schema_and_a_kept_log_are_told(data: Path) -> None:
    """The one is an error, the other a warning with exit status 1."""
    with closing(sqlite3.connect(data / DATABASE)) as database, database:
        keep = '{"automatically_purge": false, "_type": "EmbeddingsQueueConfigurationInternal"}'
        database.execute("insert or replace into embeddings_queue_config values (1, ?)", (keep,))
        (topic,) = database.execute("select topic from embeddings_queue limit 1").fetchone()
        rows = ((-number, topic, f"old.{number}") for number in range(1, 10_100))
        database.executemany("insert into embeddings_queue (seq_id, operation, topic, id) values (?, 3, ?, ?)", rows)
    status, found = examined(data)
    assert (status, codes(found, "warning")) == (1, {"log-never-purged"})
    with closing(sqlite3.connect(data / DATABASE)) as database, database:
        columns = [row[1] for row in database.execute("pragma table_info(migrations)")]
        values = ", ".join("99999" if each == "version" else each for each in columns)
        database.execute(f"insert into migrations select {values} from migrations limit 1")
    status, found = examined(data)
    assert (status, codes(found)) == (5, {"schema-too-new"})


def test_lost_records_are_named_and_come_back_by_an_upsert(data: Path) -> None:
    """The vectors are gone for good; their documents are not, and the rest is served."""
    index = index_of(data, "first")
    os.truncate(index / LEVEL0, 50 * 204)
    status, found = examined(data, "--repair", "--backup", data.with_name("backup"))
    assert status == 5
    assert codes(found) == {"records-without-vectors"}
    (repair,) = found["repair"]["collections"]
    lost = repair["lost_ids"]
    assert len(lost) == 149  # of 200 that were synced; the last one's row is still in the log
    with bare_chroma(data) as chroma:
        collection = chroma.client().get_collection("first", embedding_function=None)
        documents = collection.get(ids=lost)["documents"]
        assert sorted(documents) == sorted(lost)
        collection.upsert(ids=lost, embeddings=[[float(number)] * 16 for number in range(149)])
        assert len(collection.get(include=["embeddings"])["embeddings"]) == 250
    assert examined(data)[0] == 0


def test_a_write_ahead_log_that_a_kill_left_is_read_and_left_alone(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has counts, and looking does not put it into the database; a large one goes there with `--repair`."""
    with closing(sqlite3.connect(data / DATABASE)) as database:
        database.execute("pragma journal_mode=wal")
    with bare_chroma(data) as chroma:
        collection = chroma.client().get_collection("unsynced", embedding_function=None)
        ids = [f"more.{number}" for number in range(100)]
        collection.upsert(ids=ids, embeddings=np.ones((100, 16)), documents=ids)
    wal = data / f"{DATABASE}-wal"
    before = contents(data)
    assert wal.stat().st_size
    status, found = examined(data)
    assert (status, found["findings"]) == (0, [])
    (unsynced,) = [each for each in found["collections"] if each["name"] == "unsynced"]
    assert unsynced["records"] == 350
    after = contents(data)
    assert {name: after[name] for name in before if not name.endswith("-shm")} == {
        name: value for name, value in before.items() if not name.endswith("-shm")
    }
    monkeypatch.setattr("gateway.chroma.doctor._LARGE_WAL_BYTES", 1)
    status, found = examined(data)
    assert (status, codes(found, "warning")) == (1, {"large-wal"})
    status, found = examined(data, "--repair", "--backup", data.with_name("backup"))
    assert (status, found["wal_bytes"]) == (0, 0)


def test_records_without_a_vector_are_deleted_on_demand(data: Path, tmp_path: Path) -> None:
    """Bare Chroma fails for the whole collection with them. Without them it serves the rest, and they are in a file."""
    index = index_of(data, "first")
    whole = records(data)["first"]
    os.truncate(index / LEVEL0, (index / LEVEL0).stat().st_size // 20)
    code, found = examined(data, "--repair")
    lost = set(found["repair"]["collections"][0]["lost_ids"])
    assert code == 5
    assert codes(found) == {"records-without-vectors"}
    assert 0 < len(lost) < len(whole)
    with pytest.raises(Exception, match="Error finding id"):
        records(data)
    code, found = examined(data, "--repair", "--drop-lost", "--backup", tmp_path / "backup")
    assert code == 0, found
    assert records(data)["first"] == {each: record for each, record in whole.items() if each not in lost}
    lines = [json.loads(line) for line in (tmp_path / "backup/lost-records.jsonl").read_text().splitlines()]
    assert {each["id"]: each["document"] for each in lines} == {each: each for each in lost}
    with bare_chroma(data) as chroma:
        collection = chroma.client().get_collection("first", embedding_function=None)
        one = max(lost, key=len)  # no other id contains it
        assert collection.get(where_document={"$contains": one})["ids"] == []
        collection.add(ids=[one], embeddings=np.ones((1, 16)), documents=[one])
        assert collection.get(where_document={"$contains": one})["ids"] == [one]
        assert collection.count() == len(whole) - len(lost) + 1
