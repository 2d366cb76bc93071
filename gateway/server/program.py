"""What every program that serves begins with: its settings and its log. Its errors are log lines and exit codes."""

import contextlib
import sys
from collections.abc import Iterator

import structlog

from gateway.config import Settings, load_settings
from gateway.errors import GatewayError
from gateway.observability import logs


@contextlib.contextmanager
def program(name: str) -> Iterator[Settings]:
    """Set up the log and give the settings. An error in the block is logged, and its exit code is the process's."""
    # These are the defaults until the settings are read, which may fail.
    logs.configure(as_json=not sys.stderr.isatty(), level="info", program=name)
    try:
        settings = load_settings()
        logs.configure(
            as_json=settings.logs_as_json,
            level=settings.log_level,
            program=name,
            google_project=settings.google_project,
        )
        yield settings
    except GatewayError as error:
        structlog.get_logger().critical(error.message, hint=error.hint, exit_code=error.exit_code)
        sys.exit(error.exit_code)
