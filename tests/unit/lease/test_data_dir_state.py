"""A data directory knows its own name, and what it has seen of the repository."""

import json
import os
import shutil
from pathlib import Path

import pytest

from gateway.chroma.directory import DataDirectory
from gateway.errors import DiskFull, GatewayError
from gateway.lease import data_dir_state
from gateway.lease.data_dir_state import DataDirState
from gateway.lease.state import LeaseState
from tests.unit.snapshot.manifests import ID, NEWER


@pytest.fixture
def home(tmp_path: Path) -> DataDirState:
    (tmp_path / ".gateway").mkdir()
    return DataDirState(tmp_path)


def published(snapshot_id: str, by: str) -> LeaseState:
    return LeaseState(holder="x", home=by).announcing(snapshot_id).confirming(snapshot_id)


def test_a_name_is_for_life_in_one_place(home: DataDirState, tmp_path: Path) -> None:
    """It is the same for every process that asks later."""
    assert home.name() == DataDirState(tmp_path).name()
    assert os.listdir(tmp_path / ".gateway") == ["home.json"]


def test_a_copy_has_a_name_of_its_own(home: DataDirState, tmp_path: Path) -> None:
    """It knows the name of the original, and what the original had seen. The original does not know the copy's."""
    home.see(published(ID, "other"))
    shutil.copytree(tmp_path / ".gateway", tmp_path / "copy/.gateway")
    copy = DataDirState(tmp_path / "copy")
    assert copy.name() not in ("", home.name())
    assert copy.name() == copy.name()
    assert (copy.knows(home.name()), home.knows(copy.name()), copy.knows("other")) == (True, False, False)
    assert copy.is_behind(published(ID, "other")) is None


def test_another_boot_is_another_place(home: DataDirState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was copied as a whole has the same numbers of devices and inodes, but is another boot."""
    before = home.name()
    (tmp_path / "boot").write_text("another boot")
    monkeypatch.setattr(data_dir_state, "_BOOT_ID", tmp_path / "boot")
    assert home.name() != before
    assert home.knows(before)


def test_where_no_boot_is_told_the_machine_is_the_place(
    home: DataDirState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it has no id."""
    for name in ("_BOOT_ID", "_MACHINE_ID"):
        monkeypatch.setattr(data_dir_state, name, tmp_path / "none")
    assert home.name() == home.name()


def test_an_older_image_of_itself_is_behind(home: DataDirState, tmp_path: Path) -> None:
    """What it published itself after the image was made is not in it."""
    home.see(published(ID, home.name()))
    image = (tmp_path / ".gateway/home.json").read_bytes()
    home.see(published(ID, home.name()).announcing(NEWER))
    newer = published(NEWER, home.name())
    assert home.is_behind(newer) is None
    (tmp_path / ".gateway/home.json").write_bytes(image)
    assert home.is_behind(published(ID, home.name())) is None
    assert home.is_behind(newer) == NEWER


def test_a_store_that_was_set_back_is_not_ahead(home: DataDirState) -> None:
    """These data came after what it says was published last. A store copied back from a backup is such a one."""
    home.see(published(ID, home.name()))
    home.see(published(ID, home.name()).announcing(NEWER))
    home.see(published(NEWER, home.name()))
    assert home.is_behind(published(ID, home.name())) is None


def test_what_is_seen_is_bounded(home: DataDirState, tmp_path: Path) -> None:
    """The file stays within a block of the disk, and what was published last stays in it."""
    for number in range(200):
        home.see(published(ID, home.name()).announcing(f"20261122T000000Z-{number:06x}"))
        home.see_restored(ID, LeaseState(holder="x", home=f"{number:032x}"))
    assert (tmp_path / ".gateway/home.json").stat().st_size < 4096
    assert home.is_behind(published(ID, home.name())) is None


def test_a_publication_that_failed_does_not_hide_the_one_before(home: DataDirState) -> None:
    """It was noted as about to be published, and the older one is still what was published last."""
    home.see(published(ID, home.name()).announcing(NEWER))
    assert home.is_behind(published(ID, home.name())) is None


def test_what_was_restored_on_purpose_is_not_behind(home: DataDirState) -> None:
    """Neither of itself nor of what was published then; the holder of that time is known."""
    shown = published(NEWER, "other")
    home.see_restored(ID, shown)
    assert home.is_behind(shown) is None
    assert home.is_behind(published(ID, "other")) is None
    assert home.knows("other")


def restored(path: Path, snapshot_id: str, *, keep: bool = True) -> None:
    """Swap a snapshot into the data directory `path`, and settle it or roll it back."""
    directory = DataDirectory(path)
    directory.make_incoming()
    directory.swap_in(snapshot_id)
    if keep:
        directory.settle()
    else:
        directory.roll_back()


def test_a_restore_counts_from_the_step_on_that_settles_it(home: DataDirState, tmp_path: Path) -> None:
    """So a kill right after it leaves no data that are behind of what they hold, and a roll back leaves no others."""
    shown = published(NEWER, "other")
    home.about_to_restore(shown)
    assert home.is_behind(shown) == NEWER
    restored(tmp_path, ID, keep=False)
    assert home.is_behind(shown) == NEWER
    restored(tmp_path, ID)
    for _ in range(2):  # as the next processes see it
        after = DataDirState(tmp_path)
        assert (after.is_behind(shown), after.is_behind(published(ID, "other"))) == (None, None)
        after.name()
        assert DataDirectory(tmp_path).settled is None


def test_what_one_restore_was_about_does_not_count_for_the_next(home: DataDirState, tmp_path: Path) -> None:
    """The first one was on purpose, and failed. The second one is of a reader, so its data hold the snapshot alone."""
    home.about_to_restore(published(NEWER, "other"))
    home.about_to_restore(None)
    restored(tmp_path, ID)
    assert home.is_behind(published(ID, "other")) is None
    assert home.is_behind(published(NEWER, "other")) == NEWER
    home.about_to_restore(published(NEWER, "other"))
    assert home.is_behind(published(NEWER, "other")) == NEWER, "the restore before is not this one"


def test_a_full_disk_does_not_keep_it_from_noting(
    home: DataDirState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that publishes its last snapshot from a full disk is not behind when the disk has been enlarged."""

    def full(*_: object) -> None:
        raise DiskFull("no space left")

    home.see(None)
    monkeypatch.setattr(data_dir_state, "write_durably", full)
    for snapshot_id in (ID, NEWER):
        home.see(published(snapshot_id, home.name()))
        assert DataDirState(tmp_path).is_behind(published(snapshot_id, home.name())) is None
    (tmp_path / ".gateway/home.json").unlink()
    with pytest.raises(DiskFull):
        home.see(None)


def test_a_file_without_own_publications_is_understood(home: DataDirState, tmp_path: Path) -> None:
    """Gateways that wrote it noted only what others published."""
    file = tmp_path / ".gateway/home.json"
    file.write_text(json.dumps({"home": "old", "seen": ID}))
    assert home.knows("old")
    assert home.is_behind(published(NEWER, "old")) is None
    assert home.is_behind(published(ID, "other")) is None
    assert home.is_behind(published(NEWER, "other")) == NEWER
    home.see(published(NEWER, "other"))
    assert home.is_behind(published(ID, "old")) == ID
    file.write_text(json.dumps({"home": "old", "seen": "*"}))
    assert home.begins_anew()


def test_it_is_behind_when_another_one_published_what_it_has_not_seen(home: DataDirState) -> None:
    """And only then."""
    assert home.is_behind(None) is None
    assert home.is_behind(LeaseState(holder="x", home="other")) is None
    assert home.is_behind(published(ID, home.name())) == ID
    assert home.is_behind(published(ID, "other")) == ID
    home.see(published(ID, "other"))
    assert home.is_behind(published(ID, "other")) is None
    assert home.is_behind(published(NEWER, "other")) == NEWER


@pytest.mark.parametrize("damage", ["", "{", "[]", "null"])
def test_a_memory_that_is_damaged_is_a_strangers(home: DataDirState, tmp_path: Path, damage: str) -> None:
    """It gets another name, so what it published before is not taken for its own."""
    before = home.name()
    (tmp_path / ".gateway/home.json").write_text(damage)
    assert home.name() not in ("", before)
    assert home.is_behind(published(ID, before)) == ID


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """As one of our own errors, which the gateway survives."""
    with pytest.raises(GatewayError, match="home"):
        DataDirState(tmp_path / "nowhere").name()


def test_a_restore_goes_behind_the_journal_only_once_it_is_settled(tmp_path: Path) -> None:
    """Until then the data that are there are the old ones, which may lack what the journal has."""
    directory = DataDirectory(tmp_path)
    directory.make()
    memory = DataDirState(tmp_path)
    memory.see_journal(3)
    memory.see_journal(9, once_settled=True)
    assert DataDirState(tmp_path).seen_in_journal() == 3
    directory.make_incoming()
    directory.swap_in("20261120T210455Z-3f9a1c")
    directory.settle()
    assert DataDirState(tmp_path).seen_in_journal() == 9
