"""Which headers are passed on: `gateway.proxy.headers`."""

import pytest

from gateway.proxy.headers import Headers, for_client, for_upstream

HOP_BY_HOP = [
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
]


@pytest.mark.parametrize("name", HOP_BY_HOP)
@pytest.mark.parametrize("passed_on", [for_upstream, for_client])
def test_hop_by_hop_headers_are_dropped(passed_on, name: bytes) -> None:
    """They belong to one connection (RFC 9110 §7.6.1), in upper and lower case."""
    kept = [(b"a", b"1"), (b"z", b"2")]
    for spelt in (name, name.upper(), name.title()):
        assert passed_on([kept[0], (spelt, b"x"), kept[1], (spelt, b"y")]) == kept


def test_expect_is_not_passed_on() -> None:
    """The gateway sends 100 Continue itself."""
    assert for_upstream([(b"expect", b"100-continue"), (b"a", b"1")]) == [(b"a", b"1")]
    assert for_client([(b"Expect", b"x")]) == [(b"Expect", b"x")]


@pytest.mark.parametrize("passed_on", [for_upstream, for_client])
def test_order_case_and_repetition_are_kept(passed_on) -> None:
    """Headers are passed on byte for byte, and in order."""
    headers = [
        (b"Set-Cookie", b"a=1"),
        (b"X-B", b""),
        (b"set-cookie", b"a=2"),
        (b"Content-Length", b"3"),
        (b"Content-Encoding", b"gzip"),
        (b"X-A", b'\xc3\xa9\xff, ; \t"'),
        (b"Set-Cookie", b"a=1"),
        (b"Host", b"h"),
    ]
    assert passed_on(headers) == headers
    assert passed_on(iter(headers)) == headers
    assert passed_on([]) == []


@pytest.mark.parametrize(
    ("connection", "gone"),
    [
        ([b"x-a"], {b"X-A"}),
        ([b"close, X-A"], {b"X-A"}),
        ([b" x-a ,\tX-B,"], {b"X-A", b"X-B"}),
        ([b"x-a", b"x-b"], {b"X-A", b"X-B"}),
        ([b"x-a", b"keep-alive"], {b"X-A"}),
        ([b"keep-alive", b"x-b"], {b"X-B"}),
        ([b"Keep-Alive"], set()),
        ([b"CLOSE"], set()),
        ([b""], set()),
        ([b",,"], set()),
    ],
)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("passed_on", [for_upstream, for_client])
def test_headers_that_connection_names_are_dropped(
    passed_on, first: bool, connection: list[bytes], gone: set[bytes]
) -> None:
    """`Connection` may name others in any case, in several lines, before or after them."""
    others: Headers = [(b"X-A", b"1"), (b"X-B", b"2"), (b"X-C", b"3"), (b"x-a", b"4")]
    naming = [(b"Connection", value) for value in connection]
    expected = [pair for pair in others if pair[0].title() not in gone]
    assert passed_on([*naming, *others] if first else [*others, *naming]) == expected


@pytest.mark.parametrize("framing", [(b"Content-Length", b"7"), (b"host", b"h")])
@pytest.mark.parametrize("passed_on", [for_upstream, for_client])
def test_connection_cannot_unframe_a_message(passed_on, framing: tuple[bytes, bytes]) -> None:
    """Naming Content-Length or Host in `Connection` is request smuggling: both are passed on all the same."""
    headers = [framing, (b"connection", b"content-length, HOST, x-a"), (b"x-a", b"1")]
    assert passed_on(headers) == [framing]
