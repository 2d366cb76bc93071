"""`chroma-gateway …`: the arguments, the errors that people see, and the exit codes (see `gateway.errors`)."""

import importlib
import sys
from collections.abc import Iterable
from typing import Annotated, Any, NoReturn

import typer

import gateway
from gateway.cli.output import print_error
from gateway.errors import GatewayError
from gateway.light_imports import without_rich

_PROGRAM = "chroma-gateway"
_HELP_OPTIONS = ["-h", "--help"]
# Every command, and where this package has it: a function or a group of its own. A new one needs a line here, and only
# here. `gateway.__main__` has the one exception, `serve` as platforms run it. A command is run without importing the
# modules of the others.
_COMMANDS = {
    "serve": "serve.serve",
    "status": "status.status",
    "check": "check.check",
    "snapshot": "snapshots.take_snapshot",
    "list": "snapshots.list_snapshots",
    "show": "snapshots.show_snapshot",
    "verify": "snapshots.verify_snapshot",
    "restore": "journal.restore",
    "history": "journal.history",
    "flush": "journal.flush",
    "delete": "snapshots.delete_snapshot",
    "gc": "snapshots.collect_garbage",
    "export": "archives.export_archive",
    "import": "archives.import_archive",
    "quiesce": "quiesce.quiesce",
    "resume": "quiesce.resume",
    "jobs": "jobs.jobs",
    "documents": "documents.documents",
    "ingest": "ingest.ingest",
    "key": "keys.keys",
    "doctor": "doctor.doctor",
    "store": "store.store",
    "repair": "repair.repair",
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
    pass


def _set_up_log() -> None:
    """Commands print results and errors themselves. Their log has only what the libraries below warn of."""
    # Nearly every command asks a gateway. `doctor` and `store` pay 0.1 s for what they do without.
    without_rich("structlog", "httpx")
    from gateway.observability import logs  # noqa: PLC0415  # `serve` does without

    logs.configure(as_json=False, level="warning", program=_PROGRAM)


def application(names: Iterable[str] = _COMMANDS) -> typer.Typer:
    """The app with the commands `names`. Imports their modules and no others."""
    app = typer.Typer(
        help="Chroma behind a gateway that takes snapshots and restores them.",
        context_settings={"help_option_names": _HELP_OPTIONS},
        no_args_is_help=True,
        # Completion starts the program without arguments, and is set up by options of the program itself.
        add_completion=names is _COMMANDS,
        pretty_exceptions_enable=False,
    )
    app.callback()(_main)
    for name in names:
        module, _, attribute = _COMMANDS[name].partition(".")
        found = getattr(importlib.import_module(f"gateway.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name, no_args_is_help=True)
        else:
            app.command(name)(found)
    return app


def _hide_type_of_flags(command: Any) -> None:
    """Leave `<bool>` out of the help of a command and those below it: a flag has no value to type."""
    of_help = command.get_help_option(typer.Context(command, help_option_names=_HELP_OPTIONS))
    for parameter in (*command.params, of_help):
        if getattr(parameter, "is_bool_flag", False):
            parameter.metavar = ""
    for each in getattr(command, "commands", {}).values():
        _hide_type_of_flags(each)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code. An error is shown on stderr, as JSON if `--json` was given."""
    # Read here too, because a usage error is found before the command's own options are known.
    as_json = "--json" in arguments
    try:
        names = [name for name in arguments[:1] if name in _COMMANDS]
        if names != ["serve"]:
            _set_up_log()
        app = application(names or _COMMANDS)
        command = typer.main.get_command(app)
        _hide_type_of_flags(command)
        return command(arguments, prog_name=_PROGRAM, standalone_mode=False) or 0
    except GatewayError as error:
        from gateway.admin import AnsweredError  # noqa: PLC0415  # `serve`, `doctor` and `store` need no client
        from gateway.cli.hints import hint_for_commands  # noqa: PLC0415

        name = error.name if isinstance(error, AnsweredError) else type(error).__name__
        print_error(name, error.message, hint_for_commands(error), as_json=as_json)
        return error.exit_code
    except typer.TyperException as error:
        # Without a message the help was shown already: a group was called without a command.
        if message := error.format_message():
            context = getattr(error, "ctx", None)
            words = context.command_path if context else _PROGRAM
            message = message.replace("Value error, ", "")  # pydantic's words for a ValueError of ours
            print_error("UsageError", message, f"{words} --help", as_json=as_json)
        return error.exit_code
    except typer.Abort:
        print_error("Aborted", "aborted", None, as_json=as_json)
        return GatewayError.exit_code


def main() -> NoReturn:
    """Run the command that the process's arguments name, and exit."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
