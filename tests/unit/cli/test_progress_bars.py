"""Tests of gateway.cli.progress_bars."""

from typing import Any, cast

import pytest

from gateway.admin import Job
from gateway.cli.progress_bars import ProgressBars
from gateway.jobs import JobStatus


def shown(job: dict[str, Any]) -> Job:
    """As the gateway answers it."""
    return cast("Job", JobStatus.model_validate(job).model_dump(mode="json"))


def test_each_phase_has_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """Of work in this process and of a job; stdout stays free for the result."""
    job = {"id": "1", "kind": "train", "subject": "ada", "state": "running", "started_at": "2026-11-20T21:04:55Z"}
    with ProgressBars() as bars:
        bars.progress.phase("upload", 2048)
        bars.progress.advance(2048)
        bars.show_job(shown(job))
        bars.show_job(shown(job | {"phase": "embed", "done": 1, "total": 3, "unit": "documents"}))
    out, err = capsys.readouterr()
    assert out == ""
    assert ("upload" in err, "2.0 KiB of 2.0 KiB" in err, "embed" in err, "1 of 3" in err) == (True,) * 4


def test_bars_are_not_shown_to_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    """Where stderr is no terminal."""
    with ProgressBars.on_terminal(as_json=False) as bars:
        bars.progress.phase("upload", 2048)
    assert capsys.readouterr() == ("", "")
