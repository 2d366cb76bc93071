"""Message heads: `gateway.proxy.heads`."""

import pytest

from gateway.errors import HeadTooLarge
from gateway.proxy.heads import parse_request


@pytest.mark.parametrize(
    ("given", "accepted"),
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
def test_a_request_id_is_short_printable_ascii_or_ignored(given: bytes, accepted: bytes | None) -> None:
    """It is written to logs and to the audit, which people read in a terminal."""
    head = parse_request(b"GET /api/v2/version HTTP/1.1\r\nHost: x\r\nX-Request-Id: %b\r\n\r\n" % given)
    assert head.request_id == accepted


def test_a_head_has_no_more_headers_than_chroma_takes() -> None:
    """Thousands of empty ones fit into a head, and are slow to parse."""
    head = b"GET /api/v2/version HTTP/1.1\r\n%b\r\n"
    assert parse_request(head % (b"a:\r\n" * 100)).path == b"/api/v2/version"
    with pytest.raises(HeadTooLarge, match="100 headers"):
        parse_request(head % (b"a:\r\n" * 101))
