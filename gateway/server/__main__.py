"""The program `gateway` of supervisord.conf: `python -m gateway.server`. Serves until told to stop."""

from gateway.light_imports import kept_for_good, without_rich
from gateway.server.program import program, settings_of

if __name__ == "__main__":
    with program("gateway"):
        with kept_for_good():
            without_rich("structlog", "httpx")
            settings = settings_of("gateway")
            from gateway.server.listen import serve  # a wrong setting is told without waiting for it
        serve(settings)
