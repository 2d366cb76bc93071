"""The responses of `/healthz` and `/readyz`, which platforms wait for at a start.

They do without FastAPI: importing the admin application takes longer than Chroma's start. So they say nothing of it. A
process that cannot build it ends. `gateway.api.health` describes their fields.
"""

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Scope

from gateway.api.key_holder import KeyHolder
from gateway.errors import Unavailable
from gateway.observability.health import Health
from gateway.vectorstore import Phase


def probe_response(scope: Scope, health: Health, scraper: KeyHolder) -> JSONResponse | None:
    """The response if a request is a probe, else None."""
    if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
        match scope["path"]:
            case "/healthz":
                return alive()
            case "/readyz":
                return readiness(health, sees_names=scraper.lets_pass(Request(scope)))
    return None


def alive() -> JSONResponse:
    """This process works. That says nothing of Chroma."""
    return JSONResponse({"status": "ok"})


def readiness(health: Health, *, sees_names: bool) -> JSONResponse:
    """200 if the data is being served, 503 with the reason if not.

    `sees_names`: whether the client may know names of collections and of the store.
    """
    found = health.readiness()
    if found.phase is Phase.READY:
        warnings, unreadable = health.warnings, health.unreadable()
        if not sees_names:
            warnings, unreadable = [f"{len(warnings)}, for those who ask with a key"] if warnings else [], {}
        ready = {"status": "ready", "warnings": warnings}
        return JSONResponse({**ready, "unreadable": unreadable} if unreadable else ready)
    reason, progress = found.reason, found.progress
    if not sees_names:
        reason, progress = found.phase.text, {k: v for k, v in progress.items() if k != "unreadable"}
    error = Unavailable(reason)
    body = {**error.body(), "phase": found.phase.value, **progress}
    return JSONResponse(body, error.status, {"Retry-After": str(error.retry_after_s)})
