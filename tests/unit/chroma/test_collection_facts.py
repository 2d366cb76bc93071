"""What the production check reads of collections, in a data directory that a real Chroma wrote."""

import json
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from gateway.chroma.collection_facts import CollectionFacts, EmbeddingFunction, _function, read_collection_facts
from gateway.chroma.database import read_contents
from tests.bare_chroma import bare_chroma

MANY = 10_000


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CollectionFacts]:
    path = tmp_path_factory.mktemp("facts")
    random = np.random.default_rng(0)
    units = random.normal(size=(60, 8))  # more than are read at one end
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    with bare_chroma(path) as chroma:
        client = chroma.client()
        texts = client.create_collection(
            "texts",
            embedding_function=None,
            configuration={"hnsw": {"ef_search": 33, "sync_threshold": 20, "batch_size": 10}},
        )
        for start in range(0, 60, 10):
            ids = [f"{number:03}" for number in range(start, start + 10)]
            texts.add(ids=ids, embeddings=units[start : start + 10].tolist(), documents=ids)
        texts.add(ids=["zzz"], embeddings=[[1.0] + [0.0] * 7], metadatas=[{"source": "book"}])
        plain = client.create_collection("plain", embedding_function=None, metadata={"hnsw:space": "cosine"})
        plain.add(ids=["1", "2"], embeddings=[[3.0, 4.0], [0.0, 0.0]])
        client.create_collection("empty", embedding_function=None)
    return {each.name: each for each in read_collection_facts(path, read_contents(path).collections)}


def test_texts_with_metadata(facts: dict[str, CollectionFacts]) -> None:
    """The records at both ends of the order of ids are read, and the vectors of the log or the index."""
    found = facts["texts"]
    assert (found.settings.space, found.settings.ef_search, found.settings.sync_threshold) == ("l2", 33, 20)
    assert (found.keys, found.has_metadata, found.has_documents) == (("source",), True, True)
    assert len(found.norms) == 16
    assert np.allclose(found.norms, 1, atol=1e-5)
    assert found.oldest is not None
    assert timedelta() <= datetime.now(UTC) - found.oldest < timedelta(minutes=10)


def test_vectors_alone(facts: dict[str, CollectionFacts]) -> None:
    found = facts["plain"]
    assert found.settings.space == "cosine"
    assert (found.keys, found.has_metadata, found.has_documents) == ((), False, False)
    assert found.norms == (5.0,)  # a vector of zeros has no direction


def test_an_empty_collection(facts: dict[str, CollectionFacts]) -> None:
    found = facts["empty"]
    assert (found.collection.dimension, found.oldest, found.norms) == (None, None, ())


@pytest.mark.parametrize(
    ("told", "function"),
    [
        ({"type": "known", "name": "default", "config": {}}, EmbeddingFunction("default")),
        (
            {"type": "known", "name": "openai", "config": {"model_name": "m", "dimensions": 64}},
            EmbeddingFunction("openai", "m", 64),
        ),
        ({"type": "known", "name": "openai", "config": {"model_name": None}}, EmbeddingFunction("openai")),
        ({"type": "legacy"}, None),
        ({"type": "unknown"}, None),
        ({}, None),
    ],
)
def test_the_embedding_function_is_read(told: dict[str, object], function: EmbeddingFunction | None) -> None:
    assert _function(told) == function


@pytest.mark.parametrize(
    "config", ['{"hnsw": {"ef_search": 1e999}}', '{"hnsw": {"M": "many"}}', '{"hnsw": {"M": [1]}}', "[" * 100_000]
)
def test_odd_settings_are_taken_for_defaults(data_dir: Path, config: str) -> None:
    """A damaged or forged row: numbers that are infinite or none, and JSON that is too deep."""
    everything = read_contents(data_dir).collections
    with closing(sqlite3.connect(data_dir / "chroma.sqlite3")) as database, database:
        database.execute(
            "update collections set config_json_str = ?, schema_str = null where id = ?", (config, everything[0].id)
        )
    assert [each.collection for each in read_collection_facts(data_dir, everything)] == everything


def test_one_odd_collection_hides_no_other(data_dir: Path) -> None:
    """The moment of a record is none."""
    everything = read_contents(data_dir).collections
    odd = next(each for each in everything if each.records)
    with closing(sqlite3.connect(data_dir / "chroma.sqlite3")) as database, database:
        database.execute(
            "update embeddings set created_at = 'never' where segment_id ="
            " (select id from segments where scope = 'METADATA' and collection = ?)",
            (odd.id,),
        )
    others = [each for each in everything if each != odd]
    assert others
    assert [each.collection for each in read_collection_facts(data_dir, everything)] == others


def test_ten_thousand_collections_cost_what_is_asked_for(data_dir: Path) -> None:
    """Neither the list of collections nor the facts of some look through all segments for each collection."""
    with closing(sqlite3.connect(data_dir / "chroma.sqlite3")) as database, database:
        ((database_id, config, schema),) = database.execute(
            "select database_id, config_json_str, schema_str from collections limit 1"
        )
        ids = [f"{number:032x}" for number in range(MANY)]
        database.executemany(
            "insert into collections (id, name, dimension, database_id, config_json_str, schema_str)"
            " values (?, ?, 8, ?, ?, ?)",
            [(each, each, database_id, config, schema) for each in ids],
        )
        database.executemany(
            "insert into segments (id, type, scope, collection) values (?, 'x', ?, ?)",
            [(f"{scope}{each}", scope, each) for each in ids for scope in ("VECTOR", "METADATA")],
        )
    began_s = time.process_time()
    collections = read_contents(data_dir).collections
    assert len(collections) > MANY
    found = read_collection_facts(data_dir, collections[:500])
    assert time.process_time() - began_s < 5
    assert len(found) == 500
    assert json.loads(schema)["keys"]
