"""Heads: what of them is believed."""

import pytest

from gateway.proxy.heads import parse_request


@pytest.mark.parametrize(
    ("given", "believed"),
    [
        (b"deed-1", b"deed-1"),
        (b"x" * 200, b"x" * 200),
        (b"x" * 201, None),
        (b"x" * 60_000, None),
        (b"two words", None),
        (b"\x9b31mred", None),
        (b"", None),
    ],
)
def test_a_request_id_is_short_and_plain_or_none(given: bytes, believed: bytes | None) -> None:
    """It stands in logs and in the audit, and on somebody's terminal."""
    head = parse_request(b"GET /api/v2/version HTTP/1.1\r\nHost: x\r\nX-Request-Id: %b\r\n\r\n" % given)
    assert head.request_id == believed
