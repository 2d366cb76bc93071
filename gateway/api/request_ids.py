"""Which request an event belongs to: its id, and the trace it is a part of."""

import re
import time
import uuid

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger()

_ID = re.compile(r"[\x21-\x7e]{1,200}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
# Anybody can ask for anything else, as often as they like.
_LOGGED = "/admin/"
# Strangers are told of, too.
_MAX_PATH_CHARACTERS = 500


def trace_of(traceparent: str) -> dict[str, str]:
    """`trace_id` and `span_id` of a W3C traceparent; nothing for what is not one."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or set(match[1]) == {"0"} or set(match[2]) == {"0"}:
        return {}
    return {"trace_id": match[1], "span_id": match[2]}


def numbered(app: ASGIApp) -> ASGIApp:
    """`app`, with an id for each request, in its answer and its events; those to `/admin/` end with an event."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        trace = trace_of(headers.get(b"traceparent", b"").decode("latin-1"))
        began_s, status = time.monotonic(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id, **trace):
            try:
                await app(scope, receive, answer)
            finally:
                if scope["path"].startswith(_LOGGED):
                    log.info(
                        "request",
                        method=scope["method"],
                        path=scope["raw_path"].decode("latin-1")[:_MAX_PATH_CHARACTERS],  # as it came: one line
                        status=status,
                        duration_s=round(time.monotonic() - began_s, 3),
                    )

    return wrapped
