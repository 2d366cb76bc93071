"""`quiesce` and `resume`: hold writes back for a disk snapshot from outside."""

from typing import Annotated

import typer

from gateway.cli.client import connect
from gateway.cli.options import AsJson, Token, Url
from gateway.cli.output import print_json
from gateway.config import seconds


def quiesce(
    ttl_s: Annotated[
        float,
        typer.Option(parser=seconds, metavar="DURATION", help="Writes resume by themselves after this: 90, 90s or 5m."),
    ] = 60,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Hold writes back until `resume`. Returns when no write is under way; reads go on."""
    with connect(url, token) as gateway:
        found = gateway.quiesce(ttl_s)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"writes are held back until {found['expires_at']}, or until `chroma-gateway resume`")


def resume(url: Url = None, token: Token = None, as_json: AsJson = False) -> None:
    """End a quiesce. Safe to repeat."""
    with connect(url, token) as gateway:
        found = gateway.resume()
    if as_json:
        print_json(found)
    elif found["was_quiesced"]:
        typer.echo("writes go on")
    else:
        typer.echo("writes were not held back")
