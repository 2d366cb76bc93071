"""`key`: keys for the users of the gateway."""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import quote

import typer

from gateway.admin import Admin, NotFoundError
from gateway.auth.keys import parse_keys
from gateway.auth.tokens import digest_of, id_of, new_token
from gateway.cli.client import connect
from gateway.cli.options import Token, Url

_DEFAULT_DATABASE = "default_database"

keys = typer.Typer(help="Keys for the users of the gateway.")


@keys.callback()
def _keys() -> None:
    """Keep `new` a command of its own: a group of one command would become that command."""


def _literal(patterns: list[str] | None) -> list[str]:
    return [each for each in patterns or () if not set(each) & {"*", "?"}]


def _create(gateway: Admin, tenant: str, databases: list[str]) -> None:
    """Make a tenant and databases of it, unless they are there."""
    wanted = [("/api/v2/tenants", tenant)]
    wanted += [(f"/api/v2/tenants/{quote(tenant, safe='')}/databases", each) for each in databases]
    for path, name in wanted:
        try:
            gateway.request("GET", f"{path}/{quote(name, safe='')}")
        except NotFoundError:
            gateway.request("POST", path, json={"name": name})


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
    ack: Annotated[
        str | None,
        typer.Option(help="stored: its writes are answered when the store has them; local: when Chroma has them."),
    ] = None,
    create: Annotated[
        bool, typer.Option("--create", help="Make the tenants and databases too, at a running gateway.")
    ] = False,
    url: Url = None,
    admin_token: Token = None,
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
    if ack:
        lines.append(f"ack = {json.dumps(ack)}")
    entry = "\n".join(lines)
    parse_keys(entry, "this key")  # refuses what the gateway would refuse
    named = [(each, _literal(database) or [_DEFAULT_DATABASE]) for each in _literal(tenant)]
    if create:
        with connect(url, admin_token) as gateway:
            for each, databases in named:
                _create(gateway, each, databases)
    elif named:
        names = ", ".join(f"{each}/{'|'.join(databases)}" for each, databases in named)
        typer.echo(f"the key needs a tenant and a database that exist ({names}): --create makes them", err=True)
    typer.echo(f"the key, which is shown this once: {token}", err=True)
    typer.echo(entry)
