"""What the journal costs, and what it gives. One run, one machine; no test: nothing here fails for being slow.

Two gateways on copies of the same data, one with the journal and one without, take turns on an S3 server that answers
each PUT 30 ms later. Litestream follows the database of a bare Chroma that gets the same writes.
"""

import argparse
import itertools
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np

from gateway.chroma.database import prepare
from gateway.chroma.disk import DATABASE
from tests.bare_chroma import bare_chroma
from tests.bench_snapshot import data_of, records
from tests.gateway_process import Gateway, gateway_process
from tests.servers import S3Server, ministack
from tests.store_faults import FaultProxy, Rule

COLLECTIONS = "/api/v2/tenants/default_tenant/databases/default_database/collections"
PUT_S = 0.03
DIMENSION = 384
PARTS = ("writes", "acks", "bytes", "requests", "lag", "boot")
PUT_USD, OTHER_USD = 0.005 / 1000, 0.0004 / 1000
_numbers = itertools.count(10_000_000)


def body(count: int) -> dict[str, Any]:
    made = records([next(_numbers) for _ in range(count)])
    return {**made, "embeddings": made["embeddings"].tolist()}


def percentile(values: list[float], part: float) -> float:
    return float(np.percentile(values, part)) if values else float("nan")


def collection_of(url: str) -> str:
    """The collection that is written to. The large one is not: syncs of its index would decide how fast writes are."""
    with httpx.Client(base_url=url, timeout=60) as http:
        made = http.post(COLLECTIONS, json={"name": "written", "get_or_create": True}).raise_for_status()
        path = f"{COLLECTIONS}/{made.json()['id']}"
        if not http.get(f"{path}/count").json():
            http.post(f"{path}/upsert", json=body(1000)).raise_for_status()
        return str(made.json()["id"])


class Load(NamedTuple):
    """What one load saw: seconds of each write and of each read, and writes a second."""

    write_s: list[float]
    read_s: list[float]
    per_s: float


def load(url: str, connections: int, seconds: float, ack: str = "local", *, reads: bool = False) -> Load:
    """Upserts of one record from `connections` for `seconds`, with a reader beside them if `reads`.

    A process of its own makes them: this one runs the proxy before the store.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_loaded, url, connections, seconds, ack, next(_numbers) << 20, reads).result()


def _loaded(url: str, connections: int, seconds: float, ack: str, first: int, reads: bool) -> Load:
    path, numbers = f"{COLLECTIONS}/{collection_of(url)}", itertools.count(first)
    write_s, read_s = list[float](), list[float]()
    bodies = [[body(1) for _ in range(40)] for _ in range(connections)]
    began = time.monotonic()
    stop_at = began + seconds

    def write(bodies: list[dict[str, Any]]) -> None:
        with httpx.Client(base_url=url, timeout=120, headers={"X-Gateway-Ack": ack}) as http:
            for made in itertools.cycle(bodies):
                if (started := time.monotonic()) > stop_at:
                    return
                http.post(f"{path}/upsert", json={**made, "ids": [f"new-{next(numbers)}"]}).raise_for_status()
                write_s.append(time.monotonic() - started)

    def read() -> None:
        query = {"query_embeddings": [[0.5] * DIMENSION], "n_results": 10}
        with httpx.Client(base_url=url, timeout=120) as http:
            while (started := time.monotonic()) < stop_at:
                http.post(f"{path}/query", json=query).raise_for_status()
                read_s.append(time.monotonic() - started)

    with ThreadPoolExecutor(connections + 1) as threads:
        work = [threads.submit(write, some) for some in bodies] + ([threads.submit(read)] if reads else [])
        for each in work:
            each.result()
    return Load(write_s, read_s, len(write_s) / (time.monotonic() - began))


@contextmanager
def built(source: Path, env: dict[str, str], journal: str) -> Iterator[Gateway]:
    with gateway_process(**env, GATEWAY_JOURNAL_INTERVAL_S=journal, GATEWAY_SNAPSHOT_ON_EXIT="false") as gateway:
        gateway.data_dir.parent.mkdir(parents=True)
        shutil.copytree(source, gateway.data_dir)
        gateway.start()
        yield gateway


def journal_bytes(gateway: Gateway) -> tuple[int, int]:
    status = gateway.admin("GET", "/status").json()["journal"]
    return int(status["stored_bytes"]), int(status["entries"])


def side_by_side(on: Gateway, off: Gateway, seconds: float, rounds: int) -> None:
    print("\n| connections | writes/s off | on | on to off | read p99 off, ms | on | on to off |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for connections in (1, 16):
        found: dict[str, list[Load]] = {"off": [], "on": []}
        for turn in range(rounds):
            for name, gateway in [("off", off), ("on", on)][:: 1 if turn % 2 else -1]:
                found[name].append(load(gateway.url, connections, seconds, reads=True))
        rate = {name: statistics.median(each.per_s for each in loads) for name, loads in found.items()}
        read = {name: percentile([s for each in loads for s in each.read_s], 99) for name, loads in found.items()}
        print(
            f"| {connections} | {rate['off']:.1f} | {rate['on']:.1f} | {rate['on'] / rate['off']:.2f} |"
            f" {read['off'] * 1e3:.1f} | {read['on'] * 1e3:.1f} | {read['on'] / read['off']:.2f} |"
        )


def acknowledgements(on: Gateway, seconds: float, rounds: int) -> None:
    print(
        "\n| connections | local writes/s | stored | stored to local | p50 local, ms | stored | a PUT | more, in PUTs |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for connections in (1, 16, 64):
        found: dict[str, list[Load]] = {"local": [], "stored": []}
        for _ in range(rounds):
            for ack, loads in found.items():
                loads.append(load(on.url, connections, seconds, ack))
        rate = {ack: statistics.median(each.per_s for each in loads) for ack, loads in found.items()}
        p50 = {ack: percentile([s for each in loads for s in each.write_s], 50) for ack, loads in found.items()}
        put_s = on.admin("GET", "/status").json()["journal"]["put_p50_s"]
        print(
            f"| {connections} | {rate['local']:.1f} | {rate['stored']:.1f} | {rate['stored'] / rate['local']:.2f} |"
            f" {p50['local'] * 1e3:.1f} | {p50['stored'] * 1e3:.1f} |"
            f" {put_s * 1e3:.1f} | {(p50['stored'] - p50['local']) / put_s:.2f} |"
        )


def paced(url: str, per_s: float, batch: int, seconds: float) -> int:
    """Upserts at this pace. Returns how many records that were."""
    path, count = f"{COLLECTIONS}/{collection_of(url)}/upsert", 0
    began = time.monotonic()
    with httpx.Client(base_url=url, timeout=120) as http:
        while time.monotonic() - began < seconds:
            http.post(path, json=body(batch)).raise_for_status()
            count += batch
            time.sleep(max(0.0, began + count / batch / per_s - time.monotonic()))
    return count


def beside_litestream(on: Gateway, source: Path, seconds: float) -> None:
    print("\n| writes | records | journal, bytes a record | Litestream's | journal to Litestream |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as directory:
        live, replica = Path(directory) / "live", Path(directory) / "replica"
        shutil.copytree(source, live)
        prepare(live)
        config = Path(directory) / "litestream.yml"
        config.write_text(
            f"dbs:\n  - path: {live / DATABASE}\n    replica:\n      type: file\n      path: {replica}\n"
            "      sync-interval: 1s\n"
        )
        with bare_chroma(live) as chroma, (Path(directory) / "log").open("wb") as log:
            litestream = subprocess.Popen(
                ["litestream", "replicate", "-config", str(config)], stdout=log, stderr=log, env=_with_scripts()
            )
            try:
                # The first copy of all of it, which Litestream makes after a first write.
                for url in (chroma.url, on.url):
                    paced(url, 1, 1, 1)
                until_still(replica)
                for name, per_s, batch in (("1/s", 1.0, 1), ("100/s", 100.0, 1), ("bulk of 1,000", 2.0, 1000)):
                    before, had = _size(replica), journal_bytes(on)[0]
                    count = paced(chroma.url, per_s, batch, seconds)
                    time.sleep(3)
                    theirs = (_size(replica) - before) / count
                    count = paced(on.url, per_s, batch, seconds)
                    on.admin("POST", "/flush")
                    ours = (journal_bytes(on)[0] - had) / count
                    print(f"| {name} | {count} | {ours:.0f} | {theirs:.0f} | {ours / theirs:.2f} |")
            finally:
                litestream.send_signal(signal.SIGTERM)
                litestream.wait(30)


def until_still(path: Path) -> None:
    """Wait until nothing was added to `path` for 5 s."""
    size, since = -1, time.monotonic()
    while time.monotonic() < since + 5:
        time.sleep(0.5)
        if (now := _size(path) if path.exists() else 0) != size or not now:
            size, since = now, time.monotonic()


def _with_scripts() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path('.venv/bin').absolute()}:{os.environ['PATH']}"}


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def requests(on: Gateway, proxy: FaultProxy, seconds: float) -> None:
    print("\n| load | PUTs an hour | all requests | a month, USD |\n| --- | --- | --- | --- |")

    def constant() -> None:
        load(on.url, 4, seconds)

    work: list[tuple[str, Callable[[], object]]] = [
        ("idle", lambda: time.sleep(seconds)),
        ("one write a second", lambda: paced(on.url, 1, 1, seconds)),
        ("constant writes", constant),
    ]
    for name, do in work:
        on.admin("POST", "/flush")
        time.sleep(2)
        before, began = len(proxy.requests), time.monotonic()
        do()
        took, seen = time.monotonic() - began, proxy.requests[before:]
        puts = sum(method == "PUT" for method, _ in seen)
        hour = 3600 / took
        month = 730 * hour * (puts * PUT_USD + (len(seen) - puts) * OTHER_USD)
        print(f"| {name} | {puts * hour:.0f} | {len(seen) * hour:.0f} | {month:.2f} |")


def lag(on: Gateway, proxy: FaultProxy, seconds: float, away_s: float) -> None:
    lags, done = list[float](), threading.Event()

    def look() -> None:
        while not done.is_set():
            lags.append(on.admin("GET", "/status").json()["journal"]["lag_s"])
            time.sleep(0.2)

    watcher = threading.Thread(target=look)
    watcher.start()
    load(on.url, 4, seconds)
    done.set()
    watcher.join()
    print(f"\nlag at constant writes: {percentile(lags, 50):.2f} s p50, {percentile(lags, 99):.2f} s p99")
    writing = threading.Thread(target=lambda: load(on.url, 4, away_s + 15))
    writing.start()
    usual, proxy.rules = proxy.rules, [Rule("status", status=503)]
    time.sleep(away_s)
    proxy.rules, began = usual, time.monotonic()
    while on.admin("GET", "/status").json()["journal"]["lag_s"] > 2:
        time.sleep(0.1)
    print(f"the store was away for {away_s:.0f} s under writes: caught up {time.monotonic() - began:.1f} s after")
    writing.join()


def boots(on: Gateway, rounds: int) -> None:
    print("\n| boot on an empty disk | seconds to ready |\n| --- | --- |")
    load(on.url, 4, 10)
    on.stop()
    newest = ""
    for name in ("snapshot and journal", "the snapshot alone"):
        took = []
        for _ in range(rounds):
            shutil.rmtree(on.data_dir)
            if name == "the snapshot alone":
                on.env["GATEWAY_RESTORE"] = newest
            began = time.monotonic()
            on.start()
            took.append(time.monotonic() - began)
            newest = newest or on.admin("GET", "/snapshot/latest").json()["id"]
            on.stop()
        print(f"| {name} | {statistics.median(took):.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=500, help="size of the data")
    parser.add_argument("--seconds", type=float, default=10, help="length of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--away", type=float, default=60, help="seconds for which the store is away")
    parser.add_argument("--only", choices=PARTS, nargs="*", default=PARTS, help="what to measure")
    options = parser.parse_args()
    source, count = data_of(options.mb)
    with ExitStack() as stack:
        server: S3Server = stack.enter_context(ministack())
        proxy = stack.enter_context(FaultProxy(server.port))
        proxy.rules = [Rule("delay", method="PUT", delay_s=PUT_S)]
        env = server.env_behind(proxy)
        gateways = {}
        for name, journal in (("off", "0"), ("on", "1")):
            server.make_bucket(f"journal-{name}")
            gateways[name] = stack.enter_context(
                built(source, {**env, "GATEWAY_STORE": f"s3://journal-{name}"}, journal)
            )
        on, off = gateways["on"], gateways["off"]
        on.admin("POST", "/flush")
        print(f"{count} records, {_size(source) / 1e6:.0f} MB, {PUT_S * 1e3:.0f} ms a PUT")
        if "writes" in options.only:
            side_by_side(on, off, options.seconds, options.rounds)
        off.stop()
        if "acks" in options.only:
            acknowledgements(on, options.seconds, options.rounds)
        if "bytes" in options.only:
            beside_litestream(on, source, options.seconds)
        if "requests" in options.only:
            requests(on, proxy, options.seconds * 3)
        if "lag" in options.only:
            lag(on, proxy, options.seconds * 2, options.away)
        if "boot" in options.only:
            boots(on, options.rounds)


if __name__ == "__main__":
    main()
