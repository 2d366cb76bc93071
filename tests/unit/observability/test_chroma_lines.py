"""Chroma's lines become ours, and none is lost."""

import json

from hypothesis import given
from hypothesis import strategies as some

from gateway.observability.chroma_lines import ChromaLines

OURS = b'{"event": "restoring", "level": "info", "program": "chroma"}\n'
PICTURE = (
    b"\n      \x1b[38;5;069m(((((((((    \x1b[38;5;203m(((((\x1b[38;5;220m####\n   \x1b[38;5;069m(((\x1b[0m\n\n"
    b"Saving data to: /data\n\n"
)
EVENT = (
    b"  \x1b[2m2026-11-21T05:45:07.141011Z\x1b[0m \x1b[33m WARN\x1b[0m  \x1b[33mFrontend server, "
    b"\x1b[1;32maddr\x1b[0m: x\x1b[0m\n"
    b"    \x1b[2;3mat\x1b[0m rust/frontend/src/server.rs:416\n"
    b"    \x1b[2;3min\x1b[0m HTTP request \x1b[2;3mwith\x1b[0m http.method: GET\n\n"
)


def said(*pieces: bytes) -> list[dict[str, str]]:
    lines = ChromaLines()
    out = b"".join(lines.take(piece) for piece in pieces) + lines.end()
    return [json.loads(line) for line in out.splitlines()]


def test_an_event_is_one_object() -> None:
    """With its time, its level by Google Cloud's name too, its place, and no colours."""
    ours, event = said(OURS, EVENT)
    assert ours["event"] == "restoring"
    assert event == {
        "timestamp": "2026-11-21T05:45:07.141011Z",
        "event": "Frontend server, addr: x",
        "message": "Frontend server, addr: x",
        "at": "rust/frontend/src/server.rs:416",
        "in": "HTTP request with http.method: GET",
        "level": "warning",
        "severity": "WARNING",
        "program": "chroma",
    }


def test_the_picture_is_one_event() -> None:
    """And what follows it another."""
    _, picture, saving = said(OURS, PICTURE)
    assert "((((" in picture["event"]
    assert saving["event"] == "Saving data to: /data"


def test_a_panic_is_an_error() -> None:
    """It has no time and no level of its own."""
    _, panic = said(OURS, b"thread 'main' panicked at rust/x.rs:1:2:\nno such thing\nnote: run with RUST_BACKTRACE=1\n")
    assert (panic["level"], panic["severity"]) == ("error", "ERROR")
    assert "no such thing" in panic["event"]


def test_what_is_no_json_is_left_alone() -> None:
    """Where the log is text, so are Chroma's lines."""
    lines = ChromaLines()
    assert lines.take(b"2026 [info] restoring\n" + EVENT[:-1]) == b"2026 [info] restoring\n" + EVENT[:-1]


@given(some.lists(some.integers(1, 400), max_size=20))
def test_no_word_is_lost_wherever_it_is_cut(cuts: list[int]) -> None:
    """Reads end anywhere; every line comes out, and every line that comes out is JSON."""
    data, pieces = OURS + PICTURE + EVENT * 2, []
    for cut in cuts:
        pieces.append(data[:cut])
        data = data[cut:]
    text = json.dumps(said(*pieces, data))
    for word in ("restoring", "((((", "Saving data to: /data", "Frontend server", "server.rs:416", "http.method: GET"):
        assert word in text
    assert text.count("server.rs:416") >= 2  # a line that comes alone is an event of its own


@given(some.binary(max_size=3000))
def test_nothing_that_chroma_says_breaks_it(data: bytes) -> None:
    """Whatever the bytes."""
    lines = ChromaLines()
    for line in (lines.take(OURS) + lines.take(data) + lines.end()).splitlines():
        json.loads(line)
