"""Where a message's body ends, by RFC 9112 §6. Pure.

A body takes the pieces that come from a socket, and splits each into payload and what belongs to the next message.
Strict against request smuggling: ambiguous framing is refused, never repaired.
"""

import re
from typing import Protocol

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})(?:;%b(?:=(?:%b|\"[^\"\\\x00-\x1f\x7f]*\"))?)*" % (_TOKEN, _TOKEN))
_TRAILER = re.compile(rb"%b:[^\x00-\x08\x0a-\x1f\x7f]*\r\n" % _TOKEN)
_MAX_LINE_BYTES = 1024
_MAX_TRAILER_BYTES = 8192
_CRLF_BYTES = 2

LAST_CHUNK = b"0\r\n\r\n"


class BadFraming(Exception):
    """The framing is invalid or ambiguous, so the end of the message is not known."""


class Body(Protocol):
    """The part of a message's body that is still to come."""

    complete: bool

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Split `data` into payload of this body and what follows its end. Raises BadFraming.

        The second is empty unless the body is `complete` afterwards.
        """


class Counted:
    """A body of `Content-Length` bytes."""

    __slots__ = ("complete", "left_bytes")

    def __init__(self, length_bytes: int) -> None:
        self.left_bytes = length_bytes
        self.complete = length_bytes == 0

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        left = self.left_bytes - len(data)
        if left > 0:
            self.left_bytes = left
            return data, b""
        self.left_bytes, self.complete = 0, True
        return (data, b"") if left == 0 else (data[:left], data[left:])


class UntilClose:
    """A response's body that ends with its connection. It is never `complete`; the caller sees the connection end."""

    __slots__ = ("complete",)

    def __init__(self) -> None:
        self.complete = False

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        return data, b""


class Chunked:
    """A body with `Transfer-Encoding: chunked`. Extensions and trailers are checked and dropped."""

    __slots__ = ("_left_bytes", "_line", "_trailer_bytes", "complete")

    def __init__(self) -> None:
        self.complete = False
        self._left_bytes = 0  # of the current chunk, including its CRLF
        self._line = b""  # an incomplete line
        self._trailer_bytes: int | None = None  # None until the last chunk came

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        payload: list[bytes] = []
        at = 0
        while at < len(data) and not self.complete:
            at = self._take_chunk(data, at, payload) if self._left_bytes else self._take_line(data, at)
        return payload[0] if len(payload) == 1 else b"".join(payload), data[at:]

    def _take_chunk(self, data: bytes, at: int, payload: list[bytes]) -> int:
        piece = data[at : at + self._left_bytes]
        inside = self._left_bytes - _CRLF_BYTES  # how much of what is left is payload
        if inside > 0:
            payload.append(piece[:inside])
        ending = piece[max(inside, 0) :]
        if ending and ending != b"\r\n"[max(-inside, 0) :][: len(ending)]:
            raise BadFraming("a chunk is longer than its size")
        self._left_bytes -= len(piece)
        return at + len(piece)

    def _take_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at)
        self._line += data[at:] if end < 0 else data[at : end + 1]
        if len(self._line) > _MAX_LINE_BYTES:
            raise BadFraming("a chunk's first line is too long")
        if end < 0:
            return len(data)
        line, self._line = self._line, b""
        if not line.endswith(b"\r\n"):
            raise BadFraming("a line of a chunked body does not end in CRLF")
        if self._trailer_bytes is not None:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > _MAX_TRAILER_BYTES:
                raise BadFraming("the trailers of a chunked body are too long")
            self.complete = line == b"\r\n"
            if not self.complete and _TRAILER.fullmatch(line) is None:
                raise BadFraming("a trailer is not a valid header")
            return end + 1
        match = _CHUNK_SIZE.fullmatch(line[:-2])
        if match is None:
            raise BadFraming("a chunk does not begin with its size")
        size = int(match[1], 16)
        if size:
            self._left_bytes = size + _CRLF_BYTES
        else:
            self._trailer_bytes = 0
        return end + 1


def chunk(payload: bytes) -> bytes:
    """`payload` as one chunk. Empty bytes if it is empty: an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""
