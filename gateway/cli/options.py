"""Options and arguments that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Url = Annotated[
    str | None, typer.Option("--url", help="URL of the gateway. Default: where HOST and PORT say that it listens.")
]
Token = Annotated[
    str | None,
    typer.Option("--token", help="Admin token. Default: GATEWAY_ADMIN_TOKEN, else the file var/admin-token."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result and any error as JSON, and no progress.")]

SnapshotName = Annotated[str, typer.Argument(help="A snapshot's id, or 'latest'.")]
StoreUrl = Annotated[
    str | None, typer.Option("--store", help="Read this store directly, without a gateway: s3://… or file:///….")
]
UserId = Annotated[str | None, typer.Option(help="With --store: whose snapshots. Default: GATEWAY_USER_ID.")]
Scratch = Annotated[
    Path | None,
    typer.Option(help="With --store: where a copy is restored to for a while. Default: the current directory."),
]
