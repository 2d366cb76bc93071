"""The program `gateway` of supervisord.conf: `python -m gateway.server`. Serves until told to stop."""

from gateway.light_imports import without_rich

if __name__ == "__main__":
    without_rich("structlog", "httpx")
    from gateway.server.program import program

    with program("gateway") as settings:
        from gateway.server.listen import serve  # a wrong setting is told without waiting for it

        serve(settings)
