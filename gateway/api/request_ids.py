"""ASGI middleware that gives each request an id, and its log events the id and the trace."""

import re
import time
import uuid

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger()

_ID = re.compile(r"[\x21-\x7e]{1,200}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
# Other routes answer without a key, so their events could fill the log.
_LOGGED = "/admin/"
# Refused requests are logged too, and their path is the client's.
_MAX_PATH_CHARACTERS = 500


def trace_of(traceparent: str) -> dict[str, str]:
    """`trace_id` and `span_id` of a W3C traceparent; empty if it is not valid."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or set(match[1]) == {"0"} or set(match[2]) == {"0"}:
        return {}
    return {"trace_id": match[1], "span_id": match[2]}


def numbered(app: ASGIApp) -> ASGIApp:
    """`app`, with an id for each request, in its response and in its log events.

    The client's `X-Request-Id` is used if it is valid. A request to `/admin/` ends with a log event.
    """

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
                        path=scope["raw_path"].decode("latin-1")[
                            :_MAX_PATH_CHARACTERS
                        ],  # not decoded, so that it has no line breaks
                        status=status,
                        duration_s=round(time.monotonic() - began_s, 3),
                    )

    return wrapped
