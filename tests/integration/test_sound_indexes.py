"""Whatever Chroma writes is called sound: else a repair would be begun that nobody needs."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromadb.api.models.Collection import Collection

from gateway.chroma.disk import DATABASE
from gateway.chroma.structure import check_segments
from tests.bare_chroma import bare_chroma

DIMENSION = 24
# Space, neighbors and sync_threshold: from few links to many, and from many syncs to few.
COLLECTIONS = {"one": ("l2", 8, 50), "two": ("cosine", 16, 100), "three": ("ip", 48, 30), "four": ("cosine", 2, 20)}


def write(collection: Collection, held: set[str], chance: random.Random, numbers: np.random.Generator) -> None:
    """One random write: mostly adds, and everything else that there is."""
    draw, count = chance.random(), chance.choice((1, 5, 20, 60))
    if draw < 0.5 or not held:
        ids = [f"{collection.name}.{chance.randrange(1 << 40)}" for _ in range(count)]
        collection.add(ids=ids, embeddings=numbers.standard_normal((count, DIMENSION)), documents=ids)
        held.update(ids)
        return
    ids = chance.sample(sorted(held), min(count, len(held)))
    vectors = numbers.standard_normal((len(ids), DIMENSION))
    if draw < 0.65:
        collection.upsert(ids=ids, embeddings=vectors)
    elif draw < 0.75:
        collection.update(ids=ids, embeddings=vectors)
    elif draw < 0.8:
        collection.update(ids=ids, metadatas=[{"changed": True}] * len(ids))
    elif draw < 0.85:
        collection.add(ids=ids, embeddings=vectors)  # which Chroma ignores
    elif draw < 0.95:
        collection.delete(ids=ids)
        held.difference_update(ids)
    elif draw < 0.98:
        collection.delete(ids=ids)
        collection.upsert(ids=ids, embeddings=vectors)
    else:
        collection.delete(ids=sorted(held))
        held.clear()


@pytest.mark.parametrize("runs", [3, pytest.param(25, marks=pytest.mark.soak)])
def test_what_chroma_writes_is_sound(tmp_path: Path, runs: int) -> None:
    """After random writes, deletions of everything, and kills between requests; with few neighbors and with many."""
    chance, numbers = random.Random(runs), np.random.default_rng(runs)
    held: dict[str, set[str]] = {name: set() for name in COLLECTIONS}
    with bare_chroma(tmp_path) as chroma:
        for name, (space, neighbors, threshold) in COLLECTIONS.items():
            configuration: Any = {
                "hnsw": {"space": space, "max_neighbors": neighbors, "sync_threshold": threshold, "batch_size": 10}
            }
            chroma.client().create_collection(name, embedding_function=None, configuration=configuration)
    for _ in range(runs):
        with bare_chroma(tmp_path) as chroma:
            client = chroma.client()
            for name in chance.choices(list(COLLECTIONS), k=chance.randint(5, 25)):
                write(client.get_collection(name, embedding_function=None), held[name], chance, numbers)
        with closing(sqlite3.connect(tmp_path / DATABASE)) as database:
            checks = list(check_segments(tmp_path, database))
        assert len(checks) == len(COLLECTIONS)
        assert [(segment.name, check.problems) for segment, check in checks if not check.is_sound] == []
