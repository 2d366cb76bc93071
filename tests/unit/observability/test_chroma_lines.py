"""Chroma's output becomes lines of the gateway's form, and no event is lost."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as some

from gateway.observability.chroma_lines import ChromaLines

BANNER = (
    "\n      \x1b[38;5;069m(((((((((    \x1b[38;5;203m(((((\x1b[38;5;220m####\n   \x1b[38;5;069m(((\x1b[0m\n\n"
    "\x1b[97m  .    *      *         \x1b[38;5;069m(((((\x1b[38;5;203m((((    \x1b[38;5;220m#########\x1b[97m  .\n"
    "Saving data to: \x1b[1m/data\x1b[0m\nConnect to Chroma at: \x1b[4;34mhttp://localhost:8001\x1b[0m\n"
    "Getting started guide: https://docs.trychroma.com/docs/overview/getting-started\n\n"
    "☁️ To deploy your DB - try Chroma Cloud!\n- Sign up: https://trychroma.com/signup\n"
    "- Copy your data to Cloud: chroma copy --to-cloud --all\n\n"
    '==========\n{"stdout_tracing": true, "persist_path": "/data", "port": 8001}\n==========\n\n'
).encode()
EVENT = (
    b"  \x1b[2m2026-11-21T05:45:07.141011Z\x1b[0m \x1b[33m WARN\x1b[0m  \x1b[33mFrontend server, "
    b"\x1b[1;32maddr\x1b[0m: x\x1b[0m\n"
    b"    \x1b[2;3mat\x1b[0m rust/frontend/src/server.rs:416\n"
    b"    \x1b[2;3min\x1b[0m HTTP request \x1b[2;3mwith\x1b[0m http.method: GET\n\n"
)
LISTENING = (
    b"  \x1b[2m2026-11-21T05:45:07Z\x1b[0m \x1b[32m INFO\x1b[0m  \x1b[32mFrontend server listening\x1b[0m\n"
    b"    \x1b[2;3mat\x1b[0m rust/frontend/src/server.rs:416\n\n"
)
REQUEST = LISTENING[:-1] + b"    \x1b[2;3min\x1b[0m HTTP request \x1b[2;3mwith\x1b[0m http.method: GET\n\n"
PANIC = b"thread 'main' panicked at rust/x.rs:1:2:\nno such thing\nnote: run with RUST_BACKTRACE=1\n"
NOW = "2026-11-21T06:00:00Z"


def lines_of(*pieces: bytes, level: str = "info") -> list[dict[str, str]]:
    lines = ChromaLines(level=level, now=lambda: NOW)
    out = b"".join(lines.take(piece) for piece in pieces) + lines.end()
    return [json.loads(line) for line in out.splitlines()]


def test_an_event_is_one_object() -> None:
    """With its time, its level, Google Cloud's name of the level, its place, and no colours."""
    (event,) = lines_of(EVENT)
    assert event == {
        "timestamp": "2026-11-21T05:45:07.141011Z",
        "message": "Frontend server, addr: x",
        "at": "rust/frontend/src/server.rs:416",
        "in": "HTTP request with http.method: GET",
        "level": "warning",
        "severity": "WARNING",
        "program": "chroma",
    }


def test_the_banner_is_dropped_at_every_level() -> None:
    """Also the one of December, which has snow, and the configuration file that Chroma shows."""
    assert lines_of(BANNER, level="debug") == []
    (event,) = lines_of(BANNER + LISTENING)
    assert event["message"] == "Frontend server listening"


def test_a_routine_event_of_a_request_is_debug() -> None:
    """There is one for each request. A warning within a request stays a warning."""
    assert lines_of(REQUEST) == []
    (event,) = lines_of(REQUEST, level="debug")
    assert event["level"] == "debug"
    (warning,) = lines_of(EVENT, level="warning")
    assert warning["level"] == "warning"


@pytest.mark.parametrize(
    ("level", "shown"),
    [("debug", ["info", "debug", "warning"]), ("info", ["info", "warning"]), ("warning", ["warning"]), ("error", [])],
)
def test_chromas_lines_are_parsed_and_filtered_at_every_level(level: str, shown: list[str]) -> None:
    """The form is known from the start. No line of the gateway itself has to come first."""
    assert [line["level"] for line in lines_of(LISTENING, REQUEST, EVENT, level=level)] == shown


def test_a_panic_is_an_error_with_the_time_at_which_it_was_read() -> None:
    """It has no time and no level of its own."""
    (panic,) = lines_of(PANIC)
    assert (panic["level"], panic["severity"], panic["timestamp"]) == ("error", "ERROR", NOW)
    assert "no such thing" in panic["message"]


def test_text_of_an_unknown_form_is_written_at_every_level() -> None:
    """It is most often the reason why Chroma does not start."""
    (line,) = lines_of(b"\x1b[31mAddress 127.0.0.1:8001 is not available\x1b[0m\n", level="error")
    assert (line["message"], line["level"]) == ("Address 127.0.0.1:8001 is not available", "warning")


def test_text_lines_have_the_same_fields() -> None:
    """Where the log is text, each event is one line with its time, without colours and without the banner."""
    lines = ChromaLines(as_json=False, now=lambda: NOW)
    assert lines.take(BANNER + EVENT + REQUEST) == (
        b"2026-11-21T05:45:07.141011Z [warning  ] Frontend server, addr: x       at=rust/frontend/src/server.rs:416"
        b" in=HTTP request with http.method: GET program=chroma\n"
    )


def test_an_event_that_a_read_cuts_within_a_line_is_one_object() -> None:
    """What was read of it before waits for the rest."""
    for end in range(len(EVENT)):
        if not EVENT[:end].endswith(b"\n"):
            (event,) = lines_of(EVENT[:end], EVENT[end:])
            assert event["in"] == "HTTP request with http.method: GET"


@given(some.lists(some.integers(1, 400), max_size=20))
def test_no_word_is_lost_wherever_it_is_cut(cuts: list[int]) -> None:
    """Reads end anywhere. Every event comes out, and every line that comes out is JSON."""
    data, pieces = BANNER + EVENT * 2 + PANIC, []
    for cut in cuts:
        pieces.append(data[:cut])
        data = data[cut:]
    text = json.dumps(lines_of(*pieces, data))
    for word in ("Frontend server", "server.rs:416", "http.method: GET", "no such thing"):
        assert word in text
    assert text.count("server.rs:416") >= 2  # a line that comes alone is an event of its own
    assert "((((" not in text
    assert "trychroma" not in text


@given(some.binary(max_size=3000))
def test_no_output_of_chroma_breaks_it(data: bytes) -> None:
    """Any bytes become whole lines of JSON, each with a time."""
    lines = ChromaLines()
    for line in (lines.take(data) + lines.end()).splitlines():
        parsed = json.loads(line)
        assert parsed["message"]
