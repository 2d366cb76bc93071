"""What every program that serves begins with: its log and its settings. Its errors are log lines and exit codes."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import structlog

from gateway.errors import GatewayError
from gateway.observability import logs

if TYPE_CHECKING:
    from gateway.config import Settings


@contextlib.contextmanager
def program(name: str) -> Iterator[None]:
    """Set up the log, without settings. An error in the block is logged, and its exit code is the process's."""
    logs.configure(as_json=not sys.stderr.isatty(), level="info", program=name)
    try:
        yield
    except GatewayError as error:
        structlog.get_logger().critical(error.message, hint=error.hint, exit_code=error.exit_code)
        sys.exit(error.exit_code)


def settings_of(name: str) -> "Settings":
    """Read the settings of the program `name`, and log as they say. Raises ConfigError."""
    from gateway.config import load_settings  # noqa: PLC0415  # a quarter of a start, which `serve` does without

    settings = load_settings()
    logs.configure(
        as_json=settings.logs_as_json,
        level=settings.log_level,
        program=name,
        google_project=settings.google_project,
    )
    return settings
