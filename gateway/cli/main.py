"""`chroma-gateway …`: the arguments, the errors that people see, and the exit codes (see `gateway.errors`)."""

import importlib
import sys
from collections.abc import Iterable
from typing import Annotated, NoReturn

import typer

import gateway
from gateway.cli.output import print_error
from gateway.errors import GatewayError
from gateway.observability import logs

_PROGRAM = "chroma-gateway"
# Each module of this package that has commands, with their names. A command is run without importing the others.
_GROUPS = {
    "serve": ("serve",),
    "status": ("status",),
    "snapshots": ("snapshot", "list", "show", "verify", "restore", "delete", "gc"),
    "archives": ("export", "import"),
    "quiesce": ("quiesce", "resume"),
    "jobs": ("jobs",),
    "documents": ("documents",),
    "ingest": ("ingest",),
    "keys": ("key",),
    "doctor": ("doctor",),
    "repair": ("repair",),
}


def _show_version(wanted: bool) -> None:
    if wanted:
        from gateway.chroma.process import chroma_version  # noqa: PLC0415  # few commands need these two
        from gateway.snapshot.model import FORMAT  # noqa: PLC0415

        typer.echo(f"{_PROGRAM} {gateway.__version__} (chromadb {chroma_version()}, snapshot format {FORMAT})")
        raise typer.Exit


def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    # Commands print results and errors themselves. Their log has only what the libraries below warn of.
    logs.configure(as_json=False, level="warning", program=_PROGRAM)


def application(groups: Iterable[str] = _GROUPS) -> typer.Typer:
    """The app with the commands of `groups`, each a module of this package."""
    app = typer.Typer(
        help="Chroma behind a gateway that takes snapshots and restores them.",
        context_settings={"help_option_names": ["-h", "--help"]},
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_main)
    for group in groups:
        importlib.import_module(f"gateway.cli.{group}").register(app)
    return app


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code. An error is shown on stderr, as JSON if `--json` was given."""
    # Read here too, because a usage error is found before the command's own options are known.
    as_json = "--json" in arguments
    try:
        app = application(
            [group for group, names in _GROUPS.items() if arguments[:1] and arguments[0] in names] or _GROUPS
        )
        return app(arguments, prog_name=_PROGRAM, standalone_mode=False) or 0
    except GatewayError as error:
        from gateway.cli.client import AnsweredError  # noqa: PLC0415

        name = error.name if isinstance(error, AnsweredError) else type(error).__name__
        print_error(name, error.message, error.hint, as_json=as_json)
        return error.exit_code
    except typer.TyperException as error:
        # Without a message the help was shown already: a group was called without a command.
        if message := error.format_message():
            context = getattr(error, "ctx", None)
            command = context.command_path if context else _PROGRAM
            print_error("UsageError", message, f"{command} --help", as_json=as_json)
        return error.exit_code
    except typer.Abort:
        print_error("Aborted", "aborted", None, as_json=as_json)
        return GatewayError.exit_code


def main() -> NoReturn:
    """Run the command that the process's arguments name, and exit."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
