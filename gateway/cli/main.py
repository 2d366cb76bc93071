"""`chroma-gateway …`. Exit codes: see `gateway.errors`."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import structlog
import typer

import gateway
from gateway.chroma.process import chroma_version
from gateway.cli import doctor as doctor_cli
from gateway.cli import documents as documents_cli
from gateway.cli import keys as keys_cli
from gateway.cli import snapshots as snapshot_cli
from gateway.config import Settings, load_settings
from gateway.errors import GatewayError
from gateway.observability import logs
from gateway.snapshot.model import FORMAT

app = typer.Typer(
    help="Chroma behind a gateway that can take snapshots and restore them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(keys_cli.app, name="key")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"chroma-gateway {gateway.__version__} (chromadb {chroma_version()}, snapshot format {FORMAT})")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    # Until a program says otherwise: what commands print is for scripts, so that errors go to stderr.
    logs.configure(as_json=False, level="warning", program="chroma-gateway")


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help="supervisord.conf to use instead of the project's own.")] = None,
) -> None:
    """Run Chroma and the gateway in front of it, under supervisord, until SIGTERM or Ctrl-C."""
    from gateway.supervisor.serve import serve as run  # noqa: PLC0415  # each command loads only what it needs

    _settings("serve")  # a wrong setting is told once, here, and not by every program
    run(config)


@app.command()
def status() -> None:
    """Show what the running gateway says of itself: health, sizes, snapshots, collections."""
    from gateway.cli.status import show_status  # noqa: PLC0415

    show_status(_settings("status"))


@app.command("gateway", hidden=True)
def run_gateway() -> None:
    """The program `gateway` of supervisord.conf."""
    from gateway.server.listen import serve as run  # noqa: PLC0415

    run(_settings("gateway"))


snapshot_cli.register(app)
documents_cli.add_to(app)
doctor_cli.register(app)


def _settings(program: str) -> Settings:
    settings = load_settings()
    logs.configure(
        as_json=settings.logs_as_json,
        level=settings.log_level,
        program=program,
        google_project=settings.google_project,
    )
    return settings


def main() -> NoReturn:
    """The entry point: errors become one line on stderr and an exit code."""
    # Until the settings are read, which may be what fails.
    logs.configure(as_json=not sys.stderr.isatty(), level="info", program="chroma-gateway")
    try:
        app(standalone_mode=True)
    except GatewayError as error:
        structlog.get_logger().critical(error.message, hint=error.hint, exit_code=error.exit_code)
        sys.exit(error.exit_code)
    sys.exit(0)


if __name__ == "__main__":
    main()
