"""The application as a whole: what comes before its routes."""

from typing import Any

import pytest

from gateway.api.app import bounded
from gateway.api.deps import KeyHolder
from gateway.auth.keyring import Keyring
from gateway.auth.scope import Role


@pytest.mark.parametrize(("method", "path"), [("PATCH", "/admin/users/default/avatars/a/b"), ("POST", "/admin/none")])
async def test_what_a_stranger_sends_is_not_read(method: str, path: str) -> None:
    """Before anybody knows whose it is, a body costs nothing: it would be parsed where all requests wait."""
    said: list[dict[str, Any]] = []

    async def application(*_: Any) -> None:
        raise AssertionError("it reached the routes")

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        said.append(message)

    holder = KeyHolder(Keyring("an-admin-token"), Role.ADMIN)
    for headers in ([], [(b"authorization", b"Bearer wrong")]):
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
        await bounded(application, holder, 1)(scope, receive, send)
    assert [message["status"] for message in said if message["type"] == "http.response.start"] == [401, 401]


@pytest.mark.parametrize(
    ("sent", "routed"),
    [
        ("/admin/snapshot/", "/admin/snapshot"),
        ("/readyz//", "/readyz"),
        ("/", "/"),
        ("/admin/users/default/avatars/a/media/", "/admin/users/default/avatars/a/media/"),
    ],
)
async def test_a_slash_at_the_end_changes_nothing(sent: str, routed: str) -> None:
    """A redirect would: curl follows none and ends with 0, so a cron job would take no snapshot."""
    seen: list[str] = []

    async def application(scope: Any, *_: Any) -> None:
        seen.extend((scope["path"], scope["raw_path"].decode()))

    holder = KeyHolder(Keyring("an-admin-token"), Role.ADMIN)
    headers = [(b"authorization", b"Bearer an-admin-token")]
    scope = {"type": "http", "method": "POST", "path": sent, "raw_path": sent.encode(), "headers": headers}
    await bounded(application, holder, 1)(scope, None, None)  # type: ignore[arg-type]
    assert seen == [routed, routed]
