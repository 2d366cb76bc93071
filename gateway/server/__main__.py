"""The program `gateway` of supervisord.conf: `python -m gateway.server`. Serves until told to stop."""

import gc

from gateway.light_imports import without_rich

if __name__ == "__main__":
    # What is imported stays. Looking through it again and again takes a tenth of the start, and delays requests later.
    gc.disable()
    without_rich("structlog", "httpx")
    from gateway.server.program import program, settings_of

    with program("gateway"):
        settings = settings_of("gateway")
        from gateway.server.listen import serve  # a wrong setting is told without waiting for it

        gc.freeze()
        gc.enable()
        serve(settings)
