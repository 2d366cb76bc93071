"""A Chroma that is killed while it writes an index: every acknowledged record comes back, with no copy of anything."""

import random
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from chromadb.api.models.Collection import Collection

from gateway.chroma.disk import DATABASE
from gateway.chroma.repair import repair_segment
from gateway.chroma.segments import read_segments
from gateway.chroma.structure import check_segment
from tests.bare_chroma import bare_chroma

DIMENSION = 256


class Writer:
    """Adds, changes and deletes until it is stopped; knows what was acknowledged and what was under way."""

    def __init__(self, collection: Collection, seed: int) -> None:
        self._collection, self._random, self._vectors = collection, random.Random(seed), np.random.default_rng(seed)
        self.acknowledged: dict[str, npt.NDArray[np.float32]] = {}
        self.under_way: set[str] = set()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _write(self) -> None:
        added = 0
        while True:
            held, draw = self.acknowledged, self._random.random()
            write = self._collection.upsert
            if len(held) < 100 or draw < 0.6:
                write = self._collection.add
                ids = [f"record.{number}" for number in range(added, added + 25)]
                added += 25
            else:
                ids = self._random.sample(sorted(held), 20)
            self.under_way.update(ids)
            vectors = self._vectors.standard_normal((len(ids), DIMENSION)).astype(np.float32)
            try:
                if len(held) > 200 and draw > 0.85:
                    self._collection.delete(ids=ids)
                    for each in ids:
                        del held[each]
                else:
                    write(ids=ids, embeddings=vectors, documents=ids)
                    held.update(zip(ids, vectors, strict=True))
            except Exception:
                return  # it was killed
            self.under_way.clear()


def kill_while_it_syncs(path: Path, seed: int, space: str) -> Writer:
    """Kill it soon after it began to write the index: the header goes first."""
    threshold = 50 * (1 + seed % 3)
    with bare_chroma(path) as chroma:
        configuration: Any = {"hnsw": {"space": space, "sync_threshold": threshold, "batch_size": threshold // 2}}
        collection = chroma.client().create_collection("killed", embedding_function=None, configuration=configuration)
        writer = Writer(collection, seed)
        try:
            while len(writer.acknowledged) < 150:
                time.sleep(0.01)
            header = next(path.glob("*/header.bin"))
            written, deadline = header.stat().st_mtime_ns, time.monotonic() + 30
            while header.stat().st_mtime_ns == written and time.monotonic() < deadline:
                pass
            until = time.perf_counter() + (seed % 4) * 0.0007
            while time.perf_counter() < until:
                pass
        finally:
            chroma.process.kill()
            writer.join()
    return writer


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("space", ["l2", "cosine"])
def test_a_kill_in_the_middle_of_a_sync_loses_nothing(tmp_path: Path, space: str, seed: int) -> None:
    """Whatever was on the disk by then, the index is sound afterwards and has all that was acknowledged."""
    writer = kill_while_it_syncs(tmp_path, seed, space)
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        (segment,) = read_segments(database)
    repair = repair_segment(tmp_path, segment.id)
    assert repair.lost_ids == repair.doubtful_ids == repair.unscaled_ids == ()
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        assert check_segment(tmp_path, database, segment).is_sound
    with bare_chroma(tmp_path) as chroma:
        collection = chroma.client().get_collection("killed", embedding_function=None)
        got = collection.get(include=["embeddings"])
        held = dict(zip(got["ids"], got["embeddings"], strict=True))
        nearest = collection.query(query_embeddings=got["embeddings"][:200], n_results=1)["ids"]
    sure = writer.acknowledged.keys() - writer.under_way
    assert sure <= held.keys() <= writer.acknowledged.keys() | writer.under_way
    # Cosine divides by the length and multiplies with it again.
    assert all(np.allclose(held[each], writer.acknowledged[each], rtol=1e-5, atol=1e-6) for each in sure)
    hits = sum(found == [each] for found, each in zip(nearest, got["ids"], strict=False))
    assert hits >= 0.9 * len(nearest)
