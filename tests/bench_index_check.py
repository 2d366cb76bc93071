"""What does the structural check of indexes cost? Of an index alone, in a snapshot, and at a start.

The index is made up: sound by its structure, with random vectors and links, so that it takes seconds to make and not
the minutes that Chroma takes to build one. A check does not care which vectors they are. No Chroma runs. Wall time, and
the CPU time of this process, which a busy machine changes less. No test: nothing here fails for being slow.
"""

import argparse
import asyncio
import sqlite3
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from gateway.chroma.database import prepare
from gateway.chroma.directory import DataDirectory
from gateway.chroma.disk import DATABASE, HEADER, ID_MAP, LENGTH, LEVEL0, LINK_LISTS
from gateway.chroma.header import HEADER_STRUCT, VERSION, Layout
from gateway.chroma.id_map import new_id_map
from gateway.chroma.index_health import IndexHealth
from gateway.chroma.structure import IndexCheck, check_index
from gateway.jobs import Progress
from gateway.snapshot.create import Snapshotter
from gateway.snapshot.import_tar import _no_writers, _NoChroma
from gateway.snapshot.repository import Repository
from gateway.storage import FileStorage
from tests.bare_chroma import bare_chroma

DIMENSION, NEIGHBORS, LINKS, AT_ONCE = 384, 16, 20, 10_000


def make(path: Path, records: int) -> Path:
    """A data directory with one collection of that many records; return the directory of its index."""
    prepare(path)
    with bare_chroma(path) as chroma:
        collection = chroma.client().create_collection("notes", embedding_function=None)
        collection.add(ids=["r0"], embeddings=np.ones((1, DIMENSION)))
    with closing(sqlite3.connect(path / DATABASE)) as database, database:
        ids = dict(database.execute("select scope, id from segments").fetchall())
        (seq_id,) = database.execute("select max(seq_id) from embeddings_queue").fetchone()
        rows = ((ids["METADATA"], f"r{number}", seq_id) for number in range(1, records))
        database.executemany("insert into embeddings (segment_id, embedding_id, seq_id) values (?, ?, ?)", rows)
        database.execute("insert or replace into max_seq_id values (?, ?)", (ids["VECTOR"], seq_id))
    index = path / str(ids["VECTOR"])
    index.mkdir(exist_ok=True)
    _write_index(index, records)
    return index


def _write_index(index: Path, records: int) -> None:
    layout, numbers = Layout(NEIGHBORS, DIMENSION), np.random.default_rng(0)
    fields = (VERSION, 0, records, records, layout.element_bytes, layout.label_offset, layout.vector_offset, 0, 0)
    factor = 1 / float(np.log(NEIGHBORS))
    (index / HEADER).write_bytes(HEADER_STRUCT.pack(*fields, NEIGHBORS, 2 * NEIGHBORS, NEIGHBORS, factor, 100))
    with (index / LEVEL0).open("wb") as file:
        for start in range(0, records, AT_ONCE):
            count = min(AT_ONCE, records - start)
            words = np.zeros((count, layout.element_bytes // 4), "<u4")
            words[:, 0] = LINKS
            words[:, 1 : 1 + LINKS] = numbers.integers(0, records, (count, LINKS))
            vectors = numbers.standard_normal((count, DIMENSION)).astype("<f4")
            words[:, layout.vector_offset // 4 : layout.label_offset // 4] = vectors.view("<u4")
            words[:, -2] = np.arange(start + 1, start + count + 1)
            file.write(words.tobytes())
    (index / LINK_LISTS).write_bytes(struct.pack("<I", 0) * records)
    np.ones(records, "<f4").tofile(index / LENGTH)
    (index / ID_MAP).write_bytes(new_id_map({f"r{number}": number + 1 for number in range(records)}, records))


Seconds = tuple[float, float]
"""wall time and CPU time"""


def now() -> Seconds:
    return time.perf_counter(), time.process_time()


def since(began: Seconds) -> Seconds:
    wall, cpu = now()
    return wall - began[0], cpu - began[1]


def seconds(work: Callable[[], Any]) -> Seconds:
    began = now()
    work()
    return since(began)


async def snapshot(path: Path, store: Path) -> Seconds:
    """Take the first snapshot, which reads and stores everything; return the seconds."""
    directory = DataDirectory(path)
    directory.make()
    directory.baseline.unlink(missing_ok=True)
    snapshotter = Snapshotter(Repository(FileStorage(store)), directory, _NoChroma(), _no_writers)
    began = now()
    await snapshotter.take(None, Progress())
    took = since(began)
    await snapshotter.close()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=500, help="size of the index")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    records = int(arguments.mb * 1e6 / (Layout(NEIGHBORS, DIMENSION).element_bytes + 60))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "data"
        path.mkdir()
        index = make(path, records)
        size_mb = sum(each.stat().st_size for each in index.iterdir()) / 1e6
        check = check_index(index, dimension=DIMENSION, space="l2")
        assert check.is_sound, check.problems
        print(f"index: {records} records of {DIMENSION} dimensions, {size_mb:.0f} MB; median of {arguments.rounds}")
        told: dict[str, list[Seconds]] = {}
        for number in range(arguments.rounds):
            memory = path / ".gateway/sound.json"
            memory.unlink(missing_ok=True)
            (path / ".gateway").mkdir(exist_ok=True)
            told.setdefault("check of the files", []).append(
                seconds(lambda: check_index(index, dimension=DIMENSION, space="l2"))
            )
            health = IndexHealth(path)
            told.setdefault("start, index changed", []).append(seconds(health.unsound))
            health.save()
            told.setdefault("start, index as it was", []).append(seconds(IndexHealth(path).unsound))
            memory.unlink()
            with_check = asyncio.run(snapshot(path, Path(directory) / f"store-{number}"))
            told.setdefault("first snapshot, with the check", []).append(with_check)
            original, IndexHealth.check = IndexHealth.check, lambda *_: IndexCheck(())  # type: ignore[method-assign]
            try:
                without = asyncio.run(snapshot(path, Path(directory) / f"other-{number}"))
            finally:
                IndexHealth.check = original  # type: ignore[method-assign]
            told.setdefault("first snapshot, without it", []).append(without)
        for what, each in told.items():
            wall, cpu = (statistics.median(times) for times in zip(*each, strict=True))
            print(f"{what:32} {wall:7.2f} s, CPU {cpu:6.2f} s")


if __name__ == "__main__":
    main()
