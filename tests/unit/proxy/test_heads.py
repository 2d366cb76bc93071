"""Heads: what of them is believed."""

import pytest

from gateway.errors import HeadTooLarge
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


def test_a_head_has_no_more_headers_than_chroma_takes() -> None:
    """Thousands of empty ones fit into a head, and are many times the work of any other."""
    head = b"GET /api/v2/version HTTP/1.1\r\n%b\r\n"
    assert parse_request(head % (b"a:\r\n" * 100)).path == b"/api/v2/version"
    with pytest.raises(HeadTooLarge, match="100 headers"):
        parse_request(head % (b"a:\r\n" * 101))
