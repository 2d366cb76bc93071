"""`restore --at`, `history` and `flush`: what people see, and what is refused before anything is asked."""

import json
from typing import Any

import pytest
import respx

from gateway.cli.main import run
from tests.unit.cli.test_main import URL, refused

ADMIN = "http://gateway.test:8000/admin"
STATE = {
    "at": "2026-11-26T20:15:02.500000Z",
    "snapshot": "20261120T210455Z-3f9a1c",
    "entries": 12,
    "return_to": "2026-11-26T20:30:00.123000Z",
    "undo": "chroma-gateway restore --at 2026-11-26T20:30:00.123Z",
    "stored": True,
}
COLLECTION = {"tenant": "t", "database": "d", "name": "n", "id": "x", "records": 3, "dimension": 2}
JOB = {"id": "1", "kind": "restore", "subject": "", "phase": None, "done": 0, "total": None, "unit": "bytes"}


def ended(result: dict[str, Any]) -> dict[str, Any]:
    return JOB | {"state": "succeeded", "result": result, "error": None, "exit_code": 0}


@pytest.mark.parametrize("at", ["2026-11-26T20:15:03Z", "-15m"])
@respx.mock
def test_a_restore_prints_the_moment_and_the_command_to_go_back(capsys: pytest.CaptureFixture[str], at: str) -> None:
    """A moment that begins with a minus is no option."""
    route = respx.post(f"{ADMIN}/restore").respond(202, json=ended(STATE))
    assert run(["restore", "--at", at, *URL]) == 0
    assert json.loads(route.calls.last.request.content) == {"at": at}
    out = capsys.readouterr().out
    assert "served is the state of 2026-11-26T20:15:02.500000Z" in out
    assert "to go back: chroma-gateway restore --at 2026-11-26T20:30:00.123Z\n" in out


@respx.mock
def test_a_restore_of_a_snapshot_says_how_to_go_back_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Or that there is no way back."""
    snapshot = {
        "id": "20261120T210455Z-3f9a1c",
        "label": None,
        "size_bytes": 1,
        "chroma_version": "1.5.9",
        "verified": None,
        "state": "complete",
        "collections": [],
    }
    route = respx.post(f"{ADMIN}/snapshot/latest/restore")
    route.respond(202, json=ended({**snapshot, "return_to": STATE["return_to"], "undo": STATE["undo"]}))
    assert run(["restore", *URL]) == 0
    assert f"to go back: {STATE['undo']}\n" in capsys.readouterr().out
    route.respond(202, json=ended({**snapshot, "return_to": None, "undo": None}))
    assert run(["restore", *URL]) == 0
    assert "there is no way back" in capsys.readouterr().out


@respx.mock
def test_a_dry_run_shows_what_would_be_restored(capsys: pytest.CaptureFixture[str]) -> None:
    """And restores nothing."""
    preview = {**STATE, "fetched_bytes": 3 << 20, "duration_s": 4.2, "collections": [COLLECTION]}
    route = respx.post(f"{ADMIN}/restore").respond(202, json=ended(preview))
    assert run(["restore", "--at", "-1h", "--dry-run", *URL]) == 0
    assert json.loads(route.calls.last.request.content) == {"at": "-1h", "dry_run": True}
    assert capsys.readouterr().out.splitlines() == [
        "would restore the state of 2026-11-26T20:15:02.500000Z",
        "  snapshot 20261120T210455Z-3f9a1c, and 12 entries of the journal",
        "  3.0 MiB to fetch, about 4 s",
        "  t/d/n: 3 records",
    ]


@respx.mock
def test_history_is_one_line_of_time(capsys: pytest.CaptureFixture[str]) -> None:
    """The window first, then snapshots and marks, newest first."""
    mark = {"position": "2-1", "epoch": 2, "where": "web-1:7", "snapshot": None, "restored_to": None}
    history = {
        "oldest": "2026-11-26T20:00:00Z",
        "newest": "2026-11-26T22:00:00Z",
        "full_since": "2026-11-26T21:00:00Z",
        "merged_resolution_s": 60.0,
        "snapshots": [{"id": "20261126T200000Z-000000", "at": "2026-11-26T20:00:00Z", "label": "checkpoint"}],
        "marks": [
            mark | {"kind": "restore", "at": "2026-11-26T20:30:00.250000Z", "restored_to": "2026-11-26T20:10:00Z"},
            mark | {"kind": "seal", "at": "2026-11-26T19:59:00Z"},
        ],
        "gaps": [{"first": 3, "last": 4}],
        "entries": 9,
        "stored_bytes": 2048,
        "next": 17,
    }
    respx.get(f"{ADMIN}/history").respond(json=history)
    assert run(["history", *URL]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "any moment from 2026-11-26T20:00:00Z to 2026-11-26T22:00:00Z can be restored",
        "  to the cut since 2026-11-26T21:00:00Z, before that to 60 s",
        "  9 entries, 2.0 KiB",
        "MISSING: entries 3 to 4",
        "2026-11-26T20:30:00.250  restored to 2026-11-26T20:10:00Z  web-1:7",
        "2026-11-26T20:00:00Z     snapshot 20261126T200000Z-000000  checkpoint",
        "2026-11-26T19:59:00Z     a gateway took over, epoch 2      web-1:7",
        "older marks: chroma-gateway history --before 17",
    ]


@respx.mock
def test_flush_says_up_to_where_everything_is_stored(capsys: pytest.CaptureFixture[str]) -> None:
    """`--position` is sent as it is."""
    flushed = {"position": "3-7", "at": "2026-11-26T20:00:00Z", "waited_s": 0.1}
    route = respx.post(f"{ADMIN}/flush").respond(json=flushed)
    assert run(["flush", "--position", "3-5", *URL]) == 0
    assert json.loads(route.calls.last.request.content) == {"position": "3-5"}
    assert capsys.readouterr().out == "everything is stored up to 2026-11-26T20:00:00Z (position 3-7)\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["restore", "latest", "--at", "-1h", *URL], "were both given"),
        (["restore", "--data-dir", "x", *URL], "--data-dir is only for --store"),
        (["restore", "--store", "file:///tmp/s"], "--store needs --data-dir"),
        (["restore", "--store", "file:///tmp/s", "--dry-run"], "--dry-run asks a running gateway"),
        (["restore", "--store", "file:///tmp/s", "--data-dir", "x", "--at", "noon"], "--at noon is no moment"),
    ],
)
def test_what_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    """Before anything is asked or read."""
    exit_code, err = refused(capsys, *arguments)
    assert exit_code == 2
    assert said in err
