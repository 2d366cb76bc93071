"""Events of requests."""

from typing import Any

from structlog.testing import capture_logs

from gateway.api.request_ids import numbered


async def test_a_path_is_a_part_of_one_line() -> None:
    """Whatever a stranger writes into it: as it came, and not longer than a line."""

    async def nothing(*_: Any) -> None:
        pass

    for raw_path in (b"/admin/a%0a%1b[31mevent", b"/admin/" + b"x" * 60_000):
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/admin/a\n\x1b[31mevent",
            "raw_path": raw_path,
            "headers": [],
        }
        with capture_logs() as events:
            await numbered(nothing)(scope, nothing, nothing)
        (event,) = events
        assert event["path"] == raw_path.decode()[:500]
