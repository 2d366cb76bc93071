"""Verification, archives and uploads with a real Chroma: an archive opens, and an upload is served."""

import asyncio
import gzip
import hashlib
import io
import os
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import chromadb
import pytest

from gateway.chroma.disk import DATABASE
from gateway.chroma.process import scratch_chroma
from gateway.errors import BodyTooLarge, InvalidRequest, NotFound, ObjectArchived, SnapshotError
from gateway.jobs import Progress
from gateway.snapshot.fetch import fetch_verified
from gateway.snapshot.import_tar import import_tar
from gateway.snapshot.model import File, Manifest, Pack, Piece, Snapshot
from gateway.snapshot.repository import Repository
from gateway.snapshot.tar import tar, tar_size, untar
from gateway.snapshot.verify import Level, verify
from gateway.storage import Storage, open_storage
from gateway.storage.wrappers import StorageWrapper
from tests.bare_chroma import bare_chroma

DATA = Path(__file__).parents[1] / "data"
OLD = ("0.4.24", "0.5.23")
LIMIT = 1 << 30


def archive_of(version: str) -> bytes:
    return gzip.decompress((DATA / f"chroma-{version}.tar.gz").read_bytes())


async def arriving(data: bytes, piece_bytes: int = 10_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), piece_bytes):
        await asyncio.sleep(0)
        yield data[start : start + piece_bytes]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(open_storage(f"file://{tmp_path}/store"))


async def import_archive(repository: Repository, tmp_path: Path, data: bytes) -> Snapshot:
    body, received = arriving(data), asyncio.Event()
    snapshot = await import_tar(repository, tmp_path / "scratch", body, "old", LIMIT, Progress(), received)
    assert received.is_set()
    assert list((tmp_path / "scratch").iterdir()) == []
    return snapshot


def vector(number: int) -> list[float]:
    """As in `tests/data/make_old_chroma.py`."""
    return [float((number * 7 + place * 3) % 11) for place in range(8)]


@pytest.mark.parametrize("version", OLD)
async def test_directory_of_an_old_chroma_becomes_a_snapshot_that_bare_chroma_serves(
    version: str, repository: Repository, tmp_path: Path
) -> None:
    """Everything that chromadb 0.4 and 0.5 kept is there after upload, verification, restore and archive."""
    snapshot = await import_archive(repository, tmp_path, archive_of(version))
    assert {(each.name, each.records) for each in snapshot.collections} == {
        ("synced", 50),
        ("unsynced", 2),
        ("empty", 0),
    }
    for level in ("data", "boot"):
        found = await verify(repository, tmp_path / "scratch", snapshot.id, level, Progress())
        assert (found.ok, found.problems, found.level) == (True, (), level)
        assert (await repository.snapshots())[0].verified == found
    scratch_directory = tmp_path / "restored"
    scratch_directory.mkdir()
    await fetch_verified(
        repository, scratch_directory, await repository.manifest(snapshot.id), lambda done, total: None, keep_log=False
    )
    archive = b"".join(tar(scratch_directory))
    assert len(archive) == tar_size(scratch_directory)
    out = tmp_path / "out"
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        opened.extractall(out, filter="data")
    with bare_chroma(out) as chroma:
        client = chroma.client()
        synced = client.get_collection("synced", embedding_function=None)
        nearest = synced.query(query_embeddings=[vector(7)], n_results=1, include=["documents", "distances"])
        assert synced.count() == 50
        assert nearest["distances"][0][0] == pytest.approx(0, abs=1e-6)
        assert synced.get(ids=["42"])["documents"] == ["document 42"]
        unsynced = client.get_collection("unsynced", embedding_function=None)
        assert unsynced.query(query_embeddings=[vector(2)], n_results=1)["ids"] == [["b"]]
        # And it goes on from there.
        synced.add(ids=["new"], embeddings=[vector(3)])
        assert synced.count() == 51


async def test_missing_or_changed_pack_fails_the_verification(repository: Repository, tmp_path: Path) -> None:
    """The answer and every listing name the broken object."""
    snapshot = await import_archive(repository, tmp_path, archive_of("0.5.23"))
    assert (await repository.snapshots())[0].verified is None
    packs = sorted((tmp_path / "store/data").iterdir())
    data = bytearray(packs[0].read_bytes())
    data[len(data) // 2] ^= 1
    packs[0].write_bytes(data)
    for level in ("data", "boot"):
        found = await verify(repository, tmp_path / "scratch", snapshot.id, level, Progress())
        assert not found.ok
        assert packs[0].name in found.problems[0]
        fresh = Repository(open_storage(f"file://{tmp_path}/store"))
        assert (await fresh.snapshots())[0].verified == found
        assert (await fresh.snapshot(snapshot.id)).verified == found
    for pack in packs:
        pack.unlink()
    found = await verify(repository, tmp_path / "scratch", snapshot.id, "data", Progress())
    assert len(found.problems) == len(packs)


def with_database(manifest: Manifest, snapshot_id: str, data: bytes) -> Manifest:
    """The same snapshot with other bytes of the database, whose digests are right."""
    name = hashlib.sha256(data).hexdigest()
    pack, piece = Pack(sha256=name, size_bytes=len(data)), Piece(len(data), len(manifest.packs), 0, len(data), "raw")
    database = File(path=DATABASE, size_bytes=len(data), sha256=name, layout=(4096,), base=(piece,))
    return manifest.model_copy(
        update={
            "snapshot": manifest.snapshot.model_copy(update={"id": snapshot_id}),
            "packs": (*manifest.packs, pack),
            "files": (database, *(file for file in manifest.files if file.path != DATABASE)),
        }
    )


def with_records(manifest: Manifest, snapshot_id: str, records: int) -> Manifest:
    """The same snapshot, whose manifest says that each collection has so many records."""
    collections = tuple(each.model_copy(update={"records": records}) for each in manifest.snapshot.collections)
    snapshot = manifest.snapshot.model_copy(update={"id": snapshot_id, "collections": collections})
    return manifest.model_copy(update={"snapshot": snapshot})


async def test_data_are_verified_as_a_restore_verifies_them(repository: Repository, tmp_path: Path) -> None:
    """The records that the manifest names, and the structure of the database, although every digest is right."""
    snapshot = await import_archive(repository, tmp_path, archive_of("0.5.23"))
    manifest = await repository.manifest(snapshot.id)
    restored = tmp_path / "restored"
    restored.mkdir()
    await fetch_verified(repository, restored, manifest, lambda done, total: None)
    data = bytearray((restored / DATABASE).read_bytes())
    data[4096 * 3 : 4096 * 4] = b"\xff" * 4096
    await repository.put_pack(hashlib.sha256(data).hexdigest(), bytes(data))
    broken, other = "20990101T000000Z-000000", "20990101T000000Z-000001"
    await repository.publish(with_database(manifest, broken, bytes(data)))
    await repository.publish(with_records(manifest, other, 7))
    for snapshot_id in (broken, other):
        found = await verify(repository, tmp_path / "scratch", snapshot_id, "data", Progress())
        target = tmp_path / snapshot_id
        target.mkdir()
        with pytest.raises(SnapshotError) as refused:
            await fetch_verified(repository, target, await repository.manifest(snapshot_id), lambda done, total: None)
        assert found.problems == (refused.value.message,)
    assert list((tmp_path / "scratch").iterdir()) == []


class Watching(StorageWrapper):
    """Counts how often each object is read. Those that are `archived` cannot be."""

    def __init__(self, store: Storage) -> None:
        super().__init__(store)
        self.reads: Counter[str] = Counter()
        self.archived: set[str] = set()

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        self.reads[key] += 1
        if key in self.archived:
            raise ObjectArchived(f"get {key}: it is in an archive", "bring it back")
        return await super().get_range(key, start, length)


async def test_verification_reads_each_pack_once(repository: Repository, tmp_path: Path) -> None:
    """Those of the indexes too. The progress counts all of their bytes."""
    snapshot = await import_archive(repository, tmp_path, archive_of("0.5.23"))
    store, progress = Watching(open_storage(f"file://{tmp_path}/store")), Progress()
    found = await verify(Repository(store), tmp_path / "scratch", snapshot.id, "data", progress)
    packs = (await repository.manifest(snapshot.id)).packs
    assert (found.ok, found.problems) == (True, ())
    assert {store.reads[f"data/{pack.sha256}"] for pack in packs} == {1}
    assert progress.done == progress.total == sum(pack.size_bytes for pack in packs)


@pytest.mark.parametrize("level", ["data", "boot"])
async def test_archived_packs_fail_the_verification(repository: Repository, tmp_path: Path, level: Level) -> None:
    """Such as those in Glacier. The problem says how to bring them back; it is no error of the store."""
    snapshot = await import_archive(repository, tmp_path, archive_of("0.5.23"))
    store = Watching(open_storage(f"file://{tmp_path}/store"))
    store.archived = {f"data/{path.name}" for path in (tmp_path / "store/data").iterdir()}
    found = await verify(Repository(store), tmp_path / "scratch", snapshot.id, level, Progress())
    assert not found.ok
    assert all("archive" in problem and "bring it back" in problem for problem in found.problems)


async def test_verification_compares_with_what_the_manifest_recorded(repository: Repository, tmp_path: Path) -> None:
    """A Chroma that serves other records fails it, although every digest is right."""
    snapshot = await import_archive(repository, tmp_path, archive_of("0.5.23"))
    manifest = await repository.manifest(snapshot.id)
    from gateway.snapshot import verify as module

    scratch_directory = tmp_path / "restored"
    scratch_directory.mkdir()
    await fetch_verified(repository, scratch_directory, manifest, lambda done, total: None)
    collections = tuple(
        each.model_copy(update={"records": 49}) if each.name == "synced" else each for each in snapshot.collections
    )
    gone = snapshot.collections[0].model_copy(update={"id": "00000000-0000-4000-8000-000000000000", "name": "gone"})
    other = manifest.model_copy(update={"snapshot": snapshot.model_copy(update={"collections": (*collections, gone)})})
    async with scratch_chroma(scratch_directory) as url:
        problems = await module._compare(url, other, Progress())
    assert len(problems) == 2
    assert "gone: count: 404" in problems[0]
    assert "synced: it has 50 records, and had 49" in problems[1]


class Watched(Progress):
    """Sets an event when one phase begins."""

    def __init__(self, phase: str, reached: asyncio.Event) -> None:
        super().__init__()
        self._phase, self._reached = phase, reached

    def phase(self, name: str, total: int | None, unit: str = "bytes") -> None:
        if name == self._phase:
            self._reached.set()


async def test_cancelled_verification_leaves_nothing_behind(repository: Repository, tmp_path: Path) -> None:
    """Its directory is removed and its Chroma has ended, in whatever phase it was cancelled."""
    snapshot = await import_archive(repository, tmp_path, archive_of("0.5.23"))
    for phase in ("fetching", "starting Chroma", "reading collections"):
        reached = asyncio.Event()

        progress = Watched(phase, reached)
        task = asyncio.create_task(verify(repository, tmp_path / "scratch", snapshot.id, "boot", progress))
        await reached.wait()
        if phase != "fetching":
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert list((tmp_path / "scratch").iterdir()) == []
        assert children_in(tmp_path / "scratch") == []
    assert (await repository.snapshot(snapshot.id)).verified is None


def children_in(directory: Path) -> list[str]:
    """Processes that have `directory` in their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in command:
            found.append(command)
    return found


async def test_unknown_snapshot_cannot_be_verified(repository: Repository, tmp_path: Path) -> None:
    """It is an error, and nothing is stored."""
    with pytest.raises(NotFound):
        await verify(repository, tmp_path, "20260101T000000Z-000000", "data", Progress())
    assert not (tmp_path / "store/snapshots").exists()


async def test_chroma_that_cannot_serve_a_directory_says_why(tmp_path: Path) -> None:
    """The error has Chroma's output, and no process is left."""
    (tmp_path / "chroma.sqlite3").write_bytes(b"this is no database" * 100)
    with pytest.raises(SnapshotError, match="ended with status"):
        async with scratch_chroma(tmp_path):
            pass
    assert children_in(tmp_path) == []


# ---------------------------------------------------------------------- uploaded archives


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as opened:
        for member, data in members:
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (member("../chroma.sqlite3"), "leads out"),
        (member("/etc/passwd"), "leads out"),
        (member("chroma_db/../../x"), "leads out"),
        (member("chroma.sqlite3", tarfile.SYMTYPE, "/etc/passwd"), "neither a plain file"),
        (member("chroma.sqlite3", tarfile.LNKTYPE, "other"), "neither a plain file"),
        (member("chroma.sqlite3", tarfile.CHRTYPE), "neither a plain file"),
        (member("chroma.sqlite3", tarfile.FIFOTYPE), "neither a plain file"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.name} {value.type!r}",
)
async def test_links_devices_and_paths_outside_are_refused(bad: tarfile.TarInfo, why: str, tmp_path: Path) -> None:
    """Nothing is written outside, and nothing through a link."""
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(InvalidRequest, match=why):
        await untar(arriving(archive((bad, b""))), target, LIMIT, Progress())
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert list(target.iterdir()) == []


async def test_only_files_of_chromas_are_unpacked(tmp_path: Path) -> None:
    """Others are skipped, so an archive of a folder from git or a Mac is accepted."""
    segment = "5925ca8f-e94b-4367-9627-b3109978592a"
    data = archive(
        (member("chroma_db/.DS_Store"), b"x"),
        (member("./chroma_db/chroma.sqlite3"), b"database"),
        (member(f"chroma_db/{segment}/header.bin"), b"header"),
        (member(f"chroma_db/{segment}/evil.so"), b"x"),
        (member("chroma_db/.gateway/swap.json"), b"x"),
        (member("elsewhere/chroma.sqlite3-wal"), b"x"),
    )
    await untar(arriving(data, 7), tmp_path, LIMIT, Progress())
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == [f"{segment}/header.bin", "chroma.sqlite3"]


@pytest.mark.parametrize("cut", [0, 100, 700, 100_000])
async def test_truncated_archive_is_refused(cut: int, tmp_path: Path) -> None:
    """Wherever it ends too early."""
    with pytest.raises(InvalidRequest):
        await untar(arriving(archive_of("0.5.23")[:cut]), tmp_path, LIMIT, Progress())


def headers(data: bytes) -> list[int]:
    """The offset of each member's header."""
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        return [each.offset for each in opened]


@pytest.mark.parametrize("how", ["ends", "goes on with nonsense"])
async def test_archive_that_ends_between_two_members_is_refused(how: str, tmp_path: Path) -> None:
    """A database without its indexes must not become the newest snapshot."""
    whole = archive((member("chroma.sqlite3"), b"database"), (member("other"), b"x"))
    cut = headers(whole)[1]
    data = whole[:cut] if how == "ends" else whole[:cut] + b"\xff" + whole[cut + 1 :]
    with pytest.raises(InvalidRequest, match="cut off"):
        await untar(arriving(data), tmp_path, LIMIT, Progress())


def pax(name: str = "chroma.sqlite3", **fields: str) -> bytes:
    """A member with an extended header before it."""
    made = tarfile.TarInfo(name)
    made.pax_headers = {name.replace("_", "."): value for name, value in fields.items()}
    return made.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    "head",
    [
        pax(GNU_sparse_map="a,b"),
        pax(GNU_sparse_size="x", GNU_sparse_numblocks="1"),
        pax(GNU_sparse_major="1", GNU_sparse_minor="0") + b"9" * 512,
        pax(comment="x")[:-512] * 2000 + pax(),
    ],
    ids=["sparse 0.1", "sparse 0.0", "sparse 1.0", "endless headers"],
)
async def test_invalid_headers_are_refused(head: bytes, tmp_path: Path) -> None:
    """Whatever error Python's reader raises: the archive is wrong, not the gateway."""
    with pytest.raises(InvalidRequest):
        await untar(arriving(head + bytes(10240)), tmp_path, LIMIT, Progress())


def sparse() -> bytes:
    """A member whose map continues in the block after its header."""
    header = bytearray(member("chroma.sqlite3", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    return bytes(header)


@pytest.mark.parametrize("head", [sparse(), pax(GNU_sparse_major="1", GNU_sparse_minor="0") + b"99999999\n"])
async def test_map_of_a_sparse_file_is_not_read(head: bytes, tmp_path: Path) -> None:
    """It would be held in memory, and may be as long as the archive."""
    seen = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal seen
        yield head
        while seen < 8 << 20:
            seen += 1 << 16
            yield (b"00000000001\0" * 42 + b"\1" + b"1\n1\n1\n\n") * 128

    with pytest.raises(InvalidRequest, match="sparse"):
        await untar(endless(), tmp_path, LIMIT, Progress())
    assert seen < 1 << 20


async def test_headers_of_an_archive_are_not_kept_in_memory(tmp_path: Path) -> None:
    """An extended header may be long, and there may be many of them."""
    data = pax() + pax("other", comment="x" * 500_000) * 40 + bytes(10240)
    tracemalloc.start()
    try:
        await untar(arriving(data, 1 << 20), tmp_path, LIMIT, Progress())
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 10 << 20


async def test_archive_longer_than_allowed_is_refused_while_it_arrives(tmp_path: Path) -> None:
    """No more than the limit is read of it."""
    seen = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal seen
        yield archive((member("chroma.sqlite3"), bytes(1 << 20)))[:-10240]
        while True:
            seen += 1 << 16
            yield bytes(1 << 16)

    with pytest.raises((BodyTooLarge, InvalidRequest)):
        await untar(endless(), tmp_path, 2 << 20, Progress())
    assert seen <= 2 << 20


async def test_same_file_twice_is_refused(tmp_path: Path) -> None:
    """No member replaces another."""
    data = archive((member("chroma.sqlite3"), b"one"), (member("chroma.sqlite3"), b"two"))
    with pytest.raises(InvalidRequest, match="twice"):
        await untar(arriving(data), tmp_path, LIMIT, Progress())


async def test_damaged_database_becomes_no_snapshot(repository: Repository, tmp_path: Path) -> None:
    """The upload is refused. No snapshot, no directory and no process is left."""
    data = archive((member("chroma.sqlite3"), b"SQLite format 3\0" + os.urandom(8192)))
    with pytest.raises(InvalidRequest, match="does not hold a sound Chroma directory"):
        await import_archive(repository, tmp_path, data)
    assert await repository.ids() == []
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_empty_database_becomes_no_snapshot(repository: Repository, tmp_path: Path) -> None:
    """For SQLite a file of no bytes is a sound database. The newest snapshot would hold nothing."""
    with pytest.raises(InvalidRequest, match="does not hold a sound Chroma directory"):
        await import_archive(repository, tmp_path, archive((member("chroma.sqlite3"), b"")))
    assert await repository.ids() == []


async def test_body_that_stops_arriving_can_be_cancelled(tmp_path: Path) -> None:
    """The thread that unpacks does not wait for ever."""
    began = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield archive_of("0.5.23")[:20_000]
        began.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(untar(stuck(), tmp_path, LIMIT, Progress()))
    await began.wait()
    task.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await task


def test_installed_chromadb_is_newer_than_the_archives() -> None:
    """So that these tests exercise a migration."""
    assert chromadb.__version__ > "1"
