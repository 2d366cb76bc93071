"""`repair`: make the index of one collection of the running gateway sound."""

from typing import Annotated

import typer

from gateway.admin import Repaired
from gateway.cli.client import connect
from gateway.cli.options import AsJson, Token, Url
from gateway.cli.output import print_json
from gateway.cli.progress_bars import ProgressBars
from gateway.errors import GatewayError

_MAX_SHOWN = 20


def repair(
    collection: Annotated[str, typer.Argument(help="A collection's name or UUID.")],
    tenant: Annotated[str, typer.Option(help="Of a name.")] = "default_tenant",
    database: Annotated[str, typer.Option(help="Of a name.")] = "default_database",
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build a sound index anew too.")] = False,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Repair the index of a collection with one restart of Chroma. The exit code is 1 if it cannot be read after it."""
    with connect(url, token) as gateway, ProgressBars.on_terminal(as_json=as_json) as bars:
        found = gateway.repair(collection, tenant=tenant, database=database, rebuild=rebuild, on_job=bars.show_job)
    if as_json:
        print_json(found)
    else:
        for problem in found["problems"]:
            typer.echo(f"was wrong: {problem}")
        typer.echo(f"{found['collection']}: way {found['way']}, {_sources(found)}")
        typer.echo(f"took {found['duration_s']:.1f} s; Chroma was stopped for {found['outage_s']:.1f} s")
        if found["lost"]:
            typer.echo(f"{found['lost']} record(s) lost their vector; upsert them again:")
            for lost in found["lost_ids"][:_MAX_SHOWN]:
                typer.echo(f"  {lost}")
            if found["lost"] > _MAX_SHOWN:
                typer.echo(f"  … and {found['lost'] - _MAX_SHOWN} more: --json lists them")
    if not found["is_readable"]:
        raise GatewayError(
            f"{found['collection']} still cannot be read: {found['unreadable_because']}",
            "restore a snapshot, or delete the collection; all others are served",
        )


def _sources(found: Repaired) -> str:
    return (
        f"{found['from_index']} record(s) from an index, {found['from_torn_files']} from torn files,"
        f" {found['from_log']} row(s) from the log, {found['lost']} lost"
    )
