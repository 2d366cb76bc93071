"""Flags: read generously, written strictly, never guessed."""

import pytest

from gateway.documents.flags import parse, render, repaired
from gateway.errors import Conflict


def test_what_was_written_is_read() -> None:
    """And the same flags are the same bytes, in whatever order they came."""
    flags = {"b": True, "a/ü": False}
    assert parse(render(flags), "x") == flags
    assert render(flags) == render(dict(reversed(flags.items())))


def test_what_people_write_by_hand_is_understood() -> None:
    """Byte order marks, words and numbers; null says nothing."""
    data = b'\xef\xbb\xbf{"a": "Yes", "b": 0, "c": "false ", "d": 1, "e": null}'
    assert parse(data, "x") == {"a": True, "b": False, "c": False, "d": True}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'"a"',
        b'{"a": 2}',
        b'{"a": "maybe"}',
        b'{"a": {}}',
        b'{"a": 0.5}',
        b"\xff",
        b"[" * 100_000,
        b'{"a": NaN}',
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_the_file(data: bytes) -> None:
    """Guessing would train what nobody wanted."""
    with pytest.raises(Conflict, match="the/file"):
        parse(data, "the/file")


def test_a_repair_keeps_exactly_what_exists() -> None:
    """Stale entries go, missing ones get the default, the others stay."""
    assert repaired({"stale": False, "off": False, "on": True}, ["off", "on", "new"]) == {
        "off": False,
        "on": True,
        "new": True,
    }
