"""What write-ahead logging alone is worth: bare Chroma in its default mode against bare Chroma with the same in WAL.

    .venv/bin/python -m tests.bench_wal [seconds] [rounds]

Adds of 1 and of 10 records of 384 dimensions, from 1 and from 16 connections, no gateway. The two take turns, so
that a noisy machine is noisy to both; the median of the rounds' ratios is what counts.
"""

import json
import statistics
import sys
import tempfile
import threading
import time
from itertools import count
from pathlib import Path

import httpx

from gateway.chroma.database import prepare
from tests.bare_chroma import BareChroma, bare_chroma

DIMENSION = 384
_number = count()


def adds_per_s(chroma: BareChroma, url: str, records: int, connections: int, seconds: float) -> float:
    """Requests answered per second."""
    stop_at, done = time.monotonic() + seconds, [0] * connections
    vector = [0.25] * DIMENSION

    def write(who: int) -> None:
        with httpx.Client(timeout=60) as http:
            while time.monotonic() < stop_at:
                ids = [str(next(_number)) for _ in range(records)]
                body = json.dumps({"ids": ids, "embeddings": [[*vector[1:], float(int(ids[0]) % 97)]] * records})
                http.post(url, content=body, headers={"content-type": "application/json"}).raise_for_status()
                done[who] += 1

    threads = [threading.Thread(target=write, args=(who,)) for who in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / seconds


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    print("| adds of | connections | default, req/s | WAL, req/s | WAL to default |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as default_dir, tempfile.TemporaryDirectory() as wal_dir:
        prepare(Path(wal_dir))
        with bare_chroma(Path(default_dir)) as default, bare_chroma(Path(wal_dir)) as wal:
            for records in (1, 10):
                for connections in (1, 16):
                    rates: dict[BareChroma, list[float]] = {default: [], wal: []}
                    urls = {each: _collection(each, f"r{records}c{connections}") for each in rates}
                    for _ in range(rounds):
                        for each, seen in rates.items():
                            seen.append(adds_per_s(each, urls[each], records, connections, seconds))
                    ratio = statistics.median(b / a for a, b in zip(rates[default], rates[wal], strict=True))
                    shown = [statistics.median(seen) for seen in rates.values()]
                    print(f"| {records} | {connections} | {shown[0]:.0f} | {shown[1]:.0f} | {ratio:.2f} |", flush=True)


def _collection(chroma: BareChroma, name: str) -> str:
    collection = chroma.client().create_collection(name, embedding_function=None)
    base = "/api/v2/tenants/default_tenant/databases/default_database/collections"
    return f"{chroma.url}{base}/{collection.id}/add"


if __name__ == "__main__":
    main()
