"""A data directory knows its own name, and what it has seen of the repository."""

import os
from pathlib import Path

import pytest

from gateway.errors import GatewayError
from gateway.lease.data_dir_state import DataDirState
from gateway.lease.state import LeaseState
from tests.unit.snapshot.manifests import ID, NEWER


@pytest.fixture
def home(tmp_path: Path) -> DataDirState:
    (tmp_path / ".gateway").mkdir()
    return DataDirState(tmp_path)


def published(snapshot_id: str, by: str) -> LeaseState:
    return LeaseState(holder="x", home=by).announcing(snapshot_id).confirming(snapshot_id)


def test_a_name_is_for_life(home: DataDirState, tmp_path: Path) -> None:
    """It is the same for every process that asks later."""
    assert home.name() == DataDirState(tmp_path).name()
    assert os.listdir(tmp_path / ".gateway") == ["home.json"]


def test_it_is_behind_when_another_one_published_what_it_has_not_seen(home: DataDirState) -> None:
    """And only then."""
    assert home.is_behind(None) is None
    assert home.is_behind(LeaseState(holder="x", home="other")) is None
    assert home.is_behind(published(ID, home.name())) is None
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
