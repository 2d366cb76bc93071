"""A file is written whole and durably, or it stays as it was."""

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.errors import DiskFull, GatewayError
from gateway.files import durable_file, sync_directory, write_durably


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_file_is_durable_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the bytes are flushed, then the name is given, then the directory is flushed."""
    done: list[int | str] = []
    fsync, rename = os.fsync, os.rename

    def spy_fsync(descriptor: int) -> None:
        done.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def spy_rename(source: Path, target: Path) -> None:
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    path = tmp_path / "state.json"
    write_durably(path, b"{}")
    assert done == [path.stat().st_ino, "rename", tmp_path.stat().st_ino]
    assert (path.read_bytes(), path.stat().st_mode & 0o777, os.listdir(tmp_path)) == (b"{}", 0o600, ["state.json"])


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """Nothing else is left behind either."""
    path = tmp_path / "state.json"
    write_durably(path, b"old")

    def write_half() -> None:
        with durable_file(path) as file:
            file.write(b"half of the ne")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["state.json"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """With the file's name and the way out; the file stays as it was."""
    path = tmp_path / "state.json"
    write_durably(path, b"old")
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(DiskFull, match=r"state\.json cannot be written.*free some space"):
        write_durably(path, b"new")
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["state.json"])


def test_any_other_failure_of_the_disk_names_the_file(tmp_path: Path) -> None:
    """As one of our own errors."""
    with pytest.raises(GatewayError, match=r"state\.json cannot be written: .*No such file"):
        write_durably(tmp_path / "nowhere" / "state.json", b"new")


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_is_there_is_kept_where_nothing_may_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    """Also on a file system without hard links."""
    if not has_links:
        monkeypatch.setattr(os, "link", failing(errno.EPERM))
    path = tmp_path / "token"
    for data in (b"first", b"second"):
        write_durably(path, data, replace=False)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"first", ["token"])


def test_of_many_first_writers_one_wins(tmp_path: Path) -> None:
    """Each of them finds the same whole file afterwards."""
    path = tmp_path / "token"

    def write(number: int) -> bytes:
        write_durably(path, b"%d" % number, replace=False)
        return path.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(write, range(32)))) == 1
    assert os.listdir(tmp_path) == ["token"]


def test_a_file_system_that_cannot_flush_a_directory_is_borne(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some cannot; every other failure is told."""
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    sync_directory(tmp_path)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        sync_directory(tmp_path)
