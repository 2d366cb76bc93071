"""Hazards of a proxy, one test each: raw sockets in front of the data path, a misbehaving server behind it."""

import gzip
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import chromadb
import httpx
import pytest

from gateway.proxy.gate import Ticket
from tests.front import COLLECTION, MIB, Front, Wire, front, until
from tests.rude_upstream import OK, Peer, Server, upstream

ROOT = Path(__file__).parents[2]
GET = b"GET /api/v2/heartbeat HTTP/1.1\r\nHost: h\r\n\r\n"
COUNT = f"GET {COLLECTION}/count HTTP/1.1\r\nHost: h\r\n\r\n".encode()


def post(path: str, body: bytes = b"{}", *headers: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n".encode(), *headers, b"\r\n", body]
    return b"".join(lines)


ADD = post(f"{COLLECTION}/add")
QUERY = post(f"{COLLECTION}/query")


def status(answer: bytes) -> int:
    return int(answer.split()[1])


def error(answer: bytes) -> dict[str, str]:
    """The body of one of the gateway's own errors, which has Chroma's shape."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\ncontent-type: application/json" in head
    parsed: dict[str, str] = json.loads(body)
    assert {"error", "message"} <= parsed.keys()
    return parsed


def fields(head: bytes) -> dict[str, list[str]]:
    """Headers by name in lower case."""
    found: dict[str, list[str]] = {}
    for line in head.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        name, _, value = line.decode("latin-1").partition(":")
        found.setdefault(name.lower(), []).append(value.strip())
    return found


# ---------------------------------------------------------------------- headers


def test_hop_by_hop_headers_stay_on_their_hop() -> None:
    """Neither side gets the other's hop-by-hop headers. All others arrive, in order."""
    answer = (
        b"HTTP/1.1 200 OK\r\nX-A: 1\r\nConnection: keep-alive, X-Drop\r\nX-Drop: x\r\nKeep-Alive: timeout=5\r\n"
        b"Proxy-Authenticate: x\r\nUpgrade: h2c\r\nX-a: 2\r\ncontent-length: 0\r\n\r\n"
    )
    with upstream(lambda peer: peer.serve(answer)) as server, front(server.port) as gateway:
        said = gateway.ask(
            b"GET /api/v2/heartbeat HTTP/1.1\r\nHost: h\r\nX-One: 1\r\nConnection: keep-alive, x-secret\r\n"
            b"X-Secret: s\r\nKeep-Alive: 5\r\nTE: trailers\r\nProxy-Authorization: p\r\nProxy-Connection: x\r\n"
            b"Trailer: t\r\nX-One: 2\r\n\r\n"
        )
        seen = fields(server.requests[0][0])
    added = {"x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-request-id"}
    assert seen.keys() - added == {"host", "x-one"}
    assert seen["x-one"] == ["1", "2"]
    assert fields(said).keys() == {"x-a", "content-length", "x-request-id"}
    assert b"X-A: 1\r\nX-a: 2" in said


def test_chroma_gets_forwarding_headers() -> None:
    """The client's address is appended. Scheme and host from a proxy in front are kept."""
    with upstream() as server, front(server.port) as gateway:
        gateway.ask(GET)
        gateway.ask(
            GET.replace(
                b"\r\n\r\n",
                b"\r\nX-Forwarded-For: 203.0.113.9\r\nx-forwarded-for: 198.51.100.1\r\nX-Forwarded-Proto: https\r\n"
                b"X-Forwarded-Host: chroma.example\r\n\r\n",
            )
        )
        first, second = (fields(head) for head, _ in server.requests)
    assert (first["x-forwarded-for"], first["x-forwarded-proto"], first["x-forwarded-host"]) == (
        ["127.0.0.1"],
        ["http"],
        ["h"],
    )
    assert second["x-forwarded-for"] == ["203.0.113.9, 198.51.100.1, 127.0.0.1"]
    assert (second["x-forwarded-proto"], second["x-forwarded-host"]) == (["https"], ["chroma.example"])


def test_chroma_and_the_client_get_the_same_request_id() -> None:
    """The client's own id, or a new one for each request; errors have one, too."""
    with upstream() as server, front(server.port) as gateway:
        answers = [
            gateway.ask(GET),
            gateway.ask(GET),
            gateway.ask(GET.replace(b"Host: h", b"Host: h\r\nX-Request-Id: me")),
        ]
        ids = [fields(answer)["x-request-id"] for answer in answers]
        assert ids == [fields(head)["x-request-id"] for head, _ in server.requests]
    assert ids[0] != ids[1]
    assert ids[2] == ["me"]
    with front(1) as gateway:
        assert fields(gateway.ask(GET))["x-request-id"]


@pytest.mark.parametrize(
    "target",
    [b"/api/v2/a%2Fb/../c//d?x=%20&y=1", b"/api/v2/tenants/%C3%A9?", b"/api/v2/a;b=c,d!$&'()*+", b"/api/v2/%zz"],
)
def test_the_target_is_passed_on_byte_for_byte(target: bytes) -> None:
    """Escapes, dots and slashes are not normalised."""
    with upstream() as server, front(server.port) as gateway:
        gateway.ask(b"GET " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n")
        gateway.ask(b"GET http://other" + target + b" HTTP/1.1\r\nHost: h\r\n\r\n")
        assert [head.split(b" ")[1] for head, _ in server.requests] == [target, target]


def test_compressed_bodies_are_passed_on_unchanged() -> None:
    """In both directions, with their headers."""
    packed = gzip.compress(b"a body " * 100)
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(packed), packed)
    with upstream(lambda peer: peer.serve(answer)) as server, front(server.port) as gateway:
        said = gateway.ask(post("/api/v2/x", packed, b"Content-Encoding: gzip\r\nAccept-Encoding: gzip, br\r\n"))
        head, body = server.requests[0]
    assert said.endswith(b"\r\n\r\n" + packed)
    assert body == packed
    assert fields(head)["content-encoding"] == ["gzip"]
    assert fields(head)["accept-encoding"] == ["gzip, br"]
    assert fields(said)["content-encoding"] == ["gzip"]


# ---------------------------------------------------------------------- framing

SMUGGLING = {
    "both": b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both, in the other order": b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 3\r\nContent-Length: 5\r\n\r\n{}   ",
    "one length twice": b"Content-Length: 3\r\nContent-Length: 3\r\n\r\n{} ",
    "a list of lengths": b"Content-Length: 3, 3\r\n\r\n{} ",
    "a signed length": b"Content-Length: +3\r\n\r\n{} ",
    "a negative length": b"Content-Length: -3\r\n\r\n{} ",
    "a length in hex": b"Content-Length: 0x3\r\n\r\n{} ",
    "two encodings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "an encoding list": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "an unknown encoding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "an encoding after a control character": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"Content-Length : 3\r\n\r\n{} ",
    "a folded header": b"X: a\r\n Content-Length: 3\r\n\r\n{} ",
    "a bare line feed": b"X: a\nContent-Length: 3\r\n\r\n{} ",
    "only line feeds": b"X: a\n\n",
    "a bare carriage return": b"X: a\rContent-Length: 3\r\n\r\n{} ",
    "a NUL": b"X: a\x00b\r\n\r\n",
    "a chunk longer than its size": b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    "a chunk without a size": b"Transfer-Encoding: chunked\r\n\r\n\r\n0\r\n\r\n",
    "a chunk size in octal": b"Transfer-Encoding: chunked\r\n\r\n0o1\r\na\r\n0\r\n\r\n",
    "a negative chunk": b"Transfer-Encoding: chunked\r\n\r\n-1\r\na\r\n0\r\n\r\n",
    "a huge chunk": b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\na\r\n0\r\n\r\n",
    "chunk lines of LF": b"Transfer-Encoding: chunked\r\n\r\n1\na\n0\n\n",
}


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Server, Front]]:
    """Shared by tests that leave no state behind."""
    with upstream() as server, front(server.port) as gateway:
        yield server, gateway


@pytest.mark.parametrize("rest", SMUGGLING.values(), ids=SMUGGLING)
@pytest.mark.parametrize("path", [f"{COLLECTION}/add".encode(), f"{COLLECTION}/get".encode()])
def test_request_smuggling_is_refused(shared: tuple[Server, Front], rest: bytes, path: bytes) -> None:
    """Ambiguous framing gets 400 and a closed connection. Chroma gets none of it."""
    server, gateway = shared
    with gateway.connect() as wire:
        wire.send(b"POST " + path + b" HTTP/1.1\r\nHost: h\r\n" + rest + GET)
        answer = wire.answer()
        assert status(answer) == 400
        assert error(answer)["error"] == "InvalidArgumentError"
        assert fields(answer)["connection"] == ["close"]
        wire.raw.shutdown(socket.SHUT_WR)
        assert wire.is_closed()
        assert server.requests == []
        assert gateway.gate.writes == gateway.gate.requests == 0


def test_a_chunked_http_1_0_request_is_refused() -> None:
    """An HTTP/1.0 proxy in front may not have understood the chunks."""
    with upstream() as server, front(server.port) as gateway:
        answer = gateway.ask(b"POST /api/v2/x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert status(answer) == 400
        assert server.requests == []


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_chunked_upload_arrives_however_it_is_split(step: int) -> None:
    """Extensions and trailers are dropped, the payload does not change, and the next request is found."""
    body = b"4;ext=1\r\nWiki\r\n5\r\npedia\r\nE\r\n in\r\n\r\nchunks.\r\n0\r\nX-Trailer: t\r\n\r\n"
    with upstream() as server, front(server.port) as gateway, gateway.connect() as wire:
        data = b"POST /api/v2/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + body + GET
        for at in range(0, len(data), step):
            wire.send(data[at : at + step])
        assert status(wire.answer()) == 200
        assert status(wire.answer()) == 200
        head, sent = server.requests[0]
    assert fields(head)["transfer-encoding"] == ["chunked"]
    assert "content-length" not in fields(head)
    assert b"Trailer" not in sent
    assert decoded(sent) == b"Wikipedia in\r\n\r\nchunks."


def decoded(chunks: bytes) -> bytes:
    payload = b""
    while True:
        size, _, chunks = chunks.partition(b"\r\n")
        payload += chunks[: int(size, 16)]
        if not int(size, 16):
            return payload
        chunks = chunks[int(size, 16) + 2 :]


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_chunked_response_suits_the_clients_http_version(version: bytes) -> None:
    """HTTP/1.1 gets chunks and keeps its connection. HTTP/1.0 gets plain bytes, and the connection closes."""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\nT: 1\r\n\r\n"

    def drip(peer: Peer) -> None:
        while peer.request():
            for at in range(len(answer)):
                peer.send(answer[at : at + 1])

    with upstream(drip) as server, front(server.port) as gateway, gateway.connect() as wire:
        for _ in range(2 if version == b"1.1" else 1):
            wire.send(GET.replace(b"1.1", version))
            said = wire.answer()
            assert said.startswith(b"HTTP/" + version + b" 200")
            assert said.endswith(b"\r\n\r\nabcde")
        if version == b"1.0":
            assert "transfer-encoding" not in fields(said)
            assert wire.is_closed()


def test_a_response_without_a_length_ends_with_its_connection() -> None:
    """The client gets `Connection: close`, and all of the body."""

    def behave(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    with upstream(behave) as server, front(server.port) as gateway:
        said = gateway.ask(GET)
        assert said.endswith(b"\r\n\r\nall of it")
        assert fields(said)["connection"] == ["close"]


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 44\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
        (b"DELETE", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 44\r\n\r\n"),
    ],
)
def test_a_connection_is_reused_after_a_response_without_a_body(method: bytes, answer: bytes) -> None:
    """HEAD, 204 and 304 have no body, whatever their headers say. Both connections serve the next request."""
    with upstream(lambda peer: peer.serve(answer)) as server, front(server.port) as gateway, gateway.connect() as wire:
        for _ in range(3):
            wire.send(GET.replace(b"GET", method))
            said = wire.answer(method)
            assert status(said) == status(answer)
            assert said.endswith(b"\r\n\r\n")
        assert server.connections == 1


def test_interim_responses_are_not_passed_on() -> None:
    """Chroma's 1xx responses are for the gateway."""
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    with upstream(lambda peer: peer.serve(hints + OK)) as server, front(server.port) as gateway:
        assert gateway.ask(GET).startswith(b"HTTP/1.1 200 OK")


def test_expect_100_continue_is_answered_by_the_gateway() -> None:
    """Before the client sends the body, and without asking Chroma."""
    with upstream() as server, front(server.port) as gateway, gateway.connect() as wire:
        wire.send(b"POST /api/v2/x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-Continue\r\n\r\n")
        assert status(wire.answer()) == 100
        wire.send(b"{}")
        assert status(wire.answer()) == 200
        assert "expect" not in fields(server.requests[0][0])


# ---------------------------------------------------------------------- size


@pytest.mark.parametrize("expects", [b"", b"Expect: 100-continue\r\n"])
def test_a_body_over_the_limit_is_refused_by_its_head(expects: bytes) -> None:
    """413 with Chroma's message, before the client sends the body. Chroma gets nothing."""
    with upstream() as server, front(server.port) as gateway, gateway.connect() as wire:
        wire.send(b"POST /api/v2/x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n%b\r\n" % (40 * MIB + 1, expects))
        answer = wire.answer()
        assert status(answer) == 413
        assert error(answer)["error"] == "ChromaError"
        assert error(answer)["message"] == "Failed to buffer the request body: length limit exceeded"
        assert server.connections == 0


def test_a_client_that_goes_on_sending_can_read_the_413() -> None:
    """The connection is not reset while it sends."""
    with upstream() as server, front(server.port, max_body_bytes=1000) as gateway:
        with httpx.Client() as client:
            answer = client.post(f"http://127.0.0.1:{gateway.port}/api/v2/x", content=b"x" * 20 * MIB)
        assert answer.status_code == 413
        assert server.connections == 0


def test_a_chunked_body_over_the_limit_is_refused() -> None:
    """It has no length, so Chroma may get a part of it, but never its end. The client gets 413."""
    broken = threading.Event()

    def behave(peer: Peer) -> None:
        with suppress(OSError):  # a connection that is reset
            if peer.request() is not None:
                return
        broken.set()

    with upstream(behave) as server, front(server.port, max_body_bytes=200_000) as gateway, gateway.connect() as wire:
        chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
        wire.send(b"POST /api/v2/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 10)
        until(lambda: server.connections == 1)  # else all of it may be here first, and Chroma is never asked
        for _ in range(20):
            wire.send(chunk)
        assert status(wire.answer()) == 413
        assert broken.wait(10)
        assert gateway.gate.writes == 0


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_large_body_is_never_held_in_memory(direction: str) -> None:
    """40 MiB pass a process that grows by less than 8 MiB, although the receiver is slower than the sender."""
    size, received = 40 * MIB, []

    def behave(peer: Peer) -> None:
        head = peer.head()
        assert head
        if direction == "down":
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
            for _ in range(40):
                peer.send(b"x" * MIB)
            return
        left = size - peer.waiting
        while left:
            piece = peer.raw.recv(MIB)
            left -= len(piece)
            received.append(len(piece))
            time.sleep(0.001)
        peer.send(OK)

    with (
        upstream(behave) as server,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.integration.lone_front", str(server.port)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as process,
    ):
        assert process.stdout
        port = int(process.stdout.readline())
        wire = Wire(socket.create_connection(("127.0.0.1", port), 20))
        before = peak_kib(process.pid)
        if direction == "up":
            wire.send(b"POST /api/v2/x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(40):
                wire.send(b"x" * MIB)
            assert status(wire.answer()) == 200
            assert sum(received) > 39 * MIB
        else:
            wire.send(GET)
            got = 0
            while got < size:
                got += len(wire.raw.recv(MIB))
                time.sleep(0.001)
        assert peak_kib(process.pid) - before < 8 * 1024
        wire.raw.close()
        process.kill()


def peak_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0])


def test_a_head_over_the_limit_is_refused() -> None:
    """More than 64 KiB gets 431."""
    with upstream() as server, front(server.port) as gateway, gateway.connect() as wire:
        wire.send(b"GET /api/v2/x HTTP/1.1\r\nX: " + b"x" * 70_000)
        assert status(wire.answer()) == 431
        assert server.connections == 0


# ---------------------------------------------------------------------- slowness


def test_a_client_that_does_not_read_is_disconnected() -> None:
    """The gateway reads no more from Chroma than the client takes. After the timeout both connections close."""
    sent, ended = [0], threading.Event()

    def behave(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (1000 * MIB))
        try:
            for _ in range(1000):
                peer.send(b"x" * MIB)
                sent[0] += 1
        finally:
            ended.set()

    with upstream(behave) as server, front(server.port, client_timeout_s=0.5) as gateway:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        raw.connect(("127.0.0.1", gateway.port))
        raw.sendall(GET)
        assert ended.wait(10)
        assert sent[0] < 32, "the gateway buffered the response"
        assert gateway.gate.requests == 0
        raw.close()


@pytest.mark.parametrize("part", [b"GET /api/v2/x HT", b"POST /api/v2/x HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"])
def test_a_client_that_sends_too_slowly_gets_408(part: bytes) -> None:
    """Until then it holds neither a ticket nor a connection to Chroma."""
    with upstream() as server, front(server.port, client_timeout_s=0.3) as gateway, gateway.connect() as wire:
        wire.send(part)
        answer = wire.answer()
        assert status(answer) == 408
        assert error(answer)
        assert server.connections == 0
        assert gateway.gate.writes == 0


def test_a_slowly_sent_head_has_one_timeout() -> None:
    """A byte now and then does not extend it."""
    with upstream() as server, front(server.port, client_timeout_s=0.5) as gateway, gateway.connect() as wire:
        began = time.monotonic()
        try:
            while time.monotonic() < began + 5:
                wire.send(b"G")
                time.sleep(0.05)
        except OSError:
            pass
        assert time.monotonic() < began + 5


def test_an_upload_goes_no_faster_than_chroma_reads() -> None:
    """While Chroma does not read, the gateway reads little from the client."""
    go = threading.Event()

    def behave(peer: Peer) -> None:
        peer.head()
        go.wait(10)
        peer.ended()

    with upstream(behave) as server, front(server.port) as gateway, gateway.connect() as wire:
        wire.send(b"POST /api/v2/x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (39 * MIB))
        wire.raw.settimeout(1)
        sent = 0
        with suppress(TimeoutError):
            while sent < 39 * MIB:
                sent += wire.raw.send(b"x" * 65536)
        assert sent < 20 * MIB  # what the kernel's buffers can hold
        go.set()


def test_an_idle_client_is_disconnected_after_keep_alive() -> None:
    """And not before."""
    with upstream() as server, front(server.port, keep_alive_s=0.5) as gateway, gateway.connect() as wire:
        for _ in range(3):
            wire.send(GET)
            assert status(wire.answer()) == 200
            time.sleep(0.2)
        assert wire.is_closed()


# ---------------------------------------------------------------------- clients that disconnect


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_disconnect_during_a_read_closes_the_connection_to_chroma(how: str) -> None:
    """So Chroma can stop working on it."""
    cancelled, asked = threading.Event(), threading.Event()

    def behave(peer: Peer) -> None:
        peer.request()
        asked.set()
        if peer.ended():
            cancelled.set()

    with upstream(behave) as server, front(server.port) as gateway:
        wire = gateway.connect()
        wire.send(GET)
        assert asked.wait(10)
        disconnect(wire, how)
        assert cancelled.wait(10)
        until(lambda: gateway.gate.requests == 0)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("request_", [ADD, QUERY], ids=["write", "first read"])
def test_a_disconnect_during_a_write_does_not_cancel_it(how: str, request_: bytes) -> None:
    """The ticket ends with Chroma's response, and the connection serves the next request."""
    asked, answer = threading.Event(), threading.Event()

    def behave(peer: Peer) -> None:
        peer.request()
        asked.set()
        peer.raw.settimeout(0.3)
        with pytest.raises(TimeoutError):
            peer.raw.recv(1)
        answer.wait(10)
        peer.raw.settimeout(10)
        peer.send(OK)
        peer.serve()

    with upstream(behave) as server, front(server.port) as gateway:
        wire = gateway.connect()
        wire.send(request_)
        assert asked.wait(10)
        disconnect(wire, how)
        time.sleep(0.2)
        assert gateway.gate.writes == 1
        answer.set()
        until(lambda: gateway.gate.writes == 0)
        assert status(gateway.ask(ADD)) == 200
        assert server.connections == 1


def disconnect(wire: Wire, how: str) -> None:
    if how == "reset":
        wire.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.raw.close()


@pytest.mark.parametrize("size", [100, 200_000])
@pytest.mark.parametrize("framing", ["counted", "chunked"])
def test_a_partial_body_is_never_taken_for_a_whole_one(size: int, framing: str) -> None:
    """The client disconnects in the middle of a write: Chroma gets nothing, or a body that is visibly incomplete."""
    with upstream() as server, front(server.port) as gateway:
        wire = gateway.connect()
        if framing == "counted":
            wire.send(b"POST /api/v2/x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (size + 1))
            wire.send(b"x" * size)
        else:
            wire.send(b"POST /api/v2/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
            wire.send(b"%x\r\n" % size + b"x" * size + b"\r\n")
        until(lambda: server.connections == (0 if size == 100 else 1))
        time.sleep(0.1)
        wire.raw.close()
        until(lambda: gateway.gate.writes == 0)
        assert status(gateway.ask(GET)) == 200
        assert len(server.requests) == 1, "only the heartbeat arrived whole"


# ---------------------------------------------------------------------- Chroma fails


@pytest.mark.parametrize("request_", [GET, QUERY, ADD], ids=["read", "first read", "write"])
def test_503_while_chroma_is_down(request_: bytes) -> None:
    """With Retry-After. No state is left in the gate."""
    with front(1) as gateway:
        answer = gateway.ask(request_)
        assert status(answer) == 503
        assert error(answer)["error"] == "Unavailable"
        assert int(fields(answer)["retry-after"][0]) > 0
        assert gateway.gate.writes == gateway.gate.requests == 0


@pytest.mark.parametrize("half", [b"", b"HTTP/1.1 200 OK\r\ncontent-le"])
def test_502_when_chroma_closes_before_it_responds(half: bytes) -> None:
    """On a new connection there is no second try."""

    def behave(peer: Peer) -> None:
        peer.request()
        if half:
            peer.send(half)
            time.sleep(0.05)
        peer.reset()

    with upstream(behave) as server, front(server.port) as gateway:
        for request_ in (GET, ADD):
            answer = gateway.ask(request_)
            assert status(answer) == 502
            assert error(answer)["error"] == "BadUpstream"
        assert len(server.requests) == 2
        assert gateway.gate.writes == gateway.gate.requests == 0


@pytest.mark.parametrize(
    "invalid",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
    ],
)
def test_502_for_an_invalid_response_of_chroma(invalid: bytes) -> None:
    """And no part of it reaches the client."""
    with upstream(lambda peer: peer.serve(invalid)) as server, front(server.port) as gateway:
        assert status(gateway.ask(GET)) == 502


def test_a_hanging_chroma_is_504_for_a_read_and_a_write_waits() -> None:
    """The connection of the read is closed. The write keeps its ticket until Chroma responds."""
    with upstream(Peer.hang) as server, front(server.port, read_timeout_s=0.3, grace_s=1) as gateway:
        answer = gateway.ask(GET)
        assert status(answer) == 504
        assert error(answer)["error"] == "UpstreamTimeout"
        with gateway.connect() as wire:
            wire.send(ADD)
            wire.raw.settimeout(1)
            with pytest.raises(TimeoutError):
                wire.answer()
            assert gateway.gate.writes == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_a_truncated_response_resets_the_clients_connection(chunked: bool) -> None:
    """The status was sent already, so the client must not take the part for the whole."""
    head = b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n" if chunked else b"content-length: 10\r\n\r\nabc"

    def behave(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n" + head)
        time.sleep(0.05)
        peer.reset()

    with upstream(behave) as server, front(server.port) as gateway:
        with pytest.raises((EOFError, ConnectionResetError)):
            gateway.ask(QUERY)
        # Chroma's work was done when its response began, so the ticket has ended.
        until(lambda: gateway.gate.writes == gateway.gate.requests == 0)


STALE_ONCE = {"read": (GET, 2), "count": (COUNT, 2), "query": (QUERY, 2), "write": (ADD, 1), "delete": (None, 1)}


@pytest.mark.parametrize(("request_", "tries"), STALE_ONCE.values(), ids=STALE_ONCE)
def test_only_reads_are_retried_on_a_stale_connection(request_: bytes | None, tries: int) -> None:
    """Chroma got the request and closed: a read is sent once more, on a new connection. A write never is."""
    sent = request_ or b"DELETE /api/v2/x HTTP/1.1\r\nHost: h\r\n\r\n"

    def behave(peer: Peer) -> None:
        if peer.number == 1:
            peer.request()
            peer.send(OK)
            peer.request()
            peer.reset()
        peer.serve()

    with upstream(behave) as server, front(server.port) as gateway, gateway.connect() as wire:
        wire.send(GET)
        assert status(wire.answer()) == 200
        wire.send(sent)
        assert status(wire.answer()) == (200 if tries == 2 else 502)
        assert len(server.requests) == 1 + tries
        assert server.connections == tries


def test_a_read_is_retried_only_once() -> None:
    """A server that resets every connection gets two requests."""

    def behave(peer: Peer) -> None:
        if peer.number == 1:
            peer.request()
            peer.send(OK)
        peer.request()
        peer.reset()

    with upstream(behave) as server, front(server.port) as gateway:
        gateway.ask(GET)
        assert status(gateway.ask(GET)) == 502
        assert len(server.requests) == 3


def test_a_restarted_chroma_is_found_again() -> None:
    """Connections to the old process are dropped, so not even a write meets a dead one."""
    with upstream() as server, front(server.port) as gateway:
        assert status(gateway.ask(ADD)) == 200
        port = server.port
        server.close()
        until(lambda: not gateway.path.pool._idle)
        assert status(gateway.ask(ADD)) == 503
        with upstream(port=port):
            assert status(gateway.ask(ADD)) == 200


def test_unexpected_bytes_from_chroma_reach_no_client() -> None:
    """Bytes after a response close that connection."""

    def behave(peer: Peer) -> None:
        peer.request()
        peer.send(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")
        peer.serve()

    with upstream(behave) as server, front(server.port) as gateway:
        assert [gateway.ask(GET)[-2:] for _ in range(3)] == [b"{}"] * 3
        assert server.connections == 3


def test_an_early_response_to_an_upload_is_passed_on() -> None:
    """Chroma may refuse before it has read the whole body. The client gets the response, and the connection closes."""

    def behave(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnope")
        peer.ended()

    with upstream(behave) as server, front(server.port) as gateway, gateway.connect() as wire:
        wire.send(b"POST /api/v2/x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % MIB + b"x" * 100_000)
        answer = wire.answer()
        assert status(answer) == 404
        assert fields(answer)["connection"] == ["close"]
        until(lambda: gateway.gate.writes == 0)


@pytest.mark.parametrize(("behaviour", "expected"), [("down", "503"), ("reset", "502"), ("hang", "504")])
def test_the_python_client_raises_the_gateways_message(behaviour: str, expected: str) -> None:
    """`HttpClient` has no exception type for these. It raises Exception with the body, which has the hint."""

    def behave(peer: Peer) -> None:
        while request := peer.request():
            head = request[0]
            if b"/count" in head:
                peer.reset() if behaviour == "reset" else peer.ended(3)
            peer.send(json_answer(head))

    with upstream(behave) as server, front(server.port, read_timeout_s=0.3, grace_s=1) as gateway:
        client = chromadb.HttpClient(host="127.0.0.1", port=gateway.port)
        collection = client.get_collection("x", embedding_function=None)
        gateway.gate._warm.add(str(collection.id))
        if behaviour == "down":
            server.close()
        with pytest.raises(
            Exception, match={"503": "not running", "502": "broke off", "504": "did not answer"}[expected]
        ):
            collection.count()


def json_answer(head: bytes) -> bytes:
    if b"/collections/x" in head:
        body: object = {
            "id": COLLECTION[-36:],
            "name": "x",
            "configuration_json": {},
            "metadata": None,
            "dimension": None,
            "tenant": "default_tenant",
            "database": "default_database",
            "log_position": 0,
            "version": 0,
            "schema": None,
        }
    else:
        body = {"user_id": "", "tenant": "default_tenant", "databases": ["default_database"]}
    if b"/tenants/default_tenant" in head and b"/collections" not in head:
        body = {"name": "default", "id": COLLECTION[-36:], "tenant": "default_tenant"}
    data = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)


# ---------------------------------------------------------------------- connections


def test_pipelined_requests_are_answered_in_order() -> None:
    """Whether Chroma answers them, fast or slowly, or the application, or the gateway."""

    def echo(peer: Peer) -> None:
        while request := peer.request():
            target = request[0].split()[1]
            time.sleep(0.1 if b"slow" in target else 0)
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(target), target))

    targets = [b"/api/slow", b"/healthz", b"/api/fast", b"/admin/x", b"/api/slow2", b"/api/3"]
    with upstream(echo) as server, front(server.port) as gateway, gateway.connect() as wire:
        wire.send(b"".join(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target for target in targets))
        wire.send(post("/admin/y", b"body") + post("/api/z", b"body") + b"\r\n" + GET)
        answers = [wire.answer() for _ in range(9)]
    assert [answer.split()[-1] for answer in answers[:6]] == targets
    assert answers[1].endswith(b"application: /healthz ")
    assert answers[6].endswith(b"application: /admin/y body")
    assert server.connections <= 2


def test_a_flood_of_pipelined_requests_does_not_fill_the_memory() -> None:
    """While one is being answered, only a little of the rest is read."""
    release = threading.Event()

    def behave(peer: Peer) -> None:
        peer.request()
        release.wait(10)
        peer.send(OK)
        peer.serve()

    with upstream(behave) as server, front(server.port) as gateway, gateway.connect() as wire:
        wire.raw.settimeout(0.5)
        sent = 0
        with suppress(TimeoutError):
            while sent < 64 * MIB:
                sent += wire.raw.send(GET * 1000)
        (client,) = gateway.path.clients
        assert len(client._buffer) < MIB
        release.set()
        wire.raw.settimeout(10)
        for _ in range(1000):
            assert status(wire.answer()) == 200


@pytest.mark.parametrize("path", ["/api/v2/heartbeat", "/healthz"])
def test_http_1_0_closes_without_keep_alive(path: str) -> None:
    """As Chroma does. HTTP/1.0 needs no Host header."""
    plain = f"GET {path} HTTP/1.0\r\n\r\n".encode()
    with upstream() as server, front(server.port) as gateway:
        with gateway.connect() as wire:
            wire.send(plain)
            assert status(wire.answer()) == 200
            assert wire.is_closed()
        if path.startswith("/api/"):
            with gateway.connect() as wire:
                for _ in range(2):
                    wire.send(plain.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"))
                    answer = wire.answer()
                    assert answer.startswith(b"HTTP/1.0 200 OK")
                    assert fields(answer)["connection"] == ["keep-alive"]


def test_connection_close_is_honoured() -> None:
    """The response says so, too."""
    with upstream() as server, front(server.port) as gateway, gateway.connect() as wire:
        wire.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert fields(wire.answer())["connection"] == ["close"]
        assert wire.is_closed()
        assert "connection" not in fields(server.requests[0][0])


def test_clients_can_connect_over_ipv6() -> None:
    """And their address is passed on."""
    with upstream() as server, front(server.port, host="::1") as gateway:
        assert status(gateway.ask(GET)) == 200
        assert fields(server.requests[0][0])["x-forwarded-for"] == ["::1"]


def test_an_upgrade_is_ignored() -> None:
    """The header is not passed on, and the request is answered as HTTP/1.1."""
    with upstream() as server, front(server.port) as gateway, gateway.connect() as wire:
        for _ in range(2):
            wire.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"))
            assert status(wire.answer()) == 200
        assert not {"upgrade", "connection"} & fields(server.requests[0][0]).keys()


# ---------------------------------------------------------------------- backpressure


def test_requests_over_max_in_flight_wait_in_order() -> None:
    """Requests over `max_queued` get 503 with Retry-After. Heartbeats do not wait."""
    release, in_progress = threading.Semaphore(0), []

    def behave(peer: Peer) -> None:
        while request := peer.request():
            if b"heartbeat" not in request[0]:
                in_progress.append(request[0].split()[1])
                release.acquire()
            peer.send(OK)

    def get(name: int) -> bytes:
        return GET.replace(b"heartbeat", b"collections/%d" % name)

    with (
        upstream(behave) as server,
        front(server.port, max_in_flight=2, max_queued=3) as gateway,
        ExitStack() as opened,
    ):
        pool = gateway.path.pool
        wires = [opened.enter_context(gateway.connect()) for _ in range(6)]
        for number, wire in enumerate(wires[:5]):
            wire.send(get(number))
            until(lambda expected=number + 1: pool.in_flight + pool.queued == expected)
        wires[5].send(get(5))
        refused = wires[5].answer()
        assert status(refused) == 503
        assert error(refused)["error"] == "Overloaded"
        assert int(fields(refused)["retry-after"][0]) > 0
        until(lambda: len(in_progress) == 2)
        assert status(gateway.ask(GET)) == 200
        wires[3].raw.close()  # it was in the queue, so it is removed
        until(lambda: gateway.path.pool.queued == 2)
        for turn in (3, 4):
            release.release()
            until(lambda expected=turn: len(in_progress) == expected)
        release.release(2)
        assert [status(wires[number].answer()) for number in (0, 1, 2, 4)] == [200] * 4
        assert in_progress[2:] == [b"/api/v2/collections/2", b"/api/v2/collections/4"]
        until(lambda: gateway.path.pool.in_flight == gateway.path.pool.queued == gateway.gate.requests == 0)


def test_waiting_for_a_slot_has_a_timeout() -> None:
    """503, and the request leaves the queue."""
    with (
        upstream(Peer.hang) as server,
        front(server.port, max_in_flight=1, queue_timeout_s=0.3, grace_s=1) as gateway,
        gateway.connect() as first,
    ):
        first.send(COUNT)
        until(lambda: gateway.path.pool.in_flight == 1)
        answer = gateway.ask(ADD)
        assert status(answer) == 503
        assert error(answer)["error"] == "Overloaded"
        assert gateway.path.pool.queued == 0


def test_a_queued_request_is_admitted_again_after_chromas_restart() -> None:
    """Its collection was warm before and is not any more, so the read takes a ticket."""
    release = threading.Event()

    def behave(peer: Peer) -> None:
        while peer.request():
            release.wait(10)
            peer.send(OK)

    with upstream(behave) as server, front(server.port, max_in_flight=1) as gateway:
        gateway.gate._warm.add(COLLECTION[-36:])
        with gateway.connect() as first, gateway.connect() as second:
            first.send(GET.replace(b"heartbeat", b"collections/1"))
            until(lambda: gateway.path.pool.in_flight == 1)
            second.send(QUERY)
            until(lambda: gateway.path.pool.queued == 1)
            gateway.gate.chroma_gone()
            seen: list[Ticket] = []
            release_ticket = gateway.gate.release

            def release_and_record(ticket: Ticket, *, done: bool = False) -> None:
                seen.append(ticket)
                release_ticket(ticket, done=done)

            gateway.gate.release = release_and_record  # type: ignore[method-assign]
            release.set()
            assert status(first.answer()) == status(second.answer()) == 200
            until(lambda: len(seen) == 1)
            assert seen[0].collection_id == COLLECTION[-36:]
            assert gateway.gate.requests == 0


# ---------------------------------------------------------------------- stops


def test_a_stop_waits_for_requests_in_progress() -> None:
    """The client gets its response, idle clients are disconnected, and then the server stops."""
    asked, answer = threading.Event(), threading.Event()

    def behave(peer: Peer) -> None:
        peer.request()
        asked.set()
        answer.wait(10)
        peer.send(OK)

    with (
        upstream(behave) as server,
        front(server.port) as gateway,
        gateway.connect() as idle,
        gateway.connect() as wire,
    ):
        wire.send(ADD)
        assert asked.wait(10)
        gateway.ask_to_stop()
        assert idle.is_closed()
        answer.set()
        said = wire.answer()
        assert status(said) == 200
        assert fields(said)["connection"] == ["close"]
        gateway.join()
