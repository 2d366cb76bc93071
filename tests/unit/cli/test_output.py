"""What commands print, and the files that they write."""

import contextlib
import json
from pathlib import Path

import pytest

from gateway.cli.output import age, print_error, size, table, whole_file
from gateway.errors import ConfigError


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [
        (None, "?"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 30, "3.0 GiB"),
        (7 << 40, "7.0 TiB"),
        (5000 << 40, "5000.0 TiB"),
    ],
)
def test_sizes(size_bytes: int | None, shown: str) -> None:
    """In binary units, and whole bytes."""
    assert size(size_bytes) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "?"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 d")],
)
def test_ages(seconds: float | None, shown: str) -> None:
    """In the unit that says most."""
    assert age(seconds) == shown


def test_a_table_is_aligned() -> None:
    """To the left, or to the right, and without spaces at the end of a line."""
    assert table([["a", "1", "x"], ["bcd", "200", ""]], right={1}) == ["a      1  x", "bcd  200"]
    assert table([]) == []


def test_an_error_can_have_any_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON it is one line."""
    print_error("NotFoundError", "no 'ü'\nhere", None, as_json=True)
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert json.loads(err) == {"error": "NotFoundError", "message": "no 'ü'\nhere", "hint": None}


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """A failure leaves what was there before, and no part."""
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with contextlib.suppress(RuntimeError), whole_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"before"
    with whole_file(path) as file:
        file.write(b"after")
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    """The message names the file and the cause."""
    with (
        pytest.raises(ConfigError, match=r"nowhere/file cannot be written: No such file"),
        whole_file(tmp_path / "nowhere/file"),
    ):
        pass
