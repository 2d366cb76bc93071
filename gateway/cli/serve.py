"""`serve`, and the program `gateway` of supervisord.conf. Both are servers: their errors are log events."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import structlog
import typer

from gateway.config import Settings, load_settings
from gateway.errors import GatewayError
from gateway.observability import logs


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(serve)
    app.command("gateway", hidden=True)(run_gateway)


def serve(
    config: Annotated[Path | None, typer.Option(help="supervisord.conf to use instead of the project's own.")] = None,
) -> None:
    """Run Chroma and the gateway in front of it, under supervisord, until SIGTERM or Ctrl-C."""
    from gateway.supervisor.serve import serve as run  # noqa: PLC0415  # each program loads only what it needs

    # A wrong setting is logged here, before supervisord starts a program that would stop for it again and again.
    with _server("serve"):
        run(config)


def run_gateway() -> None:
    """The program `gateway` of supervisord.conf."""
    from gateway.server.listen import serve as run  # noqa: PLC0415

    with _server("gateway") as settings:
        run(settings)


@contextlib.contextmanager
def _server(program: str) -> Iterator[Settings]:
    """Set up the log of a server and give its settings. An error is logged, and its exit code is the process's."""
    # These are the defaults until the settings are read, which may fail.
    logs.configure(as_json=not sys.stderr.isatty(), level="info", program="chroma-gateway")
    try:
        settings = load_settings()
        logs.configure(
            as_json=settings.logs_as_json,
            level=settings.log_level,
            program=program,
            google_project=settings.google_project,
        )
        yield settings
    except GatewayError as error:
        structlog.get_logger().critical(error.message, hint=error.hint, exit_code=error.exit_code)
        raise typer.Exit(error.exit_code) from None
