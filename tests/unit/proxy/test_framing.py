"""Where a body ends: `gateway.proxy.framing`."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.framing import LAST_CHUNK, BadFraming, Chunked, Counted, UntilClose, chunk


@given(st.lists(st.binary(min_size=1, max_size=300)), st.binary(max_size=50), st.data())
def test_a_chunked_body_is_read_however_it_is_split(payloads: list[bytes], after: bytes, data: st.DataObject) -> None:
    """The payload and what follows it are complete, whatever the pieces."""
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
    """What httptools reads from the same bytes."""

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
def test_an_accepted_body_means_the_same_to_another_parser(parts: list[bytes]) -> None:
    """If the gateway reads a complete body from any bytes, so does llhttp, with the same payload."""
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


def test_a_counted_body_ends_after_content_length_bytes() -> None:
    """Not a byte more or less."""
    body = Counted(5)
    assert body.take(b"abc") == (b"abc", b"")
    assert not body.complete
    assert body.take(b"deGET") == (b"de", b"GET")
    assert body.complete
    assert Counted(0).complete


def test_a_body_until_close_is_never_complete() -> None:
    """It ends with its connection."""
    body = UntilClose()
    assert body.take(b"x" * 10) == (b"x" * 10, b"")
    assert not body.complete


@pytest.mark.parametrize(
    "endless", [b"1;" + b"x" * 2000, b"0\r\n" + b"a: b\r\n" * 2000, b"1" * 2000], ids=["extension", "trailers", "size"]
)
def test_lines_and_trailers_of_a_chunked_body_have_limits(endless: bytes) -> None:
    """Otherwise they could fill the memory."""
    with pytest.raises(BadFraming):
        Chunked().take(endless)


def test_an_empty_payload_makes_no_chunk() -> None:
    """An empty chunk would end the body."""
    assert chunk(b"") == b""
    assert chunk(b"ab") == b"2\r\nab\r\n"
