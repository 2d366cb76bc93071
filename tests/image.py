"""Holds the image to what it promises, on any Docker engine: see scripts/test-image.

Every step prints what it measured; the first that fails prints the container's log and ends with 1.
Where the engine has a bridge, ports are published and the store is a volume; where it has none (a private
engine in a sandbox), containers use the host's network, and the store is a real S3 server on loopback.
"""

import argparse
import itertools
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chromadb
import httpx
import numpy as np
from chromadb.api import ClientAPI

from tests.ports import free_port
from tests.servers import ministack

ROOT = Path(__file__).parents[1]
DIMENSIONS = 384
BATCH = 1000
READY_TIMEOUT_S = 300
GRACE_S = 10
COMEBACK_S = 60
CHROMA = "gateway.chroma.native"  # the module that becomes `chroma run`


def docker(*arguments: str, check: bool = True, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `docker …`; its output is kept."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)
    if check and done.returncode:
        sys.exit(f"docker {' '.join(arguments)}: {done.stderr.strip()}")
    return done


@dataclass
class Engine:
    """Where containers run, and what all of them share."""

    image: str
    memory: str
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    prefix: str = field(default_factory=lambda: f"gateway-test-{secrets.token_hex(3)}")
    store_env: dict[str, str] = field(default_factory=dict)
    store_volume: str | None = None
    numbers: Iterator[int] = field(default_factory=itertools.count)
    containers: list["Container"] = field(default_factory=list)

    @property
    def has_bridge(self) -> bool:
        return "bridge" in docker("network", "ls", "--format", "{{.Name}}").stdout.split()

    def use_volume(self) -> None:
        self.store_volume = f"{self.prefix}-store"
        self.store_env = {"GATEWAY_STORE": "file:///store", "GATEWAY_SNAPSHOT_ON_EXIT": "true"}

    def start(self, **env: str) -> "Container":
        """A new container with an empty /data."""
        container = Container(self, f"{self.prefix}-{next(self.numbers)}", free_port())
        self.containers.append(container)
        variables = {"GATEWAY_ADMIN_TOKEN": self.token, **self.store_env, **env}
        arguments = ["run", "--detach", "--name", container.name, "--read-only", "--memory", self.memory]
        arguments += ["--memory-swap", self.memory, "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        arguments += ["--tmpfs", "/tmp", "--tmpfs", "/run", "--volume", f"{container.name}-data:/data"]
        if self.store_volume:
            arguments += ["--volume", f"{self.store_volume}:/store"]
        if self.has_bridge:
            arguments += ["--publish", f"127.0.0.1:{container.port}:8000"]
        else:
            arguments += ["--network", "host"]
            variables |= {"PORT": str(container.port), "GATEWAY_CHROMA_PORT": str(free_port())}
        for name, value in variables.items():
            arguments += ["--env", f"{name}={value}"]
        container.started = time.monotonic()
        docker(*arguments, self.image)
        return container

    def clean(self) -> None:
        for container in self.containers:
            docker("rm", "--force", "--volumes", container.name, check=False)
            docker("volume", "rm", f"{container.name}-data", check=False)
        if self.store_volume:
            docker("volume", "rm", self.store_volume, check=False)


@dataclass
class Container:
    """One container of the image."""

    engine: Engine
    name: str
    port: int
    started: float = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> ClientAPI:
        headers = {"Authorization": f"Bearer {self.engine.token}"}
        return chromadb.HttpClient(host="127.0.0.1", port=self.port, headers=headers)

    def admin(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.engine.token}"}
        return httpx.request(method, f"{self.url}/admin{path}", headers=headers, timeout=120, **kwargs)

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def is_running(self) -> bool:
        return bool(self.inspect("{{.State.Running}}") == "true")

    def until_ready(self) -> float:
        """Seconds from `docker run` to ready."""
        until(lambda: self.is_ready() or not self.is_running(), READY_TIMEOUT_S, f"{self.name} is ready")
        if not self.is_ready():
            sys.exit(f"{self.name} ended with status {self.inspect('{{.State.ExitCode}}')} before it was ready")
        return time.monotonic() - self.started

    def count(self) -> int:
        return self.client().get_collection("records", embedding_function=None).count()

    def can_read(self) -> bool:
        """Whether a record with its vector can be had. Asked without retries, to see what a client sees."""
        try:
            notes = self.client().get_collection("records", embedding_function=None)
            return len(notes.query(query_embeddings=[[0.0] * DIMENSIONS], n_results=1)["ids"][0]) == 1
        except Exception:
            return False

    def write(self, first: int, records: int) -> None:
        """Add `records` with vectors made of their numbers."""
        collection = self.client().get_or_create_collection("records", embedding_function=None)
        for start in range(first, first + records, BATCH):
            numbers = range(start, min(start + BATCH, first + records))
            collection.add(
                ids=[str(number) for number in numbers],
                embeddings=np.stack([vector(number) for number in numbers]),
                documents=[f"record {number}" for number in numbers],
                metadatas=[{"number": number} for number in numbers],
            )

    def has(self, records: int) -> None:
        """Fail unless exactly the records below `records` are here, and the last and some others exact."""
        collection = self.client().get_collection("records", embedding_function=None)
        expect(collection.count() == records, f"{collection.count()} records instead of {records}")
        for number in {0, records // 3, records - 1}:
            found = collection.get(ids=[str(number)], include=["embeddings", "documents", "metadatas"])
            assert found["embeddings"] is not None
            assert found["documents"] is not None
            assert found["metadatas"] is not None
            expect(found["documents"][0] == f"record {number}", f"document {number}")
            expect(found["metadatas"][0]["number"] == number, f"metadata of {number}")
            expect(bool(np.array_equal(np.float32(found["embeddings"][0]), vector(number))), f"vector {number}")
            # An index over random vectors is approximate: the nearest may be another, its distance may not.
            nearest = collection.query(query_embeddings=[vector(number)], n_results=1, include=["distances"])
            assert nearest["distances"] is not None
            distance = float(np.sum((vector(number) - vector(int(nearest["ids"][0][0]))) ** 2))
            expect(abs(nearest["distances"][0][0] - distance) <= 1e-3 * max(distance, 1), f"a distance to {number}")

    def refuses_writes(self) -> bool:
        try:
            self.client().get_or_create_collection("who-writes", embedding_function=None).upsert(
                ids=["1"], embeddings=[[1.0, 2.0]]
            )
        except Exception:
            return True
        return False

    def inspect(self, form: str) -> str:
        return docker("inspect", "--format", form, self.name).stdout.strip()

    def execute(self, *command: str) -> str:
        return docker("exec", self.name, *command).stdout.strip()

    def processes(self) -> list[tuple[int, str, str]]:
        """(process id in the container, state, command) of each process."""
        script = """
import pathlib
for directory in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        state = (directory / "stat").read_text().rpartition(")")[2].split()[0]
        command = (directory / "cmdline").read_text().replace(chr(0), " ")
    except OSError:
        continue
    print(directory.name, state, " ".join(command.split()), sep=chr(9))
"""
        lines = self.execute("python", "-I", "-c", script).splitlines()
        rows = [line.split("\t") for line in lines]
        return [(int(row[0]), row[1], row[2] if len(row) > 2 else "") for row in rows]

    def log(self) -> str:
        done = docker("logs", self.name, check=False)
        return done.stdout + done.stderr

    def stop(self) -> tuple[float, int]:
        """`docker stop` with the usual grace: seconds, and the exit status."""
        begun = time.monotonic()
        docker("stop", "--time", str(GRACE_S), self.name)
        return time.monotonic() - begun, int(self.inspect("{{.State.ExitCode}}"))


def vector(number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(number).standard_normal(DIMENSIONS, dtype=np.float32)


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Ask ten times a second until `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        expect(time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.1)


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def say(what: str, **figures: Any) -> None:
    print("ok  ", what, " ".join(f"{name}={value}" for name, value in figures.items()), flush=True)


# ---------------------------------------------------------------------- steps


def image_is_small(engine: Engine) -> None:
    """Says how large the image is and what of it is largest."""
    size = int(docker("image", "inspect", "--format", "{{.Size}}", engine.image).stdout)
    script = "du -sm /opt/gateway/lib/python3*/site-packages/* /home/gateway/.cache 2>/dev/null | sort -rn | head -10"
    largest = docker("run", "--rm", "--network", "none", "--entrypoint", "sh", engine.image, "-c", script).stdout
    say("the image", size_mb=round(size / 1e6), largest_mib=json.dumps([line.split() for line in largest.splitlines()]))


def is_closed_by_default(engine: Engine) -> None:
    """Without a key it does not start: it listens where others can reach it."""
    done = docker("run", "--rm", "--network", "none", engine.image, check=False)
    expect(done.returncode == 2 and "GATEWAY_ADMIN_TOKEN" in done.stdout + done.stderr, done.stdout + done.stderr)
    say("without a key it does not start", status=done.returncode)


def starts(engine: Engine, max_start_s: float) -> Container:
    """Ready on empty data, as another user than root, on a root that cannot be written to."""
    container = engine.start()
    took_s = container.until_ready()
    say("ready on empty data", seconds=f"{took_s:.2f}")
    expect(took_s <= max_start_s, f"it took more than {max_start_s} s")
    expect(container.execute("id", "-u") != "0", "it runs as root")
    refused = docker("exec", container.name, "touch", "/opt/gateway/x", "/home/gateway/x", check=False)
    expect(refused.returncode != 0 and "Read-only" in refused.stderr, f"the root can be written to: {refused.stderr}")
    first = {pid: command for pid, _, command in container.processes()}[1]
    expect("tini" in first, f"process 1 is {first}")
    expect(httpx.get(f"{container.url}/api/v2/tenants/default_tenant", timeout=10).status_code == 401, "it is open")
    until(lambda: container.inspect("{{.State.Health.Status}}") == "healthy", 30, "the engine calls it healthy")
    say("not root, read-only root, an init that reaps, closed to strangers, healthy", memory=engine.memory)
    return container


def keeps_everything(engine: Engine, container: Container, records: int) -> Container:
    """Stopped with grace it leaves a final snapshot, from which a new container has everything."""
    begun = time.monotonic()
    container.write(0, records)
    say("written with HttpClient", records=records, seconds=f"{time.monotonic() - begun:.1f}")
    # With much to save the grace would not do: what a schedule would have saved before is saved before.
    expect(container.admin("POST", "/snapshot").status_code == 201, "a snapshot could not be taken")
    container.write(records, BATCH)
    seconds, status = container.stop()
    expect(status == 0, f"docker stop ended with {status}")
    expect(seconds < GRACE_S, f"docker stop took {seconds:.1f} s")
    say("docker stop", seconds=f"{seconds:.2f}", status=status)
    after = engine.start()
    took_s = after.until_ready()
    after.has(records + BATCH)
    size = after.admin("GET", "/snapshot/latest").json()["size_bytes"]
    say("a new container has everything", seconds=f"{took_s:.2f}", restored_mb=round(size / 1e6))
    return after


def loses_nothing_that_is_stored(engine: Engine, container: Container, records: int) -> Container:
    """Killed without grace, a new container has what was flushed, and its log says from where."""
    expect(container.admin("POST", "/snapshot").status_code == 201, "a snapshot could not be taken")
    container.write(records, BATCH)
    flushed = container.admin("POST", "/flush")
    expect(flushed.is_success, f"it could not be flushed: {flushed.text}")
    docker("kill", container.name)
    after = engine.start()
    took_s = after.until_ready()
    after.has(records + BATCH)
    latest = after.admin("GET", "/snapshot/latest").json()
    told = [line for line in after.log().splitlines() if latest["id"] in line]
    expect(bool(told), "the log does not say what was restored")
    say("docker kill lost nothing that was stored", seconds=f"{took_s:.2f}", log=told[0])
    return after


def comes_back(container: Container) -> None:
    """A killed Chroma is started again; meanwhile nothing says 200 for what cannot be read."""
    pids = [pid for pid, _, command in container.processes() if CHROMA in command]
    expect(len(pids) == 1, f"not one Chroma: {pids}")
    begun = time.monotonic()
    container.execute("python", "-I", "-c", f"import os; os.kill({pids[0]}, 9)")
    back_s = watch(container, begun)
    expect(back_s is not None, "the container ended")
    zombies = [row for row in container.processes() if row[1] == "Z"]
    expect(not zombies, f"nobody reaped {zombies}")
    say("a killed Chroma comes back", seconds=f"{back_s:.2f}")


def watch(container: Container, begun: float) -> float | None:
    """Seconds until it can be read and is ready again, None if the container ended.

    Fails if it called itself ready for two seconds in a row while nothing could be read.
    """
    lying_since: float | None = None
    while time.monotonic() - begun < COMEBACK_S:
        ready, readable = container.is_ready(), container.can_read()
        if ready and readable:
            return time.monotonic() - begun
        if not container.is_running():
            return None
        now = time.monotonic()
        lying_since = (lying_since or now) if ready else None
        expect(lying_since is None or now - lying_since < 2, "it says 200 and cannot be read")
        time.sleep(0.05)
    expect(not container.is_ready(), "it says 200 and cannot be read")
    raise AssertionError(f"neither back nor ended within {COMEBACK_S} s")


def survives_oom(engine: Engine, memory: str) -> None:
    """Out of memory, it comes back or ends: it never stays and answers 200 for what is not there."""
    usual, engine.memory = engine.memory, memory
    try:
        container = engine.start(GATEWAY_RESTORE="none", GATEWAY_USER_ID="oom", GATEWAY_SNAPSHOT_ON_EXIT="false")
    finally:
        engine.memory = usual
    container.until_ready()
    container.write(0, BATCH)
    # Something in the container takes all memory, while records are written: the kernel chooses whom it kills.
    before = {pid for pid, _, command in container.processes() if CHROMA in command}
    hog = "import os\nkeep = []\nwhile True: keep.append(b'x' * 2**20)"
    docker("exec", "--detach", container.name, "python", "-I", "-c", hog)
    writes = 0
    begun = time.monotonic()
    while time.monotonic() - begun < 90 and container.is_running():
        writes += 1
        try:
            container.write(writes * BATCH * 5, BATCH * 5)
        except Exception:
            break
    back_s = watch(container, time.monotonic())
    oom = container.inspect("{{.State.OOMKilled}}")
    if back_s is None:
        status = int(container.inspect("{{.State.ExitCode}}"))
        expect(status != 0, "it ended with 0")
        say("out of memory, the container ended", status=status, memory=memory, oom_killed=oom)
        return
    after = {pid for pid, _, command in container.processes() if CHROMA in command}
    say(
        "out of memory, it serves again",
        seconds=f"{back_s:.2f}",
        memory=memory,
        chroma_restarted=before != after,
        oom_killed=oom,
    )


def one_writer(engine: Engine, older: Container) -> None:
    """Of two containers on one prefix exactly one accepts writes, and the newer one has what the older took."""
    older.write(10_000_000, BATCH)
    records = older.count()
    newer = engine.start()
    took_s = newer.until_ready()
    until(older.refuses_writes, 30, "the older one turns writes away")
    expect(not newer.refuses_writes(), "the newer one turns writes away")
    expect(older.refuses_writes(), "both accept writes")
    expect(newer.count() == records, f"the newer one has {newer.count()} records, not {records}")
    say("two containers on one prefix: one writer", handover_s=f"{took_s:.2f}")
    for container in (older, newer):
        _, status = container.stop()
        expect(status == 0, f"{container.name} ended with {status}")


@contextmanager
def stores(engine: Engine, which: str) -> Iterator[None]:
    """Point `engine` at a store: an S3 server of this machine, or a volume."""
    if which == "volume":
        engine.use_volume()
        yield
        return
    with ministack() as server:
        server.make_bucket("snapshots")
        engine.store_env = {
            **server.env,
            "GATEWAY_STORE": "s3://snapshots/test",
        }
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", help="one that is there already, instead of building")
    parser.add_argument("--memory", default="512m")
    parser.add_argument("--records", type=int, default=5_000, help=f"of {DIMENSIONS} dimensions")
    parser.add_argument(
        "--max-start", type=float, default=5, help="seconds to ready on empty data; more where it is busy"
    )
    parser.add_argument("--store", choices=("s3", "volume"))
    parser.add_argument("--oom", default="300m", help="memory of the container that runs out of it; 0 leaves it out")
    options = parser.parse_args()

    image = options.image or "chroma-gateway:test"
    engine = Engine(image, options.memory)
    bridge = engine.has_bridge
    if not options.image:
        arguments = ["build", "--tag", image, *([] if bridge else ["--network", "host"]), str(ROOT)]
        begun = time.monotonic()
        built = docker(*arguments, check=False, timeout_s=3600)
        warnings = [line for line in (built.stdout + built.stderr).splitlines() if "WARNING: the embedding" in line]
        if built.returncode:
            sys.exit((built.stdout + built.stderr)[-5000:])
        say("built", seconds=f"{time.monotonic() - begun:.0f}", warnings=json.dumps(sorted(set(warnings))))
    which = options.store or ("volume" if bridge else "s3")
    if which == "s3" and bridge:
        sys.exit("--store s3 needs an engine whose containers use the host's network")
    with ExitStack() as stack:
        stack.callback(engine.clean)
        stack.enter_context(stores(engine, which))
        try:
            image_is_small(engine)
            is_closed_by_default(engine)
            container = starts(engine, options.max_start)
            container = keeps_everything(engine, container, options.records)
            container = loses_nothing_that_is_stored(engine, container, options.records + BATCH)
            comes_back(container)
            one_writer(engine, container)
            if options.oom != "0":
                survives_oom(engine, options.oom)
        except Exception as error:
            for container in engine.containers:
                print(f"---- {container.name}\n{container.log()[-4000:]}", file=sys.stderr)
            sys.exit(f"FAILED: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
