"""One line for each event, without secrets."""

import json
import subprocess
import sys

import pytest

_PROGRAM = """
import sys, structlog
from gateway.observability import logs
logs.configure(as_json=sys.argv[1] == "json", level="info", program="test")
log = structlog.get_logger()

def route(token):
    body = {"documents": [token]}
    raise RuntimeError("something broke")

try:
    route("se" + "cret")
except RuntimeError as error:
    log.exception("unexpected error")
    log.error("unexpected error", exc_info=error)
log.debug("not shown")
"""


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_traceback_has_no_local_variables(form: str) -> None:
    """It names the functions, in either format. Local variables may hold tokens and bodies."""
    run = subprocess.run([sys.executable, "-c", _PROGRAM, form], capture_output=True, text=True, check=True)
    assert "something broke" in run.stderr
    assert "route" in run.stderr
    assert "secret" not in run.stderr
    assert "not shown" not in run.stderr


def test_json_is_one_object_a_line() -> None:
    """A log collector can parse each line by itself, and a line says its message once."""
    run = subprocess.run([sys.executable, "-c", _PROGRAM, "json"], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in run.stderr.splitlines()]
    assert [line["message"] for line in lines] == ["unexpected error", "unexpected error"]
    assert {line["program"] for line in lines} == {"test"}
    assert {line["severity"] for line in lines} == {"ERROR"}
    assert all(line["timestamp"] for line in lines)
    assert not any("event" in line for line in lines)
