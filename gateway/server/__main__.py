"""The program `gateway` of supervisord.conf: `python -m gateway.server`. Serves until told to stop."""

from gateway.server.program import program

if __name__ == "__main__":
    with program("gateway") as settings:
        from gateway.server.listen import serve  # a wrong setting is told without waiting for it

        serve(settings)
