"""The commands of `chroma-gateway` for tests, as a process of their own or in the process of the tests.

In the process of the tests a command takes a tenth of the time, most of which is imports.
"""

import contextlib
import io
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from unittest import mock

import structlog

from gateway.cli.main import run
from tests.gateway_process import Gateway

_TIMEOUT_S = 170


def run_process(gateway: Gateway, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command as people do, in the directory and with the settings of `gateway`, changed by `env`."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        cwd=gateway.directory,
        env=gateway.env | env,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )


def run_command(gateway: Gateway, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The same result as `run_process`, without a process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, gateway.env | env, clear=True),
        contextlib.chdir(gateway.directory),
        _logging_as_before(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        warnings.simplefilter("ignore")
        status = run([*arguments])
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _logging_as_before() -> Iterator[None]:
    """A command sets up the log of its process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()
