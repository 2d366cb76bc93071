"""What do keys cost, and what do strangers with wrong ones? One run, wrk and a flood, one Chroma.

Each case is asked of one gateway without keys and of one with ten thousand, in turns; the median of the rounds counts.
No test: nothing here fails for being slow.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import socket
import statistics
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

from gateway.auth.keyring import Keyring
from gateway.errors import Unauthorized
from tests.bench_proxy import BASE, Case, Result, embeddings, fill, wrk
from tests.gateway_process import Gateway, gateway_process
from tests.keys import Keys


def asked(port: int, case: Case, token: str | None, connections: int, seconds: float, directory: Path) -> Result:
    """`wrk` with a token."""
    from tests import bench_proxy

    lua = bench_proxy.LUA
    if token:
        header = f'headers["Authorization"] = "Bearer {token}"\nwrk.headers = headers\nlocal number = 0'
        bench_proxy.LUA = lua.replace("local number = 0", header)
    try:
        return wrk(port, case, connections, seconds, directory)
    finally:
        bench_proxy.LUA = lua


def flood(port: int, rate: int, stop: Event, sent: "Synchronized[int]") -> None:
    """Wrong keys, `rate` a second, each another one, pipelined on four connections, until told to stop."""
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
    number, began = 0, time.monotonic()
    while not stop.is_set():
        for connection in connections:
            ask = b"".join(
                b"GET /api/v2/tenants/default_tenant HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
                b"cgw_%012x_%043x\r\n\r\n" % (number + each, number + each)
                for each in range(25)
            )
            number += 25
            connection.sendall(ask)
        for connection in connections:
            got = 0
            while got < 25:
                got += connection.recv(1 << 16).count(b"HTTP/1.1 401")
        sent.value = number
        ahead = began + number / rate - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)


def cpu_s(pid: int | None) -> float:
    """What a process has used of the processors."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timing(token: str, file: Path) -> None:
    """Print how long the right key and several wrong ones take to be told apart; the order changes each time."""
    ring = Keyring("an-admin-token", file=file)
    id_, secret = token[4:16], token[17:]
    asked = {
        "right": token,
        "unknown id": f"cgw_{'0' * 12}_{secret}",
        "right id, wrong from the first": f"cgw_{id_}_{'x' * 43}",
        "right id, wrong at the last": token[:-1] + ("A" if token[-1] != "A" else "B"),
        "no token of ours": "x" * len(token),
    }
    took: dict[str, list[int]] = {name: [] for name in asked}
    for _ in range(40_000):
        for name, each in random.sample(list(asked.items()), len(asked)):
            began = time.perf_counter_ns()
            with contextlib.suppress(Unauthorized):
                ring.find(each)
            took[name].append(time.perf_counter_ns() - began)
    for name, values in took.items():
        quarters = statistics.quantiles(values, n=4)
        print(f"{name}: median {quarters[1]:,.0f} ns, quartiles {quarters[0]:,.0f} to {quarters[2]:,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--flood", type=int, default=10_000, help="wrong keys a second")
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench")))
        keys = Keys(directory / "keys.json")
        keys.add_many(9_990)
        tokens: dict[str, str | None] = {
            "no keys": None,
            "a key": keys.add("plain", "writer"),
            "a key with a scope": keys.add("scoped", "writer", tenants=["default_*"], collections=["read*"]),
        }
        gateways: dict[str, Gateway] = {
            "open": stack.enter_context(gateway_process()).start(),
            "closed": stack.enter_context(gateway_process(GATEWAY_KEYS_FILE=str(keys.path))).start(),
        }
        query = json.dumps({"query_embeddings": embeddings(1, 3), "n_results": 10})
        ids = {name: fill(built.chroma_port) for name, built in gateways.items()}
        for name in ("heartbeat", "query"):
            got: dict[str, list[Result]] = {who: [] for who in tokens}
            used: dict[str, list[float]] = {who: [] for who in tokens}
            for turn in range(options.rounds):
                for who in list(tokens) if turn % 2 == 0 else list(tokens)[::-1]:
                    where = "closed" if tokens[who] else "open"
                    case = Case("heartbeat", "GET", "/api/v2/heartbeat")
                    if name == "query":
                        case = Case("query", "POST", f"{BASE}/{ids[where]}/query", query)
                    pid = gateways[where].pid("gateway")
                    before_s = cpu_s(pid)
                    got[who].append(
                        asked(gateways[where].port, case, tokens[who], options.connections, options.seconds, directory)
                    )
                    requests = got[who][-1].per_second * options.seconds
                    used[who].append((cpu_s(pid) - before_s) / requests * 1e6)
            base = statistics.median(each.per_second for each in got["no keys"])
            for who, results in got.items():
                rate = statistics.median(each.per_second for each in results)
                p50 = statistics.median(each.p50_ms for each in results)
                print(
                    f"| {name} | {who} | {rate:,.0f} req/s | {rate / base:.3f} | p50 {p50:.2f} ms "
                    f"| {statistics.median(used[who]):.1f} µs of the gateway's processor |",
                    flush=True,
                )
        timing(tokens["a key"] or "", keys.path)
        port = gateways["closed"].port
        case = Case("query", "POST", f"{BASE}/{ids['closed']}/query", query)
        for rate in (0, options.flood):
            stop, sent = multiprocessing.Event(), multiprocessing.Value("q", 0)
            process = multiprocessing.Process(target=flood, args=(port, rate or 1, stop, sent))
            if rate:
                process.start()
            began = time.monotonic()
            result = asked(port, case, tokens["a key"], 1, options.seconds, directory)
            took_s = time.monotonic() - began
            if rate:
                print(f"wrong keys a second: {sent.value / took_s:,.0f}")
                stop.set()
                process.join()
            print(f"query with a right key, 1 connection: {result.per_second:,.0f} req/s, p50 {result.p50_ms:.2f} ms")


if __name__ == "__main__":
    main()
