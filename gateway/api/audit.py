"""ASGI middleware that writes audit lines for `/admin/*`."""

from collections.abc import Iterable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.auth.addresses import Network, client_address
from gateway.auth.audit import Audit

_READS = ("GET", "HEAD", "OPTIONS")


def audited(app: ASGIApp, audit: Audit, trusted: Iterable[Network]) -> ASGIApp:
    """`app`, with an audit line for each request to `/admin/*` that changes something and has a valid key.

    Reads are not audited. Unauthenticated requests are not either: they change nothing and could fill the disk.
    """
    trusted = tuple(trusted)

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/admin/") or scope["method"] in _READS:
            await app(scope, receive, send)
            return
        status = 500
        state: dict[str, Any] = scope.setdefault("state", {})

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, watched)
        finally:
            if (key := state.get("key")) is not None:
                forwarded = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
                peer = scope["client"][0] if scope.get("client") else "unknown"
                audit.record(
                    who=key.name,
                    role=key.role.name.lower(),
                    address=client_address(peer, forwarded or None, trusted),
                    method=scope["method"],
                    path=scope["raw_path"].decode("latin-1"),
                    action="admin",
                    status=status,
                    request_id=state.get("request_id", ""),
                )

    return wrapped
