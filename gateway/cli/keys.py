"""`key`: keys for the users of the gateway."""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from gateway.auth.keys import parse_keys
from gateway.auth.tokens import digest_of, id_of, new_token

keys = typer.Typer(help="Keys for the users of the gateway.")


@keys.callback()
def _keys() -> None:
    """Keep `new` a command of its own: a group of one command would become that command."""


@keys.command("new")
def new_key(
    name: Annotated[str, typer.Argument(help="Its name in the audit log and in metrics.")],
    role: Annotated[str, typer.Option(help="reader, writer or admin.")] = "reader",
    tenant: Annotated[
        list[str] | None, typer.Option(help="Limit the key to these tenants; * and ? match. May be repeated.")
    ] = None,
    database: Annotated[list[str] | None, typer.Option(help="The same for databases.")] = None,
    collection: Annotated[list[str] | None, typer.Option(help="The same for names of collections.")] = None,
    days: Annotated[int | None, typer.Option(help="The key expires after so many days.", min=1, max=36500)] = None,
) -> None:
    """Make a key. stderr shows it, this once; stdout has its entry for GATEWAY_KEYS_FILE."""
    token = new_token()
    lines = [
        "[[keys]]",
        f"name = {json.dumps(name)}",
        f'id = "{id_of(token)}"',
        f'hash = "{digest_of(token)}"',
        f"role = {json.dumps(role)}",
    ]
    for field, patterns in (("tenants", tenant), ("databases", database), ("collections", collection)):
        if patterns:
            lines.append(f"{field} = {json.dumps(patterns)}")
    if days:
        lines.append(f"expires = {(datetime.now(UTC) + timedelta(days=days)).isoformat(timespec='seconds')}")
    entry = "\n".join(lines)
    parse_keys(entry, "this key")  # refuses what the gateway would refuse
    typer.echo(f"the key, which is shown this once: {token}", err=True)
    typer.echo(entry)
