"""`serve`: become supervisord, which runs Chroma and the gateway."""

from pathlib import Path
from typing import Annotated

import typer

from gateway.server.program import program
from gateway.supervisor.serve import serve as become_supervisord


def serve(
    host: Annotated[str | None, typer.Option(help="The address to listen on. Default: HOST, else 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(help="The port to listen on. Default: PORT, else 8000.", min=1, max=65535)
    ] = None,
    config: Annotated[Path | None, typer.Option(help="supervisord.conf to use instead of the project's own.")] = None,
) -> None:
    """Run Chroma and the gateway in front of it, under supervisord, until SIGTERM or Ctrl-C."""
    with program("serve"):
        become_supervisord(config, HOST=host, PORT=None if port is None else str(port))
