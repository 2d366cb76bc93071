"""How much memory there may be: that of the machine, or less where a container has a limit."""

from pathlib import Path

import pytest

from gateway.observability import memory

LIMIT = 64 << 20


@pytest.mark.parametrize(
    ("groups", "file", "limit"),
    [
        ("0::/app.slice/gateway\n", "app.slice/gateway/memory.max", LIMIT),
        ("0::/app.slice/gateway\n", "app.slice/memory.max", LIMIT),  # of a group above
        ("0::/docker/1234\n", "memory.max", LIMIT),  # a container sees its own group as the root
        ("12:cpu:/x\n4:memory:/docker/1234\n", "memory/docker/1234/memory.limit_in_bytes", LIMIT),
        ("12:cpu:/x\n4:memory:/docker/1234\n", "memory/memory.limit_in_bytes", LIMIT),
        ("0::/app.slice\n", "other.slice/memory.max", None),
        ("", "memory.max", None),
    ],
)
def test_the_limit_of_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, file: str, limit: int | None
) -> None:
    own = tmp_path / "own"
    own.write_text(groups)
    path = tmp_path / "cgroup" / file
    path.parent.mkdir(parents=True)
    path.write_text(f"{LIMIT}\n")
    monkeypatch.setattr(memory, "_OWN_GROUPS", own)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    found = memory.limit_bytes()
    assert found is not None
    assert (found == LIMIT) is (limit is not None)


def test_no_limit_is_that_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`max` is no number."""
    own = tmp_path / "own"
    own.write_text("0::/\n")
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(memory, "_OWN_GROUPS", own)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    assert (memory.limit_bytes() or 0) > LIMIT
