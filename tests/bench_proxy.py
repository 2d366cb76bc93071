"""How fast is the gateway beside nginx and beside nothing? One run, one machine, wrk for all three.

Reads go to one Chroma: straight, through nginx, and through the gateway whose Chroma it is. Adds compare
with a second Chroma in its default mode, straight and through nginx, for the mode that the gateway gives
its own is part of what it is for. Each add case has fresh collections. Rounds alternate between the three,
and the median counts. No test: nothing here fails for being slow.
"""

import argparse
import getpass
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import chromadb
import httpx
import numpy as np

from tests.bare_chroma import bare_chroma
from tests.gateway_process import gateway_process
from tests.ports import free_port

DIM = 384
RECORDS = 5000
CONNECTIONS = (1, 16, 64)
MIXED_REQUESTS = 300_000
IDLE_CLIENTS = 1000
BASE = "/api/v2/tenants/default_tenant/databases/default_database/collections"

# Asks CASE_METHOD CASE_PATH with the body in CASE_BODY; in it, @ becomes a number that never comes back.
LUA = """
local function read(name) local f = io.open(name); local s = f:read("*a"); f:close(); return s end
local method, path, body = os.getenv("CASE_METHOD"), os.getenv("CASE_PATH"), read(os.getenv("CASE_BODY"))
local headers = {["Content-Type"] = "application/json"}
local number = 0
wrk.method, wrk.path = method, path
if method == "POST" then wrk.headers, wrk.body = headers, body end
if string.find(body, "@", 1, true) then
  request = function()
    number = number + 1
    return wrk.format(method, path, headers, (string.gsub(body, "@", tostring(number))))
  end
end
"""

# Run by root, its workers would be somebody else, who may not write bodies into our directory.
NGINX = """
user {user};
worker_processes 1; daemon off; pid {directory}/nginx.pid; error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  client_max_body_size 40m; client_body_buffer_size 1m; keepalive_requests 1000000000;
  upstream chroma {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port} backlog=2048; location / {{
    proxy_pass http://chroma; proxy_http_version 1.1; proxy_set_header Connection "";
    proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }}
}}
"""


class Result(NamedTuple):
    per_second: float
    p50_ms: float


class Case(NamedTuple):
    name: str
    method: str
    path: str
    body: str = ""
    adds: bool = False


def embeddings(records: int, seed: int = 0) -> list[list[float]]:
    return np.random.default_rng(seed).random((records, DIM)).round(4).tolist()


def fill(port: int) -> str:
    """Make the collection that is read; return its id."""
    notes = chromadb.HttpClient(host="127.0.0.1", port=port).create_collection("read", embedding_function=None)
    vectors = embeddings(RECORDS)
    for at in range(0, RECORDS, 500):
        ids = [str(i) for i in range(at, at + 500)]
        texts = [f"document number {i} " * 10 for i in ids]
        notes.add(ids=ids, embeddings=vectors[at : at + 500], documents=texts, metadatas=[{"n": i} for i in ids])
    notes.count()
    return str(notes.id)


def fresh(port: int) -> str:
    """An empty collection for adds; return its id."""
    return str(
        chromadb.HttpClient(host="127.0.0.1", port=port)
        .create_collection(f"adds-{time.monotonic_ns()}", embedding_function=None)
        .id
    )


def adding(records: int) -> str:
    vectors = embeddings(records, 7)
    return json.dumps({"ids": [f"@-{i}" for i in range(records)], "embeddings": vectors})


def wrk(port: int, case: Case, connections: int, seconds: float, directory: Path) -> Result:
    """Load one server with one case. Every answer must be 2xx."""
    script, body = directory / "case.lua", directory / "body.json"
    script.write_text(LUA)
    body.write_text(case.body)
    env = {"PATH": os.environ["PATH"], "CASE_METHOD": case.method, "CASE_PATH": case.path, "CASE_BODY": str(body)}
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "60s", "-s", str(script)]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}"], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert "Non-2xx" not in done, done
    errors = re.search(r"Socket errors: .*", done)
    assert not errors, errors
    rate, p50 = re.search(r"Requests/sec:\s+([\d.]+)", done), re.search(r"50%\s+([\d.]+)(us|ms|s)", done)
    assert rate, done
    assert p50, done
    return Result(float(rate[1]), float(p50[1]) * {"us": 1e-3, "ms": 1, "s": 1e3}[p50[2]])


@contextmanager
def nginx(upstream: int, directory: Path) -> Iterator[int]:
    """Debian's nginx in front of `upstream`, keep-alive on both sides; yields its port."""
    directory.mkdir()
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(directory=directory, port=port, upstream=upstream, user=getpass.getuser()))
    command = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    assert command, "apt-get install nginx-light wrk"
    process = subprocess.Popen([command, "-c", str(config), "-p", str(directory)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                httpx.get(f"http://127.0.0.1:{port}/api/v2/heartbeat")
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def rss_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def compare(cases: list[Case], options: argparse.Namespace, ports: dict[str, dict[str, int]], directory: Path) -> None:
    """Print the table: requests a second and p50, and both as ratios."""
    print("| case | connections | req/s: bare | nginx | gateway | to nginx | to bare | p50: bare | nginx | gateway |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in cases:
        for connections in options.connections:
            results: dict[str, list[Result]] = {name: [] for name in ("bare", "nginx", "gateway")}
            for turn in range(options.rounds):
                order = list(results) if turn % 2 == 0 else list(results)[::-1]
                for name in order:
                    port = ports["adds" if case.adds else "reads"][name]
                    here = case._replace(path=f"{BASE}/{fresh(port)}/add") if case.adds else case
                    # A thousand records take Chroma a good part of a second, and so many clients wait in line.
                    seconds = options.seconds * (5 if case.name == "add-1000" else 1)
                    results[name].append(wrk(port, here, connections, seconds, directory))
            rate = {name: statistics.median(each.per_second for each in got) for name, got in results.items()}
            p50 = {name: statistics.median(each.p50_ms for each in got) for name, got in results.items()}
            print(
                f"| {case.name} | {connections} | {rate['bare']:,.0f} | {rate['nginx']:,.0f} | {rate['gateway']:,.0f} "
                f"| {ratio(rate['gateway'], rate['nginx'])} | {ratio(rate['gateway'], rate['bare'])} "
                f"| {p50['bare']:.2f} ms | {p50['nginx']:.2f} ms | {p50['gateway']:.2f} ms |",
                flush=True,
            )


def ratio(one: float, other: float) -> str:
    """A dash where nothing was answered in time."""
    return f"{one / other:.2f}" if other else "–"


def memory(cases: list[Case], port: int, pid: int, directory: Path) -> None:
    """Print the gateway's memory before, in the middle of and after MIXED_REQUESTS requests."""
    sent = 0
    seen = []
    for turn in range(7):
        goal = (turn * MIXED_REQUESTS) // 6 if turn else 2000
        while sent < goal:
            for case in cases:
                here = case._replace(path=f"{BASE}/{fresh(port)}/add") if case.adds else case
                sent += int(wrk(port, here, 16, 1, directory).per_second)
        seen.append(f"{sent:,}: {rss_kib(pid) / 1024:.1f} MiB")
    print("gateway memory after so many mixed requests:", "; ".join(seen))


def idle_clients(case: Case, port: int, pid: int, directory: Path) -> None:
    """Print what a query costs beside IDLE_CLIENTS keep-alive clients, all of which are then served once more."""
    ask = b"GET /api/v2/heartbeat HTTP/1.1\r\nHost: x\r\n\r\n"
    before, before_kib = wrk(port, case, 16, 2, directory), rss_kib(pid)
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(IDLE_CLIENTS)]
        for _ in range(2):
            for client in clients:
                client.sendall(ask)
            served = sum(client.recv(65536).startswith(b"HTTP/1.1 200") for client in clients)
            beside = wrk(port, case, 16, 2, directory)
        print(
            f"{served} of {IDLE_CLIENTS} idle keep-alive clients served; query beside them "
            f"{beside.per_second / before.per_second:.2f} of the rate without, "
            f"{rss_kib(pid) - before_kib:,} KiB more memory"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="names of cases, memory, idle")
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="*", default=CONNECTIONS)
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench")))
        built = stack.enter_context(gateway_process()).start()
        bare = stack.enter_context(bare_chroma(directory / "bare"))
        gateway_pid = built.pid("gateway")
        assert gateway_pid
        ports = {
            "reads": {
                "bare": built.chroma_port,
                "nginx": stack.enter_context(nginx(built.chroma_port, directory / "nginx-reads")),
                "gateway": built.port,
            },
            "adds": {
                "bare": bare.port,
                "nginx": stack.enter_context(nginx(bare.port, directory / "nginx-adds")),
                "gateway": built.port,
            },
        }
        fill(bare.port)  # so that both have as much to keep
        read = f"{BASE}/{fill(built.port)}"
        ids = json.dumps({"ids": [str(i) for i in range(100)]})
        query = json.dumps({"query_embeddings": embeddings(1, 3), "n_results": 10})
        cases = [
            Case("heartbeat", "GET", "/api/v2/heartbeat"),
            Case("query", "POST", f"{read}/query", query),
            Case("get-100", "POST", f"{read}/get", ids),
            *(Case(f"add-{records}", "POST", "", adding(records), adds=True) for records in (1, 10, 1000)),
        ]
        named = {case.name: case for case in cases}
        chosen = [case for case in cases if not options.only or case.name in options.only]
        if chosen:
            compare(chosen, options, ports, directory)
        if not options.only or "memory" in options.only:
            mixed = [named[name] for name in ("heartbeat", "query", "get-100", "add-10")]
            memory(mixed, built.port, gateway_pid, directory)
        if not options.only or "idle" in options.only:
            idle_clients(named["query"], built.port, gateway_pid, directory)


if __name__ == "__main__":
    main()
