"""Tests of gateway.light_imports."""

import subprocess
import sys
import tempfile

import pytest

from tests.gateway_process import ROOT


def ends_with(status: int, code: str, cwd: str | None = None, env: dict[str, str] | None = None) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=cwd, env=env, check=False
    )
    assert ended.returncode == status, ended.stderr


@pytest.mark.parametrize("options", [[], ["--config", str(ROOT / "supervisord.conf")], ["--port", "8000"]])
def test_serve_imports_next_to_nothing(options: list[str]) -> None:
    """It becomes supervisord, which starts the gateway: what it imports is imported in vain, at every start."""
    code = f"""
import os, sys
def become(executable, argv, environment):
    parser = {{"pydantic", "typer"}} if "--port" not in sys.argv else set()
    heavy = ({{"asyncio", "httpx", "structlog", "supervisor"}} | parser) & set(sys.modules)
    assert not heavy, heavy
    assert {str(ROOT / "supervisord.conf")!r} in argv, argv
    sys.exit(7)
os.execve = become
sys.argv = ["chroma-gateway", "serve", *{options!r}]
import gateway.__main__
gateway.__main__.main()
"""
    # Short, because a Unix socket lies in it.
    with tempfile.TemporaryDirectory(prefix="gw-") as directory:
        ends_with(7, code, cwd=directory)


@pytest.mark.parametrize("program", ["gateway.server.__main__", "gateway.__main__"])
def test_a_start_does_not_import_what_draws(program: str) -> None:
    """And whoever wants to draw later still can."""
    code = f"""
import runpy, sys
sys.argv = ["program", "serve", "--config", "/nowhere"]
try:
    runpy.run_module("{program}", run_name="__main__")
except SystemExit:
    pass
assert "structlog" in sys.modules
assert not [name for name in sys.modules if name.partition(".")[0] in ("rich", "pygments")]
import rich.console
"""
    ends_with(0, code, env={"PORT": "no"})


def test_a_command_that_asks_a_gateway_does_not_import_what_draws() -> None:
    """httpx would, for a command line of its own."""
    code = """
import sys
from gateway.cli.main import run
assert run(["status", "--url", "http://127.0.0.1:9", "--token", "x"]) == 1
assert "httpx" in sys.modules
assert not [name for name in sys.modules if name.partition(".")[0] in ("rich", "pygments")]
"""
    ends_with(0, code)


def test_the_admin_client_is_light() -> None:
    """It imports httpx, and neither the server nor Chroma nor what builds models."""
    code = """
import sys
import gateway.admin
heavy = {"aiobotocore", "chromadb", "fastapi", "pydantic", "structlog", "uvicorn"} & set(sys.modules)
ours = {name for name in sys.modules if name.startswith("gateway.")} - {"gateway.admin", "gateway.errors"}
assert not heavy, heavy
assert not [name for name in ours if not name.startswith("gateway.admin.")], ours
"""
    ends_with(0, code)


def test_probes_are_answered_before_the_admin_application_is_imported() -> None:
    """Until a gateway is ready nobody needs it, and its import would be half of the start."""
    code = """
import sys
import gateway.server.listen
heavy = {"aiobotocore", "chromadb", "fastapi", "onnxruntime", "supervisor", "tokenizers"} & set(sys.modules)
assert not heavy, heavy
"""
    ends_with(0, code)
