"""What only a store of files meets: crashes, full disks, and a directory that is not usable."""

import asyncio
import contextlib
import errno
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import DiskFull, InvalidRequest, ObjectMissing, StorageDenied, StorageUnavailable
from gateway.storage import FileStorage, Storage, file


async def keys(store: Storage, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix)]


CALLS: dict[str, Callable[[Storage], Awaitable[object]]] = {
    "put": lambda store: store.put("a/b", b"x"),
    "put_if_absent": lambda store: store.put_if_absent("a/b", b"x"),
    "put_if_match": lambda store: store.put_if_match("a/b", b"x", "a version"),
    "get": lambda store: store.get("a/b"),
    "get_versioned": lambda store: store.get_versioned("a/b"),
    "get_range": lambda store: store.get_range("a/b", 0, 1),
    "list": keys,
    "list a/": lambda store: keys(store, "a/"),
    "delete": lambda store: store.delete("a/b"),
}


@pytest.fixture
def store(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path / "store")


# ------------------------------------------------------------------ the root


async def test_nothing_is_made_before_the_first_write(tmp_path: Path) -> None:
    """Reading, listing and deleting create nothing where there is no store yet. A write makes all it needs."""
    root = tmp_path / "deep" / "er" / "store"
    store = FileStorage(root)
    assert await keys(store) == []
    await store.delete("a")
    with pytest.raises(ObjectMissing):
        await store.get("a")
    assert list(tmp_path.iterdir()) == []
    await store.put("a/b", b"x")
    assert (root / "a" / "b").read_bytes() == b"x"


async def test_a_relative_root_does_not_follow_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store stays where it was when the process changes its directory."""
    monkeypatch.chdir(tmp_path)
    store = FileStorage(Path("var/store"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    await store.put("a", b"x")
    assert (tmp_path / "var/store/a").is_file()
    assert store.url == f"file://{tmp_path}/var/store/"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("where", ["store", "store/below"])
async def test_a_file_where_the_root_should_be_is_denied(tmp_path: Path, where: str, call: str) -> None:
    """A root that is no directory is never taken for an empty store, and the hint says what is needed."""
    (tmp_path / "store").write_bytes(b"not a directory")
    with pytest.raises(StorageDenied, match="GATEWAY_STORE needs a directory"):
        await CALLS[call](FileStorage(tmp_path / where))


@pytest.mark.parametrize("call", CALLS)
async def test_a_root_that_is_not_mounted_is_denied(tmp_path: Path, call: str) -> None:
    """A symbolic link to nothing is a missing disk, not an empty store."""
    (tmp_path / "store").symlink_to(tmp_path / "not mounted")
    with pytest.raises(StorageDenied, match=r"symbolic link|needs a directory"):
        await CALLS[call](FileStorage(tmp_path / "store"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize("call", CALLS)
async def test_a_root_without_permission_is_denied(tmp_path: Path, call: str) -> None:
    """A directory that may not be entered is denied, and the hint names it."""
    root = tmp_path / "store"
    root.mkdir(mode=0)
    try:
        with pytest.raises(StorageDenied, match=f"let the gateway read and write {root}"):
            await CALLS[call](FileStorage(root))
    finally:
        root.chmod(0o700)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EACCES, StorageDenied),
        (errno.EPERM, StorageDenied),
        (errno.EROFS, StorageDenied),
        (errno.EIO, StorageUnavailable),
        (errno.ESTALE, StorageUnavailable),
    ],
)
async def test_every_oserror_is_translated(
    store: FileStorage, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    """No OSError leaves the store. The message names the operation, the object and the reason."""

    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(expected, match=f"put {store.url}a/b: {os.strerror(number)}"):
        await store.put("a/b", b"x")


# ------------------------------------------------------------------ crashes and full disks


@contextlib.contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """The kernel refuses to write files beyond this size, as it does where no space is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_leaves_the_old_object(store: FileStorage) -> None:
    """A write that does not fit raises DiskFull, changes nothing and leaves nothing behind."""
    await store.put("a", b"old")
    with file_size_limit(1 << 16), pytest.raises(DiskFull, match="GATEWAY_STORE"):
        await store.put("a", bytes(1 << 20))
    assert await store.get("a") == b"old"
    assert files_below(store) == {"a", ".gateway/lock"}


def files_below(store: FileStorage) -> set[str]:
    root = Path(store.url.removeprefix("file://"))
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def run_and_kill(root: Path, code: str) -> None:
    """Run `code` with `store` in a process of its own that must die of SIGKILL."""
    program = f"""
        import asyncio, os, signal, sys
        from pathlib import Path
        from gateway.storage import FileStorage, file
        def die(*_): os.kill(os.getpid(), signal.SIGKILL)
        store = FileStorage(Path(sys.argv[1]))
        {textwrap.dedent(code).strip().replace(chr(10), chr(10) + " " * 8)}
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(root)],
        env=os.environ | {"PYTHONPATH": str(Path(file.__file__).parents[2])},
        check=False,
    )
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("at", ["os.fsync", "Path.rename"])
async def test_a_crash_during_a_put_leaves_the_old_object(tmp_path: Path, at: str) -> None:
    """A put that is killed at any moment before the rename leaves the old object and nothing that a list shows."""
    store = FileStorage(tmp_path)
    await store.put("a", b"old")
    run_and_kill(tmp_path, f"{at} = die\nasyncio.run(store.put('a', b'new'))")
    left = [name for name in files_below(store) if name.startswith(".gateway/new/")]
    assert len(left) == 1
    assert await keys(store) == ["a"]
    assert await store.get("a") == b"old"
    assert await store.put_if_absent("b", b"x") is True


async def test_files_that_a_crash_left_are_removed_once_they_are_old(tmp_path: Path) -> None:
    """The first write of a new process removes files that no other process can still be writing."""
    new = tmp_path / ".gateway" / "new"
    new.mkdir(parents=True)
    (new / "abandoned").write_bytes(b"half of an obj")
    (new / "being written").write_bytes(b"by another process")
    long_ago = time.time() - 2 * file._ABANDONED_AFTER_S
    os.utime(new / "abandoned", (long_ago, long_ago))
    await FileStorage(tmp_path).put("a", b"x")
    assert [path.name for path in new.iterdir()] == ["being written"]


async def test_an_object_is_durable_before_it_has_its_name(store: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are flushed before the rename, the directory after it, and so are directories that the put makes."""
    done: list[int | str] = []
    fsync, rename = os.fsync, Path.rename

    def spy_fsync(descriptor: int) -> None:
        done.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def spy_rename(path: Path, target: Path) -> Path:
        done.append("rename")
        return rename(path, target)

    await store.put("other", b"x")
    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "rename", spy_rename)
    await store.put("folder/below/a", b"x")
    root = Path(store.url.removeprefix("file://"))
    inodes = {name: (root / name).stat().st_ino for name in ("", "folder", "folder/below", "folder/below/a")}
    synced = [inodes["folder/below/a"], inodes[""], inodes["folder"], "rename", inodes["folder/below"]]
    assert done == synced
    done.clear()
    await store.delete("folder/below/a")
    assert done == [inodes[""]]


# ------------------------------------------------------------------ several processes


COUNT = """
import asyncio, sys
from pathlib import Path
from gateway.storage import FileStorage

async def main():
    store = FileStorage(Path(sys.argv[1]))
    for _ in range(int(sys.argv[2])):
        while True:
            counter = await store.get_versioned("counter")
            if await store.put_if_match("counter", b"%d" % (int(counter.data) + 1), counter.version):
                break
    won = [n for n in range(50) if await store.put_if_absent(f"claims/{n}", sys.argv[3].encode())]
    print(*won)

asyncio.run(main())
"""


async def test_conditional_writes_are_atomic_across_processes(store: FileStorage) -> None:
    """Processes that increment one counter lose no increment, and each claim has exactly one owner."""
    processes, increments = 4, 50
    await store.put("counter", b"0")
    root = store.url.removeprefix("file://")
    running = [
        subprocess.Popen(
            [sys.executable, "-c", COUNT, root, str(increments), str(number)],
            env=os.environ | {"PYTHONPATH": str(Path(file.__file__).parents[2])},
            stdout=subprocess.PIPE,
        )
        for number in range(processes)
    ]
    claimed = [process.communicate(timeout=60)[0].decode().split() for process in running]
    assert [process.returncode for process in running] == [0] * processes
    assert await store.get("counter") == b"%d" % (processes * increments)
    assert sorted(itertools.chain(*claimed), key=int) == [str(n) for n in range(50)]
    for owner, won in enumerate(claimed):
        for n in won:
            assert await store.get(f"claims/{n}") == b"%d" % owner


async def test_a_delete_never_removes_the_directory_that_a_put_uses(store: FileStorage) -> None:
    """While objects of one folder come and go, no put fails because its folder was pruned."""

    async def come_and_go(name: str) -> None:
        for _ in range(60):
            await store.put(f"deep/er/{name}", b"x")
            await store.delete(f"deep/er/{name}")

    await asyncio.gather(*(come_and_go(str(n)) for n in range(6)))
    assert files_below(store) == {".gateway/lock"}
    assert not Path(store.url.removeprefix("file://"), "deep").exists()


async def test_a_put_succeeds_although_its_object_is_deleted_at_once(
    store: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may delete the object and prune its folder before the put returns."""
    rename = Path.rename

    def rename_and_lose(path: Path, target: Path) -> Path:
        rename(path, target)
        target.unlink()
        target.parent.rmdir()
        return target

    monkeypatch.setattr(Path, "rename", rename_and_lose)
    await store.put("folder/a", b"x")
    assert await keys(store) == []


async def test_a_list_leaves_out_what_is_deleted_meanwhile(store: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and folders that disappear while the list is made are left out; the others are listed."""
    for key in ("goes", "goes too/a", "stays", "stays too/a"):
        await store.put(key, b"x")
    root = Path(store.url.removeprefix("file://"))
    scandir = os.scandir

    def scandir_and_lose(directory: Path) -> Any:
        found = scandir(directory)
        if directory == root:
            with found:
                entries = list(found)
            (root / "goes").unlink()
            shutil.rmtree(root / "goes too")
            return contextlib.nullcontext(entries)
        return found

    monkeypatch.setattr(os, "scandir", scandir_and_lose)
    assert await keys(store) == ["stays", "stays too/a"]


async def test_a_write_does_not_wait_for_ever_for_the_lock(store: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """When another process holds the lock and does not move, writes raise StorageUnavailable and reads go on."""
    await store.put("a", b"x")
    monkeypatch.setattr(file, "_LOCK_TIMEOUT_S", 0.1)
    with store._locked():
        with pytest.raises(StorageUnavailable, match=r"look for a stopped gateway"):
            await store.put("a", b"y")
        assert await store.get("a") == b"x"
        assert await keys(store) == ["a"]
    await store.put("a", b"y")


# ------------------------------------------------------------------ what files cannot do


@pytest.mark.parametrize("key", ["a/b", "a/b/c/d"])
async def test_an_object_cannot_be_a_folder(store: FileStorage, key: str) -> None:
    """Unlike in S3, a key below an object is refused, and the object stays."""
    await store.put("a", b"x")
    for call in (store.put(key, b"y"), store.put_if_absent(key, b"y")):
        with pytest.raises(InvalidRequest, match="is an object"):
            await call
    assert await store.put_if_match(key, b"y", "a version") is False
    assert await store.get("a") == b"x"


async def test_a_folder_cannot_be_an_object(store: FileStorage) -> None:
    """Unlike in S3, a key that is the folder of other keys is refused, and they stay."""
    await store.put("a/b", b"x")
    for call in (
        store.put("a", b"y"),
        store.put_if_absent("a", b"y"),
        store.put_if_match("a", b"y", "a version"),
    ):
        with pytest.raises(InvalidRequest, match="is a folder"):
            await call
    assert await store.get("a/b") == b"x"


@pytest.mark.parametrize("key", ["x" * 256, "a/" + "ü" * 128 + "/b", ".gateway/lock", ".gateway/new/x", ".gateway"])
async def test_names_that_files_cannot_have_are_refused(store: FileStorage, key: str) -> None:
    """Parts of a key that are too long for a file name, and the store's own folder, cannot be written."""
    with pytest.raises(InvalidRequest):
        await store.put(key, b"x")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("link", ["a", "a/b"])
async def test_symbolic_links_are_not_followed(tmp_path: Path, link: str, call: str) -> None:
    """No method follows a link below the root. A list that meets one raises: the store must not look smaller."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "b").write_bytes(b"secret")
    path = tmp_path / "store" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(outside if link == "a" else outside / "b")
    with pytest.raises(StorageDenied, match="symbolic link"):
        await CALLS[call](FileStorage(tmp_path / "store"))
    assert (outside / "b").read_bytes() == b"secret"


async def test_a_root_may_be_a_symbolic_link(tmp_path: Path) -> None:
    """The root itself may be a link: that is the operator's choice."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    store = FileStorage(tmp_path / "store")
    await store.put("a/b", b"x")
    assert await store.get("a/b") == b"x"
    assert await keys(store) == ["a/b"]


async def test_only_regular_files_are_objects(store: FileStorage) -> None:
    """Pipes and sockets below the root are neither listed nor read: reading one could block for ever."""
    await store.put("a", b"x")
    os.mkfifo(Path(store.url.removeprefix("file://"), "pipe"))
    assert await keys(store) == ["a"]
    with pytest.raises(ObjectMissing):
        await store.get("pipe")
