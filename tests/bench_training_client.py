"""How fast the training client is, how much memory it takes, and which form of an embedding is the smallest.

    .venv/bin/python -m tests.bench_training_client [--records 100000] [--dimension 768]

Each step is a process of its own, so that its memory can be measured. The vectors are random, around 100 centers.
"""

import argparse
import base64
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from tests.gateway_process import ROOT, gateway_process

CLIENT = ROOT / "clients/python"
LOG = """
import sys
import numpy as np
import chroma

records, dimension, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
numbers = np.random.default_rng(0)
centers = numbers.normal(size=(100, dimension)).astype(np.float32)
session = chroma.TrainingSession(embedding_set={"model": "bench"})
session.bufferlocal(path)
for number in range(records):
    embedding = centers[number % 100] + numbers.normal(scale=0.5, size=dimension).astype(np.float32)
    session.log(input_uri=f"/images/{number}.png", embedding=embedding, inferences={"label": number % 100})
"""
QUERY = """
import sys, time
import numpy as np
import chroma

dimension, url = int(sys.argv[1]), sys.argv[2]
session = chroma.QuerySession(embedding_set={"model": "bench"}, chroma_url=url, patience_s=60)
embeddings = np.random.default_rng(1).normal(size=(100, dimension)).astype(np.float32)
session.log(input_uri="first", embedding=embeddings[0])
for number, embedding in enumerate(embeddings):
    started = time.perf_counter()
    session.log(input_uri=f"/camera/{number}.png", embedding=embedding)
    print(time.perf_counter() - started)
"""
UPLOAD = """
import sys
from chroma.__main__ import main

main(["upload-training", f"-chroma_url={sys.argv[1]}", sys.argv[2]])
"""
# What a process has that has done nothing else.
NOTHING = "import chroma"
# Linux counts the memory of a process from its exec on in VmHWM; ru_maxrss would have that of this process too.
MEMORY = """
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def run(code: str, *arguments: str) -> tuple[float, float, float, list[str]]:
    """Run `code`: seconds, seconds of the processor, the most memory in MB, the lines that it printed."""
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", code + MEMORY, *arguments],
            env=os.environ | {"PYTHONPATH": str(CLIENT)},
            stdout=output,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        assert status == 0
        output.seek(0)
        *printed, memory = output.read().decode().splitlines()
        return seconds, usage.ru_utime + usage.ru_stime, int(memory) / 1024, printed


def sizes(dimension: int) -> None:
    """Bytes of 1000 embeddings in each form, and what the server says to it."""
    vectors = np.random.default_rng(0).normal(size=(1000, dimension)).astype(np.float32)
    as_base64 = json.dumps([base64.b64encode(row.tobytes()).decode() for row in vectors]).encode()
    as_text = json.dumps([[float(str(number)) for number in row] for row in vectors], separators=(",", ":")).encode()
    for name, body in (("numbers as text", as_text), ("base64", as_base64)):
        squeezed = len(gzip.compress(body, 6))
        print(f"{name}: {len(body) / 1e6:.2f} MB, in gzip {squeezed / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=768)
    options = parser.parse_args()
    sizes(options.dimension)
    with gateway_process(GATEWAY_JOURNAL_INTERVAL_S="1") as gateway:
        gateway.start()
        path = Path(gateway.directory) / "buffer.jsonl"
        print(f"import: {run(NOTHING)[2]:.0f} MB")
        seconds, cpu, memory, _ = run(LOG, str(options.records), str(options.dimension), str(path))
        print(
            f"log: {seconds:.1f} s, {cpu:.1f} s CPU, {memory:.0f} MB, file {path.stat().st_size / 1e6:.0f} MB",
            flush=True,
        )
        for name in ("upload", "upload again"):
            seconds, cpu, memory, answer = run(UPLOAD, gateway.url, str(path))
            print(f"{name}: {seconds:.1f} s, {cpu:.1f} s CPU, {memory:.0f} MB, {answer}", flush=True)
        *_, printed = run(QUERY, str(options.dimension), gateway.url)
        times = sorted(map(float, printed))
        print(f"QuerySession.log: p50 {statistics.median(times) * 1000:.0f} ms, p90 {times[89] * 1000:.0f} ms")
        name = f"{gateway.url}/api/v2/tenants/default_tenant/databases/default_database/collections?limit=1"
        print(httpx.get(name).json()[0]["metadata"])


if __name__ == "__main__":
    main()
