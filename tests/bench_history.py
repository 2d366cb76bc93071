"""What do operations cost when a store has many snapshots? The store is an S3 server on this machine.

One snapshot is taken by a gateway, and copied as often as wanted: each copy has an id and a pack of its own, and a
manifest of about 4.7 KB. A gateway is started on each such store, and each operation is timed as a client sees it. In
brackets is what the gateway took of the processor, which other work on the machine changes little. The revision before
a change can run on the same stores. No test: nothing here fails for being slow.
"""

import argparse
import hashlib
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from gateway.snapshot.model import Manifest, Pack, SnapshotCollection, new_snapshot_id
from tests.gateway_process import ADMIN_TOKEN, ROOT, Gateway, gateway_process
from tests.servers import S3Server, ministack, rclone_in

BUCKET, USER = "bench", "users/default/vectorstore"
MANIFEST_BYTES = 4700
TURNS = 5
KEPT = 10
TIMEOUT_S = 900
DIM = 8


class Cost(NamedTuple):
    """Seconds until the answer came, and seconds of the processor that the gateway took for it."""

    passed_s: float
    processor_s: float


Row = dict[str, Cost | float]


def records(first: int) -> dict[str, Any]:
    numbers = range(first, first + 10)
    return {"ids": [f"r{each}" for each in numbers], "embeddings": [[float(each)] * DIM for each in numbers]}


def template(directory: Path) -> None:
    """A data directory and a store with one snapshot of it, as a gateway leaves them."""
    with gateway_process(GATEWAY_STORE=f"file://{directory}/store", GATEWAY_DATA_DIR=f"{directory}/data") as built:
        built.start()
        built.client().create_collection("bench", embedding_function=None).add(**records(0))
        built.snapshot()
        built.stop()


def grow(store: Path, count: int) -> None:
    """Add snapshots to the one of the template, one an hour before it, until there are `count`."""
    (path,) = (store / USER / "snapshots").glob("*/manifest.json")
    made = Manifest.parse(path.read_bytes(), path.parent.name)
    collection = made.snapshot.collections[0]
    others = list[SnapshotCollection]()
    while len(made.model_copy(update={"snapshot": with_collections(made, others)}).to_bytes()) < MANIFEST_BYTES:
        others.append(collection.model_copy(update={"name": f"other-{len(others)}", "records": 0}))
    for number in range(1, count):
        moment = made.snapshot.created_at - timedelta(hours=number)
        snapshot_id, data = new_snapshot_id(moment, None), f"pack {number} ".encode() * 100
        pack = Pack(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
        snapshot = with_collections(made, others).model_copy(
            update={"id": snapshot_id, "created_at": moment, "label": "scheduled"}
        )
        copy = made.model_copy(update={"snapshot": snapshot, "packs": (*made.packs, pack)})
        put(store / USER / "snapshots" / snapshot_id / "manifest.json", copy.to_bytes())
        put(store / USER / "data" / pack.sha256, data)


def with_collections(made: Manifest, others: list[SnapshotCollection]) -> Any:
    return made.snapshot.model_copy(update={"collections": (*made.snapshot.collections, *others)})


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@contextmanager
def served(kind: str, store: Path) -> Iterator[S3Server]:
    """An S3 server that has the objects of `store`."""
    if kind == "rclone":
        with tempfile.TemporaryDirectory(dir=store.parent) as buckets:
            shutil.copytree(store, Path(buckets) / BUCKET)
            with rclone_in(Path(buckets)) as server:
                yield server
    else:
        with ministack() as server:
            server.make_bucket(BUCKET)
            # It takes requests without a signature, and botocore would take most of the time.
            client = http.client.HTTPConnection("127.0.0.1", server.port)
            for path in store.rglob("*"):
                if path.is_file():
                    client.request("PUT", f"/{BUCKET}/{path.relative_to(store)}", path.read_bytes())
                    with client.getresponse() as answer:
                        assert answer.read() == b""
            client.close()
            yield server


class Timed:
    """Requests to one gateway, of which the seconds are kept."""

    def __init__(self, built: Gateway) -> None:
        self._built, self._process = built, Path(f"/proc/{built.pid('gateway')}/stat")
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        self._client = httpx.Client(base_url=f"{built.url}/admin", headers=headers, timeout=TIMEOUT_S)

    def cost(self, method: str, path: str, **body: Any) -> Cost:
        started, processor_s = time.monotonic(), self._processor_s()
        answer = self._client.request(method, path, **body)
        passed_s = time.monotonic() - started
        answer.raise_for_status()
        return Cost(passed_s, self._processor_s() - processor_s)

    def snapshot(self, first: int) -> Cost:
        """A snapshot with ten new records."""
        self._built.client().get_collection("bench", embedding_function=None).add(**records(first))
        return self.cost("POST", "/snapshot", json={})

    def _processor_s(self) -> float:
        user, system = self._process.read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def measured(kind: str, code: Path, made: Path, count: int) -> Row:
    """Seconds of each operation by the gateway in `code`, on a store with `count` snapshots."""
    row: Row = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=ROOT / "var/bench")))
        shutil.copytree(made, directory / "made")
        grow(directory / "made/store", count)
        server = stack.enter_context(served(kind, directory / "made/store"))
        env = {"GATEWAY_STORE": f"s3://{BUCKET}", "GATEWAY_SNAPSHOT_ON_EXIT": "false", **server.env}
        built = stack.enter_context(
            gateway_process(GATEWAY_DATA_DIR=f"{directory}/made/data", GATEWAY_GC_GRACE_S="0", **env)
        )
        built.env["PYTHONPATH"] = str(code)
        if not (code / "gateway/journal").exists():  # A revision without the journal refuses its settings.
            built.env.pop("GATEWAY_JOURNAL_INTERVAL_S")
        built.command[-1] = str(code / "supervisord.conf")
        started = time.monotonic()
        timed = Timed(built.start())
        row["start, until ready"] = time.monotonic() - started
        row["`GET /admin/status`, first call"] = timed.cost("GET", "/status")
        row["`POST /admin/snapshot`, ten new records, first"] = timed.snapshot(100)
        row["the same, median of 5 more"] = median(timed.snapshot(200 + 10 * each) for each in range(TURNS))
        row["`GET /admin/snapshot?limit=100`, first"] = timed.cost("GET", "/snapshot?limit=100")
        row["the same again, median of 5"] = median(timed.cost("GET", "/snapshot?limit=100") for _ in range(TURNS))
        row["`POST /admin/gc`, nothing to drop, first of all: no manifest was ever read"] = timed.cost("POST", "/gc")
        row["the same again"] = timed.cost("POST", "/gc")
        oldest = new_snapshot_id(oldest_moment(made, count), None)
        row["`DELETE /admin/snapshot/{id}`"] = timed.cost("DELETE", f"/snapshot/{oldest}") if count > 1 else 0.0
        row["memory of the gateway, MB"] = memory_mb(built)
        built.stop()
        shutil.rmtree(directory / "made/data")
        row["the same gc, first after a start on an empty disk"] = Timed(built.start()).cost("POST", "/gc")
        built.stop()
        built.env["GATEWAY_KEEP_LAST"] = str(KEPT)
        timed = Timed(built.start())
        row[f"`POST /admin/gc`, first after a start, drops all but {KEPT}"] = timed.cost("POST", "/gc")
        built.stop()
    return row


def oldest_moment(made: Path, count: int) -> Any:
    (path,) = (made / "store" / USER / "snapshots").glob("*/manifest.json")
    return Manifest.parse(path.read_bytes(), path.parent.name).snapshot.created_at - timedelta(hours=count - 1)


def median(costs: Iterable[Cost]) -> Cost:
    return Cost(*map(statistics.median, zip(*costs, strict=True)))


def memory_mb(built: Gateway) -> float:
    status = Path(f"/proc/{built.pid('gateway')}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1e3


@contextmanager
def code_of(revision: str) -> Iterator[Path]:
    """The files of a revision, for the time of the block."""
    with tempfile.TemporaryDirectory() as directory:
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", directory], input=archive.stdout, check=True)
        yield Path(directory)


def table(columns: dict[str, Row]) -> str:
    names = list(next(iter(columns.values())))
    lines = ["| seconds | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cell(row[name]) for row in columns.values()) + " |" for name in names]
    return "\n".join(lines)


def cell(value: Cost | float) -> str:
    return f"{value.passed_s:.2f} ({value.processor_s:.2f})" if isinstance(value, Cost) else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 1000, 10_000])
    parser.add_argument("--server", choices=["ministack", "rclone"], default="ministack")
    parser.add_argument("--other", metavar="REVISION", help="measure this revision of the gateway too")
    asked = parser.parse_args()
    (ROOT / "var/bench").mkdir(parents=True, exist_ok=True)
    columns: dict[str, Row] = {}
    with ExitStack() as stack:
        codes = {"": ROOT}
        if asked.other:
            codes = {f", {asked.other}": stack.enter_context(code_of(asked.other)), "": ROOT}
        made = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=ROOT / "var/bench")))
        template(made)
        for count in asked.counts:
            for name, code in codes.items():
                columns[f"{count:,}{name}"] = row = measured(asked.server, code, made, count)
                print(json.dumps({f"{count}{name}": row}), file=sys.stderr, flush=True)
    print(table(columns))


if __name__ == "__main__":
    main()
