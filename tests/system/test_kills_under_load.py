"""kill -9 of Chroma, or of everything, at random moments under four writers and two readers.

Chroma also runs out of memory, or out of disk.

Every second kill comes while an index is being written. `KILLS=1000 scripts/test --soak -s
tests/system/test_kills_under_load.py` takes as many, within `KILLS_FOR_S` seconds, and prints what was measured.
"""

import os
import random
import resource
import signal
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from chromadb.api.models.Collection import Collection

from gateway.chroma.database import open_database
from gateway.chroma.disk import DATABASE, HEADER
from gateway.chroma.structure import check_segments
from tests.bare_chroma import bare_chroma
from tests.gateway_process import Gateway, gateway_process
from tests.small_disk import filled, small_disk

KILLS, KILLS_FOR_S = int(os.environ.get("KILLS", "100")), float(os.environ.get("KILLS_FOR_S", "20"))
# Dimension, space, sync_threshold.
COLLECTIONS = ((384, "l2", 50), (768, "l2", 200), (384, "cosine", 120), (768, "ip", 1000))
IDS, BATCH, LONGEST_S = 500, 20, 0.6
# supervisord gives up on a program that dies more often than five times a minute.
KILLS_AT_ONCE = 4

Vector = npt.NDArray[np.float32]
_GONE = np.empty(0, np.float32)


def same(one: Vector, other: Vector) -> bool:
    """Bit for bit, but for cosine: there Chroma divides by the length and multiplies with it again."""
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-5, atol=1e-6)


@dataclass
class Writer:
    """Writes to one collection, and knows what it holds. `open`: what records may have become that were under way."""

    name: str
    dimension: int
    space: str
    threshold: int
    chance: random.Random
    held: dict[str, Vector] = field(default_factory=dict)
    open: dict[str, Vector] = field(default_factory=dict)
    acknowledged: int = 0

    @property
    def configuration(self) -> Any:
        return {"hnsw": {"space": self.space, "sync_threshold": self.threshold, "batch_size": min(100, self.threshold)}}

    def fill(self, collection: Collection) -> None:
        """The first records, so that every index but the last is on the disk."""
        numbers = np.random.default_rng(self.chance.randrange(1 << 40))
        ids = [f"r{number}" for number in range(IDS // 2)]
        self.held = dict(zip(ids, numbers.standard_normal((len(ids), self.dimension)).astype(np.float32), strict=True))
        collection.upsert(ids=ids, embeddings=np.stack(list(self.held.values())), documents=ids)

    def write(self, collection: Collection, ending: threading.Event) -> None:
        """Until told to end, or until a write fails: then it was applied or not."""
        numbers = np.random.default_rng(self.chance.randrange(1 << 40))
        while not ending.is_set():
            draw = self.chance.random()
            ids = [f"r{number}" for number in self.chance.sample(range(IDS), BATCH)]
            if draw > 0.6:
                ids = [each for each in ids if each in self.held]
            if not ids:
                continue
            made = numbers.standard_normal((len(ids), self.dimension)).astype(np.float32)
            change = dict.fromkeys(ids, _GONE) if draw > 0.85 else dict(zip(ids, made, strict=True))
            self.open = change
            try:
                if draw > 0.85:
                    collection.delete(ids=ids)
                elif draw > 0.6:
                    collection.update(ids=ids, embeddings=made)
                else:
                    collection.upsert(ids=ids, embeddings=made, documents=ids)
            except Exception:
                return
            self.open = {}
            self.acknowledged += len(ids)
            self._apply(change)

    def _apply(self, change: dict[str, Vector]) -> None:
        for each, vector in change.items():
            if vector is _GONE:
                self.held.pop(each, None)
            else:
                self.held[each] = vector

    def settle(self, collection: Collection) -> list[str]:
        """Read everything; return the ids that are not as they were acknowledged."""
        got = collection.get(include=["embeddings", "documents"])
        found = dict(zip(got["ids"], np.asarray(got["embeddings"], np.float32), strict=True))
        wrong = [each for each, text in zip(got["ids"], got["documents"] or [], strict=True) if text != each]
        for each in self.held.keys() | found.keys() | self.open.keys():
            now = found.get(each, _GONE)
            allowed = [self.held.get(each, _GONE), *([self.open[each]] if each in self.open else [])]
            if not any(same(now, vector) for vector in allowed):
                wrong.append(each)
            self._apply({each: _GONE if now.shape == _GONE.shape else now})
        self.open = {}
        return wrong


@dataclass
class Found:
    """What the kills did. All lists but `served_s` are empty if the promise is kept."""

    unusable: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unsound: list[str] = field(default_factory=list)
    served_s: list[float] = field(default_factory=list)


def unsound_indexes(data_dir: Path) -> list[str]:
    """What the structural check says of the files, which nobody writes now."""
    with closing(open_database(data_dir / DATABASE)) as database:
        return [
            f"{segment.name}: {check.problems[0]}"
            for segment, check in check_segments(data_dir, database)
            if check.problems
        ]


def wait_for_a_sync(data_dir: Path) -> None:
    """Until a header changes, which is what a sync writes first; at most 3 s."""
    paths, deadline = list(data_dir.glob(f"*/{HEADER}")), time.monotonic() + 3
    before = [path.stat().st_mtime_ns for path in paths]
    while [path.stat().st_mtime_ns for path in paths] == before and time.monotonic() < deadline:
        pass


def kill_chroma(built: Gateway, pid: int, before: int) -> None:
    os.kill(pid, signal.SIGKILL)
    built.until(lambda: starts(built) > before, "Chroma is back")
    built.wait_until_ready()


def starve_chroma(built: Gateway, pid: int, before: int) -> None:
    """Let it get no more memory: its next allocations fail, and it ends by itself. If it does not, it is killed."""
    used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (used, used))
    with suppress(AssertionError):
        built.until(lambda: starts(built) > before, "Chroma ended by itself", 2)
    if starts(built) == before:
        kill_chroma(built, pid, before)
    built.wait_until_ready()


def fill_the_disk(built: Gateway, pid: int, before: int) -> None:
    """Leave no room while it writes, kill it, and make room again before or after that."""
    with filled(built.data_dir):
        time.sleep(0.3)
        if pid % 2:
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.5)
    if not pid % 2:
        os.kill(pid, signal.SIGKILL)
    built.until(lambda: starts(built) > before, "Chroma is back")
    built.wait_until_ready()


def kill_everything(built: Gateway, _pid: int, _before: int) -> None:
    built.kill()
    built.start()


def starts(built: Gateway) -> int:
    """How often Chroma came up since this gateway started."""
    return int(built.admin("GET", "/status").json()["chroma"]["starts"])


Kill = Callable[[Gateway, int, int], None]


def run(built: Gateway, writers: list[Writer], kills: int, kill: Kill, until: float) -> Found:
    """Kill it as often, or until that time has come."""
    chance, found = random.Random(kills), Found()
    for number in range(kills):
        if time.monotonic() > until:
            break
        client, ending = built.client(), threading.Event()
        collections = {each.name: client.get_collection(each.name, embedding_function=None) for each in writers}

        def read(ending: threading.Event = ending, collections: dict[str, Collection] = collections) -> None:
            numbers = np.random.default_rng(0)
            while not ending.is_set():
                each = writers[int(numbers.integers(len(writers)))]
                with suppress(Exception):
                    collections[each.name].query(
                        query_embeddings=numbers.standard_normal((1, each.dimension)), n_results=5
                    )

        threads = [threading.Thread(target=each.write, args=(collections[each.name], ending)) for each in writers]
        threads += [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        pid, before = built.pid("chroma") or 0, starts(built)
        time.sleep(chance.random() * LONGEST_S)
        if number % 2:
            wait_for_a_sync(built.data_dir)
            time.sleep(chance.random() * 0.003)
        began = time.monotonic()
        # The writers are in the middle of a write when it dies.
        threading.Timer(0.05 if kill in (kill_chroma, kill_everything) else 0.5, ending.set).start()
        kill(built, pid, before)
        found.served_s.append(time.monotonic() - began)
        for thread in threads:
            thread.join()
        for each in writers:
            try:
                wrong = each.settle(built.client().get_collection(each.name, embedding_function=None))
            except Exception as error:
                found.unusable.append(f"kill {number}: {each.name}: {error!r}")
            else:
                found.lost += [f"kill {number}: {each.name}/{one}" for one in wrong]
        found.unsound += [f"kill {number}: {one}" for one in unsound_indexes(built.data_dir)]
        # With -s, so that a run which is stopped says how far it came.
        print(
            f"\r{number + 1} kills: {len(found.unusable)} unusable, {len(found.lost)} lost,"
            f" {len(found.unsound)} unsound",
            end="",
            flush=True,
        )
        if kill is not kill_everything and number % KILLS_AT_ONCE == KILLS_AT_ONCE - 1:
            assert built.stop() == 0
            built.start()
    return found


def recall(collection: Collection, writer: Writer) -> float:
    """Of the ten nearest by brute force, how many a query finds; the mean of 300 queries."""
    ids, vectors = list(writer.held), np.stack(list(writer.held.values()))
    queries = np.random.default_rng(1).standard_normal((300, writer.dimension)).astype(np.float32)
    answers = collection.query(query_embeddings=queries, n_results=10, include=[])["ids"]
    hits = 0
    for query, answer in zip(queries, answers, strict=True):
        if writer.space == "l2":
            distances = ((vectors - query) ** 2).sum(axis=1)
        else:
            scale = np.linalg.norm(vectors, axis=1) if writer.space == "cosine" else 1
            distances = -(vectors @ query) / scale
        hits += len({ids[place] for place in np.argsort(distances)[:10].tolist()} & set(answer))
    return hits / 3000


def recall_of_a_fresh_index(path: Path, writer: Writer) -> float:
    """That of an index which was never killed, with the same records, added in the same steps."""
    with bare_chroma(path) as chroma:
        collection = chroma.client().create_collection(
            writer.name, embedding_function=None, configuration=writer.configuration
        )
        ids = list(writer.held)
        for start in range(0, len(ids), BATCH):
            some = ids[start : start + BATCH]
            collection.upsert(ids=some, embeddings=np.stack([writer.held[each] for each in some]))
        return recall(collection, writer)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize(
    ("kill", "kills", "for_s"),
    [
        (kill_chroma, KILLS, KILLS_FOR_S),
        (kill_everything, KILLS, KILLS_FOR_S),
        (starve_chroma, KILLS, KILLS_FOR_S / 3),
        (fill_the_disk, KILLS, KILLS_FOR_S / 3),
    ],
)
def test_kills_leave_every_record_and_index_whole(tmp_path: Path, kill: Kill, kills: int, for_s: float) -> None:
    """No collection unusable, no acknowledged record lost, no index unsound, and searches as good as before."""
    writers = [
        Writer(f"notes-{number}", *each, random.Random(1000 * kills + number))
        for number, each in enumerate(COLLECTIONS)
    ]
    with ExitStack() as stack:
        env = {}
        if kill is fill_the_disk:
            env["GATEWAY_DATA_DIR"] = str(stack.enter_context(small_disk(512)))
        built = stack.enter_context(gateway_process(**env))
        built.start()
        for each in writers:
            made = built.client().create_collection(
                each.name, embedding_function=None, configuration=each.configuration
            )
            each.fill(made)
        built.snapshot()
        found = run(built, writers, kills, kill, time.monotonic() + for_s)
        ratios = []
        for each in writers:
            killed = recall(built.client().get_collection(each.name, embedding_function=None), each)
            ratios.append(killed / recall_of_a_fresh_index(tmp_path / each.name, each))
        repairs = built.output().count("an index was repaired")
    centiles = statistics.quantiles(found.served_s, n=100, method="inclusive")
    print(
        f"\n{len(found.served_s)} kills ({kill.__name__}), {sum(each.acknowledged for each in writers)} acknowledged"
        f" records, {repairs} indexes repaired: {len(found.unusable)} unusable, {len(found.lost)} lost,"
        f" {len(found.unsound)} unsound; recall@10 at least {min(ratios):.3f} of an index never killed;"
        f" served again in {centiles[49]:.2f} s p50, {centiles[98]:.2f} s p99"
    )
    assert (found.unusable, found.lost, found.unsound) == ([], [], [])
    assert min(ratios) >= 0.99
