"""The last snapshot is taken, whatever else goes on."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.app import House
from gateway.config import Settings
from gateway.errors import Conflict


async def test_it_waits_for_other_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for one that begins at the very moment at which the one before it ends."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/chroma.sqlite3").write_bytes(b"not empty")
    house = House(Settings(data_dir=tmp_path / "data", store=f"file://{tmp_path}/store"), "a-token")
    tries: list[str] = []

    async def snapshot(label: str) -> Any:
        tries.append(label)
        if len(tries) < 3:
            raise Conflict("a garbage collection is under way")
        house.changes.cut()
        house.changes.saved()
        return type("Taken", (), {"id": "an id"})

    monkeypatch.setattr(house.operations, "snapshot", snapshot)
    await asyncio.wait_for(house._save("handover"), 10)
    assert tries == ["handover"] * 3
    await asyncio.wait_for(house._save("handover"), 10)
    assert len(tries) == 3, "nothing changed since"
