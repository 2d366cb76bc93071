"""`chroma-gateway key …`."""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from gateway.auth.keys import parse_keys
from gateway.auth.tokens import digest_of, id_of, new_token

app = typer.Typer(help="Keys for those who use the gateway.", no_args_is_help=True)


@app.callback()
def _keys() -> None:
    pass


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="What to call it, in the audit and in metrics.")],
    role: Annotated[str, typer.Option(help="reader, writer or admin.")] = "reader",
    tenant: Annotated[
        list[str] | None, typer.Option(help="It sees only these; * and ? match. May be repeated.")
    ] = None,
    database: Annotated[list[str] | None, typer.Option(help="The same for databases.")] = None,
    collection: Annotated[list[str] | None, typer.Option(help="The same for collections' names.")] = None,
    days: Annotated[int | None, typer.Option(help="It ends after so many days.", min=1, max=36500)] = None,
) -> None:
    """Make a key. It is shown once, on stderr; what goes to stdout is its entry for GATEWAY_KEYS_FILE."""
    token = new_token()
    lines = [
        "[[keys]]",
        f"name = {json.dumps(name)}",
        f'id = "{id_of(token)}"',
        f'hash = "{digest_of(token)}"',
        f"role = {json.dumps(role)}",
        *(
            f"{what} = {json.dumps(patterns)}"
            for what, patterns in (("tenants", tenant), ("databases", database), ("collections", collection))
            if patterns
        ),
    ]
    if days:
        lines.append(f"expires = {(datetime.now(UTC) + timedelta(days=days)).isoformat(timespec='seconds')}")
    entry = "\n".join(lines)
    parse_keys(entry, "this key")
    typer.echo(f"the key, which is shown this once: {token}", err=True)
    typer.echo(entry)
