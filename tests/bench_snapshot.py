"""What do snapshots cost beside restic and rclone? One run, one machine, one store for all three.

The store is an S3 server (rclone's) on this machine. The data, 384 dimensions with documents and metadata, is
made once by bare Chroma and copied for every run. The peers back up the same live directory at the same moments,
held still by `POST /admin/quiesce`, which is more than they would get from a cron job. Uploaded bytes are those
of the objects that were written. No test: nothing here fails for being slow.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from tests.bare_chroma import bare_chroma
from tests.gateway_process import ROOT, Gateway, gateway_process
from tests.servers import S3Server, rclone_in

DIM = 384
# 557 MB are 160,000 records of this kind (docs/chroma-internals.md, "What changes on disk").
BYTES_PER_RECORD = 557e6 / 160_000
BATCH = 1000
CHANGED = 0.01
FREEZES = 100
ROUNDS = 4
RESTORES = 5
WORDS = (ROOT / "README.md").read_text().split()


def records(ids: list[int], generation: int = 0) -> dict[str, Any]:
    """Ids, embeddings (float32), documents and metadata."""
    generator = np.random.default_rng([ids[0], generation])
    chooser = random.Random(ids[0] * 31 + generation)
    return {
        "ids": [f"record-{each}" for each in ids],
        "embeddings": generator.random((len(ids), DIM), dtype=np.float32),
        "documents": [" ".join(chooser.choices(WORDS, k=40)) for _ in ids],
        "metadatas": [{"number": each, "generation": generation} for each in ids],
    }


def data_of(mb: int) -> tuple[Path, int]:
    """A data directory of about `mb`, made once; and how many records it has."""
    path, count = ROOT / f"var/bench/{mb}", int(mb * 1e6 / BYTES_PER_RECORD)
    if not (path / "done").exists():
        shutil.rmtree(path, ignore_errors=True)
        (path / "data").mkdir(parents=True)
        started = time.monotonic()
        with bare_chroma(path / "data") as chroma:
            collection = chroma.client().create_collection("bench", embedding_function=None)
            for first in range(0, count, BATCH):
                collection.add(**records(list(range(first, min(first + BATCH, count)))))
                print(f"\rmaking {mb} MB: {first} of {count} records", end="", file=sys.stderr)
        print(f"\rmade {mb} MB in {time.monotonic() - started:.0f} s" + " " * 30, file=sys.stderr)
        (path / "done").touch()
    return path / "data", count


def size_of(path: Path) -> int:
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def _objects(store: Path) -> dict[Path, tuple[int, int]]:
    """Size in bytes and time of change in ns of each."""
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns)
        for path in store.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


class Bench:
    """A gateway on a copy of the data, and a store that the peers share."""

    def __init__(self, built: Gateway, server: S3Server, store: Path, count: int) -> None:
        self.gateway_process, self.server, self.store, self.count = built, server, store, count
        self.env = server.env | {
            "PATH": os.environ["PATH"],
            "HOME": str(built.directory),
            "RESTIC_PASSWORD": "x",
            "RESTIC_CACHE_DIR": str(built.directory / "cache"),
        }
        self.restic = ["restic", "-q", "-r", f"s3:{server.url}/bench/restic"]
        remote = (
            f":s3,provider=Other,access_key_id=test,secret_access_key=test,endpoint='{server.url}',region=us-east-1"
        )
        self.rclone_remote = f"{remote}:bench/rclone"
        data = str(built.data_dir)
        self.ways: dict[str, Callable[[], Any]] = {
            "gateway": built.snapshot,
            "restic": lambda: self.run(*self.restic, "backup", "--exclude", ".gateway", data),
            "rclone": lambda: self.run("rclone", "sync", "--exclude", ".gateway/**", data, self.rclone_remote),
        }

    def run(self, *command: str) -> None:
        subprocess.run(command, env=self.env, check=True, stdout=subprocess.DEVNULL, timeout=900)

    def measured(self, work: Callable[[], Any]) -> tuple[float, int]:
        """Seconds, and bytes of the objects that were written, new ones or others in their place."""
        before, started = _objects(self.store), time.monotonic()
        work()
        passed = time.monotonic() - started
        return passed, sum(each[0] for path, each in _objects(self.store).items() if before.get(path) != each)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        self.gateway_process.admin("POST", "/quiesce", json={"ttl_s": 900}).raise_for_status()
        try:
            yield
        finally:
            self.gateway_process.admin("POST", "/resume").raise_for_status()

    def all_three(self) -> dict[str, tuple[float, int]]:
        """Seconds and bytes of one backup by each."""
        result = {"gateway": self.measured(self.ways["gateway"])}
        with self.quiet():
            result |= {who: self.measured(self.ways[who]) for who in ("restic", "rclone")}
        return result

    def change(self, batch: int = BATCH) -> None:
        """Upsert a hundredth of all ids, chosen at random, `batch` at a time."""
        collection = self.gateway_process.client().get_collection("bench", embedding_function=None)
        chosen = sorted(random.Random(batch).sample(range(self.count), int(self.count * CHANGED)))
        for first in range(0, len(chosen), batch):
            collection.upsert(**records(chosen[first : first + batch], batch))


@contextmanager
def bench(mb: int, **env: str) -> Iterator[Bench]:
    data, count = data_of(mb)
    with tempfile.TemporaryDirectory(prefix="bench", dir=ROOT / "var/bench") as directory:
        store = Path(directory) / "served"
        store.mkdir()
        with (
            rclone_in(store) as server,
            gateway_process(GATEWAY_STORE="s3://bench/gateway", **server.env, **env) as built,
        ):
            server.make_bucket("bench")
            built.env["GATEWAY_DATA_DIR"] = f"{directory}/data"
            shutil.copytree(data, built.data_dir)
            yield Bench(built.start(), server, store, count)


# ---------------------------------------------------------------------- parts


def peers(mb: int) -> None:
    with bench(mb) as each:
        each.run(*each.restic, "init")
        size = size_of(each.gateway_process.data_dir)
        rows = [("first", each.all_three())]
        full = {who: uploaded for who, (_, uploaded) in rows[0][1].items()}
        rows.append(("nothing changed", each.all_three()))
        for batch in (BATCH, BATCH // 10):
            each.change(batch)
            rows.append((f"{CHANGED:.0%} of ids upserted, {batch:,} at a time", each.all_three()))
        print(f"\n{size / 1e6:.0f} MB in the data directory\n")
        print("| snapshot | | gateway | restic | rclone |\n| --- | --- | --- | --- | --- |")
        for name, row in rows:
            print(f"| {name} | seconds | " + " | ".join(f"{row[who][0]:.2f}" for who in row) + " |")
            print(
                "| | MB uploaded | "
                + " | ".join(f"{row[who][1] / 1e6:.2f} ({row[who][1] / full[who]:.1%})" for who in row)
                + " |"
            )
        _restores(each)


def _chain_and_full(each: Bench) -> tuple[str, str]:
    """The newest snapshot, which has patches, and a full one of the same state. The gateway has stopped then."""
    chain = each.gateway_process.admin("GET", "/snapshot/latest").json()["id"]
    # The next gateway knows nothing of what the store has.
    each.gateway_process.stop()
    (each.gateway_process.data_dir / ".gateway/baseline").unlink()
    each.gateway_process.start()
    full = each.gateway_process.snapshot()["id"]
    each.gateway_process.stop()
    return chain, full


def _restores(each: Bench) -> None:
    chain, full = _chain_and_full(each)
    ways: dict[str, Callable[[Path], None]] = {
        "gateway, the chain": lambda target: _ours(each, chain, target),
        "gateway, a full one": lambda target: _ours(each, full, target),
        "restic": lambda target: _restic(each, target),
        "restic --verify; sync": lambda target: _restic_surely(each, target),
        "rclone": lambda target: each.run("rclone", "copy", each.rclone_remote, str(target)),
    }
    times: dict[str, list[tuple[float, float]]] = {who: [] for who in ways}
    for _ in range(RESTORES):
        for who, way in ways.items():
            times[who].append(_restored(each, way))
    median = {who: [statistics.median(column) for column in zip(*runs, strict=True)] for who, runs in times.items()}
    print(f"\n| restore (median of {RESTORES}) | " + " | ".join(ways) + " |")
    print("| --- " * (len(ways) + 1) + "|")
    print("| seconds until restored | " + " | ".join(f"{median[who][0]:.2f}" for who in ways) + " |")
    print("| and until a first query is answered | " + " | ".join(f"{sum(median[who]):.2f}" for who in ways) + " |")


def boots(mb: int) -> None:
    """A start on an empty disk, and on one in memory, as Cloud Run's is; beside a copy of the same files by rclone."""
    with bench(mb) as each:
        each.gateway_process.snapshot()
        for batch in (BATCH, BATCH // 10):
            each.change(batch)
            each.gateway_process.snapshot()
        with each.quiet():
            each.ways["rclone"]()
        chain, full = _chain_and_full(each)
        print(f"\n{mb} MB; seconds, median of {RESTORES}; in brackets until the gateway is ready")
        print("| | rclone copy | and sync | a full snapshot | one with patches |\n| --- | --- | --- | --- | --- |")
        for name, place in (("disk", ROOT / "var/bench"), ("memory", Path("/dev/shm"))):
            turns: list[list[float]] = []
            # In the first one, which is left out, the server computes the ETags of all that it has.
            for _ in range(RESTORES + 1):
                with tempfile.TemporaryDirectory(dir=place) as directory:
                    copied = _rclone_surely(each, Path(directory) / "copied")
                    found = [*copied, *_boot(each, full, Path(directory)), *_boot(each, chain, Path(directory))]
                turns.append(found)
            copy, sync, whole, whole_ready, patched, patched_ready = (
                statistics.median(column) for column in zip(*turns[1:], strict=True)
            )
            print(
                f"| {name} | {copy:.2f} | {sync:.2f} | {whole:.2f} ({whole_ready:.2f}), {whole / copy:.2f} of rclone's"
                f" | {patched:.2f} ({patched_ready:.2f}), {patched / copy:.2f} |"
            )


def _rclone_surely(each: Bench, target: Path) -> tuple[float, float]:
    """Seconds of a copy by rclone, and until it is on the disk."""
    started = time.monotonic()
    each.run("rclone", "copy", each.rclone_remote, str(target))
    copied = time.monotonic() - started
    os.sync()
    synced = time.monotonic() - started
    shutil.rmtree(target)
    return copied, synced


def _boot(each: Bench, snapshot_id: str, place: Path) -> tuple[float, float]:
    """Seconds that the restore takes of a gateway's start without data, by its log; and until it is ready."""
    each.gateway_process.env["GATEWAY_DATA_DIR"] = str(place / snapshot_id)
    each.gateway_process.env["GATEWAY_RESTORE"] = snapshot_id
    started = time.monotonic()
    each.gateway_process.start()
    ready = time.monotonic() - started
    each.gateway_process.stop()
    shutil.rmtree(place / snapshot_id)
    at = {}
    for line in each.gateway_process.output().splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            if "timestamp" in entry:
                at[entry["message"]] = datetime.fromisoformat(entry["timestamp"])
    return (at["snapshot restored"] - at["restoring"]).total_seconds(), ready


def _ours(each: Bench, snapshot_id: str, target: Path) -> None:
    """As a container does that starts empty: fetched, verified, made durable."""
    command = [sys.executable, "-m", "gateway", "restore", snapshot_id, "--json"]
    each.run(*command, "--store", "s3://bench/gateway", "--data-dir", str(target))


def _restic(each: Bench, target: Path, *options: str) -> None:
    """On a machine that has no cache of the repository either."""
    with tempfile.TemporaryDirectory() as cache:
        each.run(*each.restic, "--cache-dir", cache, "restore", "latest", "--target", str(target), *options)


def _restic_surely(each: Bench, target: Path) -> None:
    """Verified and durable, as ours is."""
    _restic(each, target, "--verify")
    os.sync()


def _restored(each: Bench, work: Callable[[Path], None]) -> tuple[float, float]:
    """Seconds that the restore took, and then a bare Chroma from its start to its first answer."""
    with tempfile.TemporaryDirectory(dir=ROOT / "var/bench") as directory:
        started = time.monotonic()
        work(Path(directory))
        restored = time.monotonic() - started
        (data,) = Path(directory).rglob("chroma.sqlite3")
        started = time.monotonic()
        with bare_chroma(data.parent) as chroma:
            collection = chroma.client().get_collection("bench", embedding_function=None)
            assert collection.count() == each.count
            collection.query(query_embeddings=np.zeros((1, DIM), np.float32), n_results=1)
            return restored, time.monotonic() - started


class Clients:
    """Some that upsert without pause, and one that reads and keeps its times."""

    def __init__(self, each: Bench, writers: int) -> None:
        self._each, self._stop, self.latencies_ms = each, threading.Event(), list[float]()
        self.written = 0
        self._threads = [threading.Thread(target=self._write, args=(n,)) for n in range(writers)]
        self._threads.append(threading.Thread(target=self._read))

    def _write(self, number: int) -> None:
        collection = self._each.gateway_process.client().get_collection("bench", embedding_function=None)
        chooser, turn = random.Random(number), 0
        while not self._stop.is_set():
            turn += 1
            ids = [chooser.randrange(self._each.count) for _ in range(10)]
            collection.upsert(**records(sorted(set(ids)), turn))
            self.written += 10

    def _read(self) -> None:
        collection = self._each.gateway_process.client().get_collection("bench", embedding_function=None)
        chooser = random.Random(0)
        while not self._stop.is_set():
            started = time.perf_counter()
            collection.get(ids=[f"record-{chooser.randrange(self._each.count)}"], include=["documents"])
            self.latencies_ms.append((time.perf_counter() - started) * 1e3)

    @contextmanager
    def at_work(self) -> Iterator["Clients"]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()


def percentile(values: list[float], part: float) -> float:
    return float(np.percentile(values, part * 100))


def freeze(mb: int) -> None:
    with bench(mb) as each:
        each.gateway_process.snapshot()
        taken: list[dict[str, Any]] = []
        without: list[float] = []
        during: list[float] = []
        with Clients(each, writers=2).at_work() as clients:
            started = time.monotonic()
            for _ in range(ROUNDS):
                since = len(clients.latencies_ms)
                time.sleep(8)
                without += clients.latencies_ms[since:]
                since = len(clients.latencies_ms)
                taken += [each.gateway_process.snapshot() for _ in range(FREEZES // ROUNDS)]
                during += clients.latencies_ms[since:]
            passed = time.monotonic() - started
        wal = (each.gateway_process.data_dir / "chroma.sqlite3-wal").stat().st_size
        freezes, drains = [one["freeze_ms"] for one in taken], [one["drain_ms"] for one in taken]
        uploaded = [one["uploaded_bytes"] for one in taken]
        print(f"\n{mb} MB, {FREEZES} snapshots under writers ({clients.written / passed:.0f} records/s)")
        print("| | p50 | p99 | max |\n| --- | --- | --- | --- |")
        for name, values in (
            ("freeze, ms", freezes),
            ("drain, ms", drains),
            ("a snapshot, s", [one["duration_s"] for one in taken]),
            ("uploaded, MB", [one / 1e6 for one in uploaded]),
            ("a read without snapshots, ms", without),
            ("a read during snapshots, ms", during),
        ):
            print(f"| {name} | {percentile(values, 0.5):.2f} | {percentile(values, 0.99):.2f} | {max(values):.2f} |")
        print(f"SQLite's log at the end: {wal / 1e6:.1f} MB")


def reads(mb: int) -> None:
    """Reads of one client while a hundredth that changed is backed up, where nobody writes meanwhile."""
    with bench(mb) as each:
        each.run(*each.restic, "init")
        each.all_three()
        ways: dict[str, Callable[[], Any]] = {"nobody": lambda: time.sleep(2), **each.ways}
        times: dict[str, list[float]] = {who: [] for who in ways}
        for turn in range(ROUNDS * 2):
            each.change(BATCH - turn)
            for who, work in ways.items():
                with Clients(each, writers=0).at_work() as clients:
                    work()
                times[who] += clients.latencies_ms
        print(f"\n{mb} MB, one reader and no writer while {CHANGED:.0%} changed is backed up, {ROUNDS * 2} times")
        print("| a read, ms | p50 | p90 | p99 | max |\n| --- | --- | --- | --- | --- |")
        for who, values in times.items():
            columns = [percentile(values, part) for part in (0.5, 0.9, 0.99, 1)]
            print(f"| backed up by {who} | " + " | ".join(f"{ms:.2f}" for ms in columns) + " |")


def limits(mb: int) -> None:
    """Extra disk and memory of a first snapshot, and of one after a hundredth changed; memory under a hard limit."""
    with bench(mb) as each:
        pid = each.gateway_process.pid("gateway")
        assert pid
        data_dir = each.gateway_process.data_dir
        size = size_of(data_dir)
        before = _memory(pid, "VmRSS")
        held = _memory(pid, "VmData")
        subprocess.run(["prlimit", "--pid", str(pid), f"--data={held + (256 << 20)}"], check=True)
        for name in ("first", f"{CHANGED:.0%} changed"):
            grown, stop = [0], threading.Event()
            base = size_of(data_dir)

            def watch(grown: list[int] = grown, stop: threading.Event = stop, base: int = base) -> None:
                while not stop.wait(0.02):
                    grown[0] = max(grown[0], size_of(data_dir) - base)

            watcher = threading.Thread(target=watch)
            watcher.start()
            taken = each.gateway_process.snapshot()
            stop.set()
            watcher.join()
            print(
                f"{mb} MB, {name}: {taken['duration_s']:.2f} s, extra disk {grown[0] / 1e6:.1f} MB"
                f" ({grown[0] / size:.1%}), peak memory {_memory(pid, 'VmHWM') / 1e6:.0f} MB"
                f" ({before / 1e6:.0f} MB before), with 256 MiB more allowed"
            )
            each.change()
        assert each.gateway_process.pid("gateway") == pid


def _memory(pid: int, field: str) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=500)
    parser.add_argument("--only", choices=["peers", "boots", "freeze", "reads", "limits"])
    asked = parser.parse_args()
    for part in (peers, boots, freeze, reads, limits):
        if asked.only in (None, part.__name__):
            part(asked.mb)


if __name__ == "__main__":
    main()
