"""`serve`: become supervisord, which runs Chroma and the gateway."""

from pathlib import Path
from typing import Annotated

import typer

from gateway.server.program import program
from gateway.supervisor.serve import serve as become_supervisord


def serve(
    config: Annotated[Path | None, typer.Option(help="supervisord.conf to use instead of the project's own.")] = None,
) -> None:
    """Run Chroma and the gateway in front of it, under supervisord, until SIGTERM or Ctrl-C."""
    # A wrong setting is logged here, before supervisord starts a program that would stop for it again and again.
    with program("serve") as settings:
        form = "json" if settings.logs_as_json else "text"
        become_supervisord(config, log_format=form, log_level=settings.log_level)
