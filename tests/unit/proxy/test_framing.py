"""Where a body ends: `gateway.proxy.framing`."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.framing import LAST_CHUNK, BadFraming, Chunked, Counted, UntilClose, chunk


@given(st.lists(st.binary(min_size=1, max_size=300)), st.binary(max_size=50), st.data())
def test_a_chunked_body_is_found_however_it_is_cut(payloads: list[bytes], after: bytes, data: st.DataObject) -> None:
    """Payload and what follows come out whole, whatever the pieces."""
    wire = b"".join(map(chunk, payloads)) + LAST_CHUNK + after
    body, got, rest, at = Chunked(), b"", b"", 0
    while at < len(wire):
        size = data.draw(st.integers(1, len(wire) - at))
        piece, at = wire[at : at + size], at + size
        if body.complete:
            rest += piece
        else:
            payload, left = body.take(piece)
            got, rest = got + payload, rest + left
    assert body.complete
    assert (got, rest) == (b"".join(payloads), after)


class Oracle:
    """What httptools makes of the same bytes."""

    def __init__(self) -> None:
        self.payload, self.complete = b"", False

    def on_body(self, data: bytes) -> None:
        self.payload += data

    def on_message_complete(self) -> None:
        self.complete = True


@given(
    st.lists(
        st.sampled_from(
            [b"0\r\n", b"1\r\n", b"0", b"1", b"a", b"\r\n", b"\r", b"\n", b";x", b" ", b"x", b"-", b"A", b":"]
        ),
        max_size=14,
    )
)
def test_what_is_accepted_is_understood_as_another_parser_does(parts: list[bytes]) -> None:
    """Of any bytes: if we see a whole body in them, so does llhttp, with the same payload."""
    wire = b"".join(parts)
    body = Chunked()
    try:
        payload, rest = body.take(wire)
    except BadFraming:
        return
    if not body.complete:
        return
    oracle = Oracle()
    parser = httptools.HttpRequestParser(oracle)
    parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + wire[: len(wire) - len(rest)])
    assert oracle.complete
    assert oracle.payload == payload


def test_counted_bodies_end_where_they_said() -> None:
    """Not a byte more or less."""
    body = Counted(5)
    assert body.take(b"abc") == (b"abc", b"")
    assert not body.complete
    assert body.take(b"deGET") == (b"de", b"GET")
    assert body.complete
    assert Counted(0).complete


def test_a_body_until_close_has_no_end_of_its_own() -> None:
    """Only its connection does."""
    body = UntilClose()
    assert body.take(b"x" * 10) == (b"x" * 10, b"")
    assert not body.complete


@pytest.mark.parametrize(
    "endless", [b"1;" + b"x" * 2000, b"0\r\n" + b"a: b\r\n" * 2000, b"1" * 2000], ids=["extension", "trailers", "size"]
)
def test_nothing_in_a_chunked_body_may_go_on_for_ever(endless: bytes) -> None:
    """Lines and trailers have limits."""
    with pytest.raises(BadFraming):
        Chunked().take(endless)


def test_an_empty_chunk_is_none() -> None:
    """It would be the last."""
    assert chunk(b"") == b""
    assert chunk(b"ab") == b"2\r\nab\r\n"
