"""A disk that cannot be written is named by its error before Chroma dies of it."""

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.chroma import disk_probe
from gateway.chroma.disk import DATABASE
from gateway.chroma.disk_probe import Presence, named, write_problems

SEGMENT = "1e2f7fba-5e4b-4566-98e0-20e09b67b316"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / ".gateway").mkdir()
    (tmp_path / SEGMENT).mkdir()
    (tmp_path / SEGMENT / "header.bin").write_bytes(b"header")
    return tmp_path


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_good_disk_has_no_problem(data_dir: Path) -> None:
    """And nothing is left on it."""
    assert write_problems(data_dir) == []
    assert list((data_dir / ".gateway").iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EMFILE])
def test_what_fails_a_write_is_named(data_dir: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name that every manual has, with the way out."""
    monkeypatch.setattr(Path, "write_bytes", failing(number))
    (problem,) = write_problems(data_dir)
    assert problem.startswith(f"{errno.errorcode[number]}: ")
    assert str(data_dir) in problem
    assert problem.count("; ") == 1


def test_a_disk_that_is_nearly_full_is_named_before_it_is(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 MiB before the end; of a small disk, a twentieth."""
    usage = shutil.disk_usage(data_dir)
    for total, free, is_named in ((1 << 40, 99 << 20, True), (1 << 40, 101 << 20, False), (1 << 30, 60 << 20, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, t=total, f=free: usage._replace(total=t, free=f))
        assert any(each.startswith("ENOSPC: soon") for each in write_problems(data_dir)) is is_named


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_an_index_that_may_not_be_written_is_named(data_dir: Path) -> None:
    """Chroma would answer from memory, and every sync would fail."""
    (data_dir / SEGMENT / "header.bin").chmod(0o400)
    (problem,) = write_problems(data_dir)
    assert problem.startswith("EACCES: ")
    assert f"{SEGMENT}/header.bin" in problem


def test_an_index_on_a_read_only_place_is_named(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of files is named, each once. Files that are not there are no problem."""
    monkeypatch.setattr(os, "access", lambda path, _mode: "header" not in str(path))
    (problem,) = write_problems(data_dir)
    assert problem.startswith("EACCES: ")
    assert problem.count("header.bin") == 1


def test_too_few_descriptors_are_named_before_they_are_used_up(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four for each index; with too few, Chroma cannot read the rest after a restart."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 203))
    (problem,) = write_problems(data_dir)
    assert problem.startswith("EMFILE: soon")
    assert "LimitNOFILE" in problem
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 204))
    assert disk_probe.write_problems(data_dir) == []


def test_an_error_without_a_known_way_out_has_its_name(data_dir: Path) -> None:
    """Better a name than a number."""
    assert named(errno.EIO, "it failed") == "EIO: it failed"


# ---------------------------------------------------------------------- is it still there


@pytest.fixture
def present(data_dir: Path) -> Iterator[Presence]:
    """Of a directory in which Chroma runs, its data not swapped so far."""
    (data_dir / DATABASE).write_bytes(b"data")
    presence = Presence(data_dir)
    assert presence.problem(0) is None
    yield presence
    presence.close()


def test_a_deleted_directory_is_seen(present: Presence, data_dir: Path) -> None:
    """Also when an empty one has taken its place, and until the same one is back."""
    data_dir.rename(data_dir.with_name("elsewhere"))
    assert "cannot be found" in (present.problem(0) or "")
    data_dir.mkdir()
    (data_dir / DATABASE).write_bytes(b"data")
    assert present.problem(0)
    problem = present.problem(None)
    assert problem
    assert str(data_dir) in problem
    assert "another one" in problem
    assert "put it back" in problem
    shutil.rmtree(data_dir)
    data_dir.with_name("elsewhere").rename(data_dir)
    assert present.problem(0) is None


def test_a_link_that_leads_elsewhere_is_seen(data_dir: Path) -> None:
    """The directory may be a link. Chroma goes on with what it led to."""
    (data_dir / DATABASE).write_bytes(b"data")
    other = data_dir.with_name("other")
    shutil.copytree(data_dir, other)
    link = data_dir.with_name("link")
    link.symlink_to(data_dir)
    presence = Presence(link)
    assert presence.problem(0) is None
    link.unlink()
    link.symlink_to(other)
    assert presence.problem(None)
    presence.close()


def test_a_deleted_database_is_seen(present: Presence, data_dir: Path) -> None:
    """Also when Chroma, started again, has made an empty one. While Chroma does not run nothing is said of it."""
    (data_dir / DATABASE).unlink()
    assert DATABASE in (present.problem(0) or "")
    assert present.problem(None) is None
    (data_dir / DATABASE).write_bytes(b"empty")
    assert "another one" in (present.problem(0) or "")


def test_data_that_were_swapped_on_purpose_are_no_problem(present: Presence, data_dir: Path) -> None:
    """After a restore the new database is what is to stay."""
    (data_dir / DATABASE).rename(data_dir / "away")
    (data_dir / DATABASE).write_bytes(b"restored")
    assert present.problem(1) is None
    (data_dir / "away").replace(data_dir / DATABASE)
    assert present.problem(1)


def test_a_directory_that_was_never_there_is_a_problem(tmp_path: Path) -> None:
    """It is not remembered as that which is to stay."""
    presence = Presence(tmp_path / "none")
    assert presence.problem(None)
    (tmp_path / "none").mkdir()
    assert presence.problem(None) is None
    assert presence.problem(0), "Chroma runs, and there is no database"
    presence.close()
