"""Broken on purpose: each with its clear error, and nothing lost.

Three gateways are shared. `local` keeps its snapshots in a directory, in which a test can break
anything; `remote` keeps them in S3, behind a proxy that fails as told; `tiny` has a small disk.
What a start makes of a broken store is shown by starts of their own, on copies of `local`'s store.
"""

import asyncio
import hashlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.chroma.disk import ID_MAP, LEVEL0
from gateway.jobs import Progress
from gateway.lease.state import LEASE
from gateway.snapshot.blocks import Layout, parse_patch
from gateway.snapshot.model import FORMAT, Manifest, Piece
from gateway.snapshot.packing import PackWriter, unpack
from gateway.snapshot.plan import plan_restore
from gateway.snapshot.repository import Repository
from gateway.storage import FileStorage
from tests.gateway_process import Gateway, gateway_process
from tests.ports import free_port
from tests.records import embed, everything, prose
from tests.servers import S3Server, faults
from tests.store_faults import FaultProxy, Rule

PLACES = [("default_tenant", "default_database")]
QUESTIONS = ["parse command line arguments", "the smallest item of a heap"]
NOT_THERE = "20000101T000000Z-000000"
REPOSITORY = "users/default/vectorstore"


def seen(built: Gateway) -> dict[str, Any]:
    """All that it serves."""
    return everything(built.url, PLACES, QUESTIONS)


def fill(built: Gateway) -> None:
    """A collection with its index on disk and one that is only in the log.

    No two documents are the same, and the graph is asked thoroughly: the same data gives the same answers.
    """
    records = list({record["document"]: record for record in prose()}.values())[:120]
    for name, threshold in (("synced", 50), ("unsynced", 1000)):
        hnsw = {"sync_threshold": threshold, "batch_size": 50, "ef_search": 1000, "ef_construction": 500}
        built.client().create_collection(name, embedding_function=None, configuration={"hnsw": hnsw}).add(
            ids=[record["id"] for record in records],
            embeddings=[embed(record["document"]) for record in records],
            documents=[record["document"] for record in records],
        )


def write(built: Gateway, id_: str) -> None:
    """One more record."""
    built.client().get_collection("synced", embedding_function=None).add(ids=[id_], embeddings=[embed(id_)])


def listed(built: Gateway) -> list[str]:
    return [snapshot["id"] for snapshot in built.admin("GET", "/snapshot").json()["snapshots"]]


def ends(built: Gateway) -> int:
    """Start it, and wait for its end; the exit status."""
    return built.start(ready=False).wait()


def require_untouched(data_dir: Path) -> None:
    """Nothing came into it, not even in part."""
    assert os.listdir(data_dir) == [".gateway"]
    assert not {"incoming", "previous", "swap.json"} & set(os.listdir(data_dir / ".gateway"))


def content(root: Path) -> dict[str, str]:
    """Every object of a store with its digest."""
    files = [path for path in root.rglob("*") if path.is_file() and ".gateway" not in path.parts]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---------------------------------------------------------------------- gateways


@dataclass
class Kept:
    """A gateway with two snapshots, what it served at each, and its store as it was then."""

    gateway_process: Gateway
    pristine: Path
    older: str = ""
    newest: str = ""
    at: dict[str, dict[str, Any]] = field(default_factory=dict)

    @contextmanager
    def broken(self, change: Callable[["Broken"], None]) -> Iterator[None]:
        """Its store after `change`, for the time of the block."""
        try:
            change(Broken(self.gateway_process.store_dir, self.newest, self.older))
            yield
        finally:
            # All but the lease: its holder writes it again whenever it finds it gone, also between two steps of this.
            repository = self.gateway_process.store_dir / REPOSITORY
            for directory in filter(Path.is_dir, repository.iterdir()):
                shutil.rmtree(directory)
            ignored = shutil.ignore_patterns(LEASE)
            shutil.copytree(self.pristine / REPOSITORY, repository, ignore=ignored, dirs_exist_ok=True)

    @contextmanager
    def heir(self, change: Callable[["Broken"], None], **env: str) -> Iterator[Gateway]:
        """A gateway without data on a copy of its store after `change`."""
        # The holder of the lease does not know of the copy, so it cannot answer.
        with gateway_process(GATEWAY_TAKEOVER_TIMEOUT_S="0", **env) as built:
            shutil.copytree(self.pristine, built.store_dir)
            change(Broken(built.store_dir, self.newest, self.older))
            yield built


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    with gateway_process() as built:
        fill(built.start())
        kept = Kept(built, tmp_path_factory.mktemp("pristine") / "store")
        for name in ("older", "newest"):
            write(built, f"before the {name}")
            snapshot_id = built.snapshot(name)["id"]
            setattr(kept, name, snapshot_id)
            kept.at[snapshot_id] = seen(built)
        shutil.copytree(built.store_dir, kept.pristine, ignore=shutil.ignore_patterns(".gateway"))
        yield kept


@dataclass
class Remote:
    """A gateway whose store is behind `proxy`, with one snapshot."""

    gateway_process: Gateway
    server: S3Server
    proxy: FaultProxy
    good: str

    def post(self, path: str) -> "Asked":
        return Asked(self.gateway_process, path)

    def arrived(self, method: str, contains: str) -> bool:
        return any(each == method and contains in target for each, target in list(self.proxy.requests))


class Asked:
    """A POST under way in a thread of its own."""

    def __init__(self, built: Gateway, path: str) -> None:
        self._answer: httpx.Response | None = None

        def post() -> None:
            self._answer = built.admin("POST", path)

        self._thread = threading.Thread(target=post)
        self._thread.start()

    def answer(self) -> httpx.Response:
        self._thread.join(120)
        assert self._answer is not None
        return self._answer


@pytest.fixture(scope="module")
def remote_gateway(ministack: S3Server) -> Iterator[Remote]:
    store = f"s3://{ministack.new_bucket('vectors')}/broken"
    with faults(ministack.port) as proxy:
        env = ministack.env_behind(proxy)
        with gateway_process(GATEWAY_STORE=store, GATEWAY_SNAPSHOT_ON_EXIT="false", **env) as built:
            fill(built.start())
            yield Remote(built, ministack, proxy, built.snapshot("good")["id"])


@pytest.fixture
def remote(remote_gateway: Remote) -> Iterator[Remote]:
    """Afterwards the store works again."""
    remote_gateway.proxy.requests.clear()
    yield remote_gateway
    remote_gateway.proxy.rules = []
    remote_gateway.gateway_process.wait_until_ready()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose data directory is a disk of 48 MiB."""
    with (
        small_disk(tmp_path_factory.mktemp("tiny"), 48) as disk,
        gateway_process(GATEWAY_DATA_DIR=str(disk / "data")) as built,
    ):
        fill(built.start())
        yield built


def can_mount() -> bool:
    return shutil.which("mount") is not None and os.geteuid() == 0


@contextmanager
def small_disk(path: Path, size_mib: int) -> Iterator[Path]:
    """A file system of its own of that size, mounted at `path`."""
    if not can_mount():
        pytest.skip("a small disk takes root and mount(8)")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """`disk` without a free byte."""
    filler = disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while file.write(b"\0" * size):
                        pass
                except OSError:
                    continue
        yield
    finally:
        filler.unlink()


# ---------------------------------------------------------------------- ways to break a store


class Broken:
    """A store's files, with ways to break the newest snapshot of it and nothing that the older one needs."""

    def __init__(self, store_dir: Path, newest: str, older: str) -> None:
        self.root = store_dir / REPOSITORY
        self.newest = newest
        self.path = self.manifest_path(newest)
        self.packs = {pack.sha256 for pack in self.manifest(newest).packs}
        self.packs -= {pack.sha256 for pack in self.manifest(older).packs}

    def manifest_path(self, snapshot_id: str) -> Path:
        return self.root / "snapshots" / snapshot_id / "manifest.json"

    def manifest(self, snapshot_id: str) -> Manifest:
        return Manifest.parse(self.manifest_path(snapshot_id).read_bytes(), snapshot_id)

    def a_pack(self) -> Path:
        return self.root / "data" / min(self.packs)

    def forge(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the manifest and make its digest fit: what somebody with write access can do."""
        body = json.loads(self.path.read_bytes())["manifest"]
        change(body)
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        digest = hashlib.sha256(canonical).hexdigest()
        self.path.write_bytes(json.dumps({"format": FORMAT, "digest": digest, "manifest": body}).encode())

    def replace(self, name: str, change: Callable[[bytes], bytes]) -> None:
        """Change one file of the index within the snapshot, so that everything else about it is right."""
        asyncio.run(self._replace(name, change))

    async def _replace(self, name: str, change: Callable[[bytes], bytes]) -> None:
        repository, made = Repository(FileStorage(self.root)), self.manifest(self.newest)
        (id_map,) = [file.path for file in made.files if file.path.endswith(ID_MAP)]
        (file,) = [file for file in made.files if file.path == f"{id_map.removesuffix(ID_MAP)}{name}"]
        data = bytearray(file.size_bytes)
        patches, bases = plan_restore(made)
        parts = [(each, fetch.pack) for fetch in (*bases, *patches) for each in fetch.parts if each.file is file]
        for part, pack in sorted(parts, key=lambda each: each[0].number):
            raw = unpack(part.piece, pack, await repository.get_pack(pack))
            patch = parse_patch(raw, Layout(file.layout), file.size_bytes)[1] if part.number else [(part.offset, raw)]
            for position, some in patch:
                data[position : position + len(some)] = some
        changed = change(bytes(data))
        async with PackWriter(repository, {}, Progress()) as writer:
            (packed,) = await writer.add([changed])
        base = (Piece(len(changed), len(made.packs), packed.offset, packed.stored_bytes, packed.codec),)
        sha256 = hashlib.sha256(changed).hexdigest()
        broken = file.model_copy(update={"base": base, "patches": (), "size_bytes": len(changed), "sha256": sha256})
        packs = (*made.packs, packed.pack)
        files = tuple(broken if each is file else each for each in made.files)
        # As a gateway stored it that did not check indexes.
        await repository.publish(made.model_copy(update={"packs": packs, "files": files, "unsound": None}))
        await repository.close()


def flipped_byte(broken: Broken) -> None:
    data = bytearray(broken.a_pack().read_bytes())
    data[len(data) // 2] ^= 0x01
    broken.a_pack().write_bytes(data)


def missing_pack(broken: Broken) -> None:
    broken.a_pack().unlink()


def truncated_pack(broken: Broken) -> None:
    broken.a_pack().write_bytes(broken.a_pack().read_bytes()[:-1])


def truncated_manifest(broken: Broken) -> None:
    broken.path.write_bytes(broken.path.read_bytes()[:-100])


def foreign_path(broken: Broken) -> None:
    broken.forge(lambda body: body["files"][0].update(path="../../etc/passwd"))


def newer_format(broken: Broken) -> None:
    broken.path.write_text(json.dumps({"format": FORMAT + 1, "anything": "else"}))


def newer_chroma(broken: Broken) -> None:
    row = {"dir": "sysdb", "version": 999, "filename": "00999-of-tomorrow.sqlite.sql"}
    broken.forge(lambda body: body["migrations"].append(row))


def torn_index(broken: Broken) -> None:
    broken.replace(LEVEL0, lambda data: data[:-10])


def no_id_map(broken: Broken) -> None:
    broken.replace(ID_MAP, lambda _: pickle.dumps(["no", "map"], 3))


BREAKS: dict[Callable[[Broken], None], str] = {
    flipped_byte: "is not what was stored",
    missing_pack: "is missing in file://",
    truncated_pack: "is not what was stored",
    truncated_manifest: "it is cut off",
    foreign_path: "../../etc/passwd' does not belong into a data directory",
    newer_format: f"is of format {FORMAT + 1}, this gateway knows up to {FORMAT}",
    newer_chroma: "00999-of-tomorrow.sqlite.sql the installed one does not know",
}


# ---------------------------------------------------------------------- a snapshot that is broken


@pytest.mark.parametrize("change", BREAKS, ids=lambda change: change.__name__)
def test_a_broken_snapshot_restored_live_leaves_the_running_data_alone(
    local: Kept, change: Callable[[Broken], None]
) -> None:
    """The answer names what is broken, everything is served on, and Chroma was not even stopped."""
    before, chroma = seen(local.gateway_process), local.gateway_process.pid("chroma")
    with local.broken(change):
        answer = local.gateway_process.admin("POST", f"/snapshot/{local.newest}/restore")
        assert answer.status_code == 500
        assert BREAKS[change] in answer.json()["message"]
        assert local.newest in answer.json()["message"]
        assert local.gateway_process.readyz().status_code == 200
        assert seen(local.gateway_process) == before
    assert local.gateway_process.pid("chroma") == chroma
    assert not {"incoming", "previous", "swap.json"} & set(os.listdir(local.gateway_process.data_dir / ".gateway"))


def test_the_older_snapshot_restores_although_the_newest_is_broken(local: Kept) -> None:
    """After status 5 GATEWAY_RESTORE names the older one, and everything of it is served."""
    with local.heir(flipped_byte) as built:
        assert ends(built) == 5
        built.env["GATEWAY_RESTORE"] = local.older
        assert seen(built.start()) == local.at[local.older]


@pytest.mark.parametrize("change", [torn_index, no_id_map], ids=lambda change: change.__name__)
def test_an_index_that_was_stored_torn_is_repaired(local: Kept, change: Callable[[Broken], None]) -> None:
    """Every digest is right, and Chroma cannot read it: every record of the snapshot is served all the same."""
    with local.broken(change):
        answer = local.gateway_process.admin("POST", f"/snapshot/{local.newest}/restore")
    assert answer.status_code == 200
    assert local.gateway_process.readyz().status_code == 200
    local.gateway_process.until_logged("an index was repaired")
    assert seen(local.gateway_process) == local.at[local.newest]
    write(local.gateway_process, "after the repair")
    assert local.gateway_process.admin("POST", f"/snapshot/{local.older}/restore").status_code == 200
    assert seen(local.gateway_process) == local.at[local.older]


def test_a_damaged_snapshot_is_listed_as_damaged_and_hides_no_other(local: Kept) -> None:
    """A gateway that comes to a store with a cut manifest tells which, and restores the others."""
    with local.heir(truncated_manifest, GATEWAY_RESTORE="none") as built:
        built.start()
        newest, older = built.admin("GET", "/snapshot").json()["snapshots"]
        assert (newest["id"], newest["state"], older["state"]) == (local.newest, "damaged", "complete")
        assert "cut off" in newest["problem"]
        assert built.admin("GET", f"/snapshot/{local.newest}").status_code == 500
        assert built.admin("POST", "/snapshot/latest/restore").status_code == 500
        assert built.admin("POST", f"/snapshot/{local.older}/restore").status_code == 200
        assert seen(built) == local.at[local.older]
        assert built.admin("DELETE", f"/snapshot/{local.newest}").status_code == 204
        assert listed(built) == [local.older]


# ---------------------------------------------------------------------- a request that is wrong


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/snapshot/{}"), ("DELETE", "/snapshot/{}"), ("POST", "/snapshot/{}/restore")]
)
@pytest.mark.parametrize("unknown", [NOT_THERE, "yesterday", "..%2f..%2fetc"])
def test_an_unknown_snapshot_is_404(local: Kept, method: str, path: str, unknown: str) -> None:
    """In Chroma's shape, and nothing was done."""
    before = content(local.gateway_process.store_dir)
    answer = local.gateway_process.admin(method, path.format(unknown))
    assert (answer.status_code, answer.json()["error"]) == (404, "NotFoundError")
    assert content(local.gateway_process.store_dir) == before
    assert local.gateway_process.readyz().status_code == 200


@pytest.mark.parametrize("token", [None, "wrong", "a-token-for-tests-onlY", "ünïcode"])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/snapshot"), ("DELETE", "/snapshot/latest"), ("POST", "/snapshot/latest/restore")]
)
def test_a_wrong_token_is_401(local: Kept, token: str | None, method: str, path: str) -> None:
    """In Chroma's shape, with what to send, and nothing was done."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}".encode()}
    answer = httpx.request(method, f"{local.gateway_process.url}/admin{path}", headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (401, "AuthorizationError")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert listed(local.gateway_process) == [local.newest, local.older]


def test_two_snapshots_at_once_are_409(remote: Remote) -> None:
    """The second is refused in Chroma's shape, and the first is not disturbed; so is a restore meanwhile."""
    before = seen(remote.gateway_process)
    write(remote.gateway_process, "makes a pack to store")
    remote.proxy.rules = [Rule("delay", method="PUT", contains="/data/", delay_s=1)]
    first = remote.post("/snapshot")
    remote.gateway_process.until(lambda: remote.arrived("PUT", "/data/"), "the first one stores a pack")
    for path in ("/snapshot", f"/snapshot/{remote.good}/restore"):
        refused = remote.gateway_process.admin("POST", path)
        assert (refused.status_code, refused.json()["error"]) == (409, "UniqueConstraintError")
        assert "a snapshot is under way" in refused.json()["message"]
    assert first.answer().status_code == 201
    assert listed(remote.gateway_process)[0] == first.answer().json()["id"]
    assert seen(remote.gateway_process) != before


# ---------------------------------------------------------------------- a store that fails


@pytest.mark.parametrize(
    ("rule", "status", "error"),
    [
        (Rule("reset", method="PUT", contains="/data/"), 503, "StorageUnavailable"),
        (Rule("status", method="PUT", contains="/data/", status=403), 502, "StorageDenied"),
        (Rule("status", method="PUT", contains="/manifest.json", status=403), 502, "StorageDenied"),
    ],
    ids=["dying while packs are stored", "denying packs", "denying the manifest"],
)
def test_a_store_that_fails_in_mid_upload_costs_that_snapshot_alone(
    remote: Remote, rule: Rule, status: int, error: str
) -> None:
    """A clear error, nothing more listed than before, the data served on; then the next one succeeds."""
    write(remote.gateway_process, f"before {rule}")
    before, snapshots = seen(remote.gateway_process), listed(remote.gateway_process)
    remote.proxy.rules = [rule]
    answer = remote.gateway_process.admin("POST", "/snapshot")
    assert (answer.status_code, answer.json()["error"]) == (status, error), answer.text
    assert rule.contains.strip("/") in answer.json()["message"]
    assert listed(remote.gateway_process) == snapshots
    assert seen(remote.gateway_process) == before
    remote.proxy.rules = []
    assert listed(remote.gateway_process) == snapshots
    assert [remote.gateway_process.snapshot()["id"], *snapshots] == listed(remote.gateway_process)


def test_a_store_that_is_gone_is_never_an_empty_list(remote: Remote) -> None:
    """Listing and taking snapshots say that it cannot be reached, and everything is served on."""
    before, snapshots = seen(remote.gateway_process), listed(remote.gateway_process)
    remote.proxy.rules = [Rule("status", status=503)]
    asked = remote.post("/snapshot")
    for answer in (remote.gateway_process.admin("GET", "/snapshot"), asked.answer()):
        assert (answer.status_code, answer.json()["error"]) == (503, "StorageUnavailable"), answer.text
        assert "Retry-After" in answer.headers
    assert remote.gateway_process.readyz().status_code == 200
    assert seen(remote.gateway_process) == before
    remote.proxy.rules = []
    assert listed(remote.gateway_process) == snapshots


def test_a_store_that_breaks_off_in_mid_restore_leaves_the_running_data_alone(remote: Remote) -> None:
    """Half of a snapshot is never served."""
    write(remote.gateway_process, "not in the good one")
    before, chroma = seen(remote.gateway_process), remote.gateway_process.pid("chroma")
    remote.proxy.rules = [Rule("reset", method="GET", contains="/data/")]
    answer = remote.gateway_process.admin("POST", f"/snapshot/{remote.good}/restore")
    assert answer.status_code == 503, answer.text
    assert seen(remote.gateway_process) == before
    assert remote.gateway_process.pid("chroma") == chroma


def test_bytes_that_change_on_their_way_are_found(remote: Remote) -> None:
    """A pack that arrives with one byte flipped is not restored."""
    before = seen(remote.gateway_process)
    remote.proxy.rules = [Rule("flip", method="GET", contains="/data/", at_byte=20)]
    answer = remote.gateway_process.admin("POST", f"/snapshot/{remote.good}/restore")
    assert answer.status_code in (500, 503), answer.text
    assert seen(remote.gateway_process) == before


# ---------------------------------------------------------------------- Chroma that dies


def test_chroma_killed_in_mid_snapshot_fails_that_snapshot_alone(remote: Remote) -> None:
    """A clear 503 and nothing listed, since the files may be torn; when Chroma is back the next one succeeds."""
    write(remote.gateway_process, "before the kill")
    before, snapshots = seen(remote.gateway_process), listed(remote.gateway_process)
    remote.proxy.requests.clear()
    remote.proxy.rules = [Rule("delay", method="GET", contains="repository.json", delay_s=1)]
    asked = remote.post("/snapshot")
    remote.gateway_process.until(lambda: remote.arrived("GET", "repository.json"), "the snapshot has begun")
    os.kill(remote.gateway_process.pid("chroma") or 0, 9)
    answer = asked.answer()
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"] in ("Unavailable", "QuiesceTimeout")
    assert "Chroma ended meanwhile" in answer.json()["message"]
    remote.proxy.rules = []
    assert listed(remote.gateway_process) == snapshots
    remote.gateway_process.wait_until_ready()
    assert seen(remote.gateway_process) == before
    assert [remote.gateway_process.snapshot()["id"], *snapshots] == listed(remote.gateway_process)


def test_chroma_killed_after_the_cut_does_not_spoil_it(remote: Remote) -> None:
    """Everything was read by then: the snapshot is stored, and restores to what was served."""
    write(remote.gateway_process, "makes another pack to store")
    before = seen(remote.gateway_process)
    remote.proxy.rules = [Rule("delay", method="PUT", contains="/data/", delay_s=1)]
    asked = remote.post("/snapshot")
    remote.gateway_process.until(lambda: remote.arrived("PUT", "/data/"), "packs are being stored")
    remote.gateway_process.until(
        lambda: remote.gateway_process.admin("GET", "/status").json()["gate"]["state"] == "open", "the cut is made"
    )
    os.kill(remote.gateway_process.pid("chroma") or 0, 9)
    answer = asked.answer()
    remote.proxy.rules = []
    remote.gateway_process.wait_until_ready()
    if answer.status_code == 503:
        assert "Chroma ended meanwhile" in answer.json()["message"]
        return
    assert answer.status_code == 201
    write(remote.gateway_process, "not in it")
    assert remote.gateway_process.admin("POST", "/snapshot/latest/restore").status_code == 200
    assert seen(remote.gateway_process) == before


# ---------------------------------------------------------------------- a start that must not be one


@dataclass
class Start:
    """What makes a start fail, on a copy of `local`'s store, and what is seen of it."""

    status: int
    says: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    change: Callable[[Broken], None] = lambda _: None


STARTS = {
    **{
        change.__name__: Start(5, (BREAKS[change],), change=change)
        for change in (flipped_byte, truncated_manifest, foreign_path, newer_format)
    },
    "an unknown snapshot": Start(
        4, (f"GATEWAY_RESTORE demands snapshot {NOT_THERE}", "'latest'"), {"GATEWAY_RESTORE": NOT_THERE}
    ),
    "a wrong bucket": Start(
        3, ("not-a-bucket", "create it, or correct GATEWAY_STORE"), {"GATEWAY_STORE": "s3://not-a-bucket/x"}
    ),
    "no credentials": Start(
        3,
        ("AWS_ACCESS_KEY_ID",),
        {"GATEWAY_STORE": "s3://not-asked", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
    ),
    "a store that is down": Start(
        3,
        ("Could not connect", "the store cannot be reached"),
        {
            "GATEWAY_STORE": "s3://not-asked",
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{free_port()}",
            "GATEWAY_RESTORE_RETRY_S": "1",
        },
    ),
    "a full disk": Start(1, ("restoring needs", "are free", "free some space"), {"GATEWAY_DATA_DIR": "disk"}),
}


@pytest.fixture(scope="module", autouse=True)
def begun(
    local: Kept, ministack: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Gateway, Future[int]]]]:
    """The starts above, under way from the beginning, two at a time: most of them mean waiting."""
    started = {}
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(2))
        # The slowest first.
        for name, start in reversed(STARTS.items()):
            env = {**ministack.env, **start.env}
            if "GATEWAY_DATA_DIR" in env:
                if not can_mount():
                    continue
                disk = stack.enter_context(small_disk(tmp_path_factory.mktemp("full"), 8))
                env["GATEWAY_DATA_DIR"] = str(disk / "data")
            built = stack.enter_context(local.heir(start.change, **env))
            started[name] = built, pool.submit(ends, built)
        yield started


@pytest.mark.parametrize("name", STARTS)
def test_a_start_that_would_lose_something_ends_telling_why(
    local: Kept, begun: dict[str, tuple[Gateway, Future[int]]], name: str
) -> None:
    """With the status of the contract and the way out; it starts neither empty nor on half of the data."""
    if name not in begun:
        pytest.skip("a small disk takes root and mount(8)")
    built, ended = begun[name]
    status, output = ended.result(), built.output()
    assert status == STARTS[name].status, output[-4000:]
    for each in STARTS[name].says:
        assert each in output, output[-4000:]
    require_untouched(built.data_dir)
    with local.heir(STARTS[name].change) as fresh:
        expected = content(fresh.store_dir)
    # A start takes the lease, whatever becomes of it.
    leases = {name for name in expected if name.endswith(f"/{LEASE}")}
    assert len(leases) == 1
    assert {name: digest for name, digest in content(built.store_dir).items() if name not in leases} == {
        name: digest for name, digest in expected.items() if name not in leases
    }


def test_a_store_that_comes_up_in_time_is_waited_for(remote: Remote) -> None:
    """The start hangs on until it answers, serves nothing meanwhile, and then serves the latest snapshot."""
    write(remote.gateway_process, "in the latest")
    remote.gateway_process.snapshot("the latest")
    before = seen(remote.gateway_process)
    remote.proxy.rules = [Rule("reset")]
    remote.proxy.requests.clear()
    with gateway_process(
        **{
            name: value
            for name, value in remote.gateway_process.env.items()
            if name.startswith(("AWS_", "GATEWAY_STORE"))
        }
    ) as built:
        built.start(ready=False)
        built.until(lambda: "trying again" in built.output(), "it asked in vain")
        assert built.readyz().status_code in (503, 599)
        assert not (built.data_dir / "chroma.sqlite3").exists()
        remote.proxy.rules = []
        built.wait_until_ready()
        assert seen(built) == before
        assert built.stop() == 0
    # It took over from the one before, which becomes the writer again.
    assert remote.gateway_process.stop() == 0
    remote.gateway_process.start()


def test_data_that_is_there_starts_without_the_store(local: Kept, ministack: S3Server) -> None:
    """A wrong bucket keeps nobody from their data; only snapshots say what is wrong, and the data stays."""
    with local.heir(lambda _: None) as built:
        built.start()
        built.kill()
        built.env |= ministack.env | {"GATEWAY_STORE": "s3://not-a-bucket", "GATEWAY_SNAPSHOT_ON_EXIT": "false"}
        built.start()
        assert seen(built) == local.at[local.newest]
        answer = built.admin("POST", "/snapshot")
        assert (answer.status_code, answer.json()["error"]) == (502, "StorageDenied")
        assert "not-a-bucket" in answer.json()["message"]
        assert seen(built) == local.at[local.newest]


# ---------------------------------------------------------------------- a second one


def test_a_second_gateway_on_the_same_data_ends_with_2(local: Kept) -> None:
    """The first goes on and nothing of its data is touched."""
    before, pids = (
        seen(local.gateway_process),
        (local.gateway_process.pid("chroma"), local.gateway_process.pid("gateway")),
    )
    with gateway_process(GATEWAY_DATA_DIR=str(local.gateway_process.data_dir)) as built:
        built.start(ready=False)
        assert built.wait() == 2
        assert f"uses the data directory {local.gateway_process.data_dir}" in built.output()
        assert "GATEWAY_DATA_DIR" in built.output()
    assert seen(local.gateway_process) == before
    assert (local.gateway_process.pid("chroma"), local.gateway_process.pid("gateway")) == pids


@pytest.mark.parametrize("setting", ["PORT", "GATEWAY_CHROMA_PORT"])
def test_a_port_that_is_taken_ends_the_start_with_2(setting: str) -> None:
    """The message names the port and the setting."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with gateway_process(**{setting: str(port)}) as built:
            built.start(ready=False)
            assert built.wait() == 2
            assert str(port) in built.output()
            assert setting in built.output()


# ---------------------------------------------------------------------- a disk that is full


def test_a_snapshot_needs_no_space_on_the_data_disk(tiny: Gateway) -> None:
    """With the disk full it is taken all the same, everything is served on, and so is the next one."""
    before = seen(tiny)
    with filled(tiny.data_dir.parent):
        taken = tiny.snapshot()
        assert listed(tiny) == [taken["id"]]
        assert seen(tiny) == before
    tiny.snapshot()
    assert seen(tiny) == before


def test_a_live_restore_without_disk_space_leaves_the_running_data_alone(tiny: Gateway) -> None:
    """507 before anything is touched, and with space again it succeeds."""
    snapshot_id = tiny.snapshot()["id"]
    write(tiny, "not in it")
    before, chroma = seen(tiny), tiny.pid("chroma")
    with filled(tiny.data_dir.parent):
        answer = tiny.admin("POST", f"/snapshot/{snapshot_id}/restore")
        assert (answer.status_code, answer.json()["error"]) == (507, "DiskFull"), answer.text
        assert tiny.readyz().status_code == 200
        assert seen(tiny) == before
    assert tiny.pid("chroma") == chroma
    assert tiny.admin("POST", f"/snapshot/{snapshot_id}/restore").status_code == 200
    assert seen(tiny) != before
