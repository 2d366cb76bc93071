"""What every program that serves begins with: its log and its settings. Its errors are log lines and exit codes."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gateway.errors import GatewayError
from gateway.light_imports import without_rich

if TYPE_CHECKING:
    from gateway.config import Settings


@contextlib.contextmanager
def program(name: str) -> Iterator[None]:
    """An error in the block is logged, and its exit code is the process's."""
    try:
        yield
    except GatewayError as error:
        # `serve` becomes another program, and logs nothing else.
        without_rich("structlog")
        import structlog  # noqa: PLC0415

        from gateway.observability import logs  # noqa: PLC0415

        if not structlog.is_configured():
            logs.configure(as_json=not sys.stderr.isatty(), level="info", program=name)
        structlog.get_logger().critical(error.message, hint=error.hint, exit_code=error.exit_code)
        sys.exit(error.exit_code)


def settings_of(name: str) -> "Settings":
    """Read the settings of the program `name`, and log as they say. Raises ConfigError."""
    from gateway.config import load_settings  # noqa: PLC0415  # `serve` does without both
    from gateway.observability import logs  # noqa: PLC0415

    settings = load_settings()
    logs.configure(
        as_json=settings.logs_as_json,
        level=settings.log_level,
        program=name,
        google_project=settings.google_project,
    )
    return settings
