"""The bytes on both sides of the data path, with a Chroma that works and with one that does not."""

import asyncio
import gc
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import chromadb
import pytest

from gateway.errors import QuiesceTimeout
from gateway.proxy import client
from gateway.proxy.gate import State
from tests.integration.data_path import DEADLINE_S, OK, READ, WRITE, DataPath, Peer, Request, data_path, header, until

ID = "0b9f4f6e-6d1c-4c7e-9a52-7f4d3a1e2b90"
MIB = 1 << 20


class Recorder:
    """A stand-in for Chroma that records requests and answers 200."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            self.requests.append(await peer.message())
            await peer.send(OK)


def status(answer: Request) -> int:
    return int(answer.lines[0].split(b" ")[1])


# ---------------------------------------------------------------------- byte for byte


TARGETS = [
    b"/api/v2/version",
    b"/api/v2/tenants/a%2Fb/databases/%2e%2e/collections",
    b"/api/v2/tenants/../databases/./x",
    b"/api/v2/../../etc/passwd",
    b"/api//v2///heartbeat",
    b"/api/v2/tenants/%C3%A9%zz%/x",
    b"/api/v2/tenants/a+b%20c%2B/databases",
    b"/api/v2/tenants/a;b=c,d/@:!$&'()*~_-",
    b"/api/v2/x?",
    b"/api/v2/x?a=%2F&b=../..&a=+%20&c",
    b"/api/v2/x?limit=10&offset=0&x=a?b=/c//d",
    b'/api/v2/x?a=%E9%zz&=&&;[]{}|\\^`"<>',
    b'/api/v2/tenants/[]{}|\\^`"<>',
    b"/api/",
    b"/api/v2/" + b"x" * 5000,
]


@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_path_and_query_reach_chroma_byte_for_byte(method: bytes) -> None:
    """It is not normalised, decoded or encoded again."""
    async with data_path(chroma := Recorder()) as path:
        for target in TARGETS:
            answer = await path.ask(method + b" " + target + b" HTTP/1.1\r\nhost: g\r\n\r\n")
            assert status(answer) == 200, target
        assert [request.target for request in chroma.requests] == TARGETS


@pytest.mark.parametrize("code", [201, 204, 301, 304, 404, 422, 500])
async def test_every_status_of_chroma_is_passed_on(code: int) -> None:
    """No redirect is followed, and a response without a body gets none."""
    framing = b"" if code in (204, 304) else b"content-length: 0\r\n"

    async def chroma(peer: Peer) -> None:
        while True:
            await peer.message()
            await peer.send(b"HTTP/1.1 %d X\r\nlocation: /api/v2/elsewhere\r\n%s\r\n" % (code, framing))

    async with data_path(chroma) as path:
        peer = await path.connect()
        for _ in range(2):  # the second shows that the first was framed well
            await peer.send(READ + b"\r\n")
            lines = await peer.head()
            assert lines[0].split(b" ")[1] == b"%d" % code
            assert header(lines, b"location") == b"/api/v2/elsewhere"


async def test_http_2_without_tls_is_told_to_use_http_1() -> None:
    """An empty SETTINGS frame, then GOAWAY with HTTP_1_1_REQUIRED and words for a person (RFC 9113 §6.8, §7)."""
    async with data_path() as path:
        peer = await path.connect()
        await peer.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        assert await peer.exactly(9) == b"\0\0\0\4\0\0\0\0\0"
        head = await peer.exactly(17)
        length = int.from_bytes(head[:3]) - 8
        assert (head[3:9], head[9:13], head[13:17]) == (b"\7\0\0\0\0\0", bytes(4), (0xD).to_bytes(4))
        assert b"HTTP/1.1" in await peer.exactly(length)
        with pytest.raises(asyncio.IncompleteReadError):
            await peer.exactly(1)
        assert status(await path.ask(READ + b"\r\n")) == 200


async def test_a_response_to_head_has_a_length_and_no_body() -> None:
    """HEAD is passed on as HEAD, and the connection serves the next request."""

    async def chroma(peer: Peer) -> None:
        while True:
            request = await peer.message()
            assert request.lines[0].startswith(b"HEAD")
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4096\r\n\r\n")

    async with data_path(chroma) as path:
        peer = await path.connect()
        for _ in range(2):
            await peer.send(b"HEAD /api/v2/version HTTP/1.1\r\nhost: g\r\n\r\n")
            assert header(await peer.head(), b"content-length") == b"4096"


@pytest.mark.parametrize(
    "smuggled",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"content-length: +5\r\n\r\nhello",
        b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n5x\r\nhello\r\n0\r\n\r\n",
        b"x: 1\r\n folded: 2\r\n\r\n",
        b"x : 1\r\n\r\n",
    ],
)
async def test_ambiguous_framing_never_reaches_chroma(smuggled: bytes) -> None:
    """Request smuggling needs two parsers that frame a message in two ways. No complete request passes."""
    async with data_path(chroma := Recorder()) as path:
        peer = await path.connect()
        await peer.send(WRITE + smuggled + b"GET /api/v2/version HTTP/1.1\r\nhost: smuggled\r\n\r\n")
        answer = await peer.rest()
        assert b" 200 " not in answer
        await until(lambda: path.gate.writes == 0)
    assert chroma.requests == []


async def test_a_refused_client_sees_the_end_and_may_go_on_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would wait for more, or see a reset in place of the response (RFC 9112 §9.6)."""
    monkeypatch.setattr(client, "_LINGER_S", 3600)
    async with data_path() as path:
        peer = await path.connect()
        await peer.send(WRITE + b"content-length: +5\r\n\r\nhello")
        assert b" 400 " in await peer.rest()
        for _ in range(64):
            await peer.send(b"x" * 100_000)


@pytest.mark.parametrize("target", [b"/admin/users/default/avatars/a/media/audio/x#2", b"/healthz#/x"])
async def test_a_fragment_in_a_path_is_refused(target: bytes) -> None:
    """The application would not see it, and take the document for another one. In a query it changes nothing."""
    async with data_path() as path:
        peer = await path.connect()
        await peer.send(b"DELETE " + target + b" HTTP/1.1\r\nhost: g\r\n\r\n")
        answer = await peer.rest()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"%23" in answer


async def test_connection_content_length_does_not_drop_content_length() -> None:
    """Otherwise Chroma would take the body for a second request on the kept connection."""
    inner = b"DELETE /api/v2/tenants/t/databases/d HTTP/1.1\r\nhost: g\r\n\r\n"
    async with data_path(chroma := Recorder()) as path:
        await path.ask(WRITE + b"connection: content-length\r\ncontent-length: %d\r\n\r\n" % len(inner) + inner)
        await path.ask(READ + b"\r\n")
    assert [(request.target, request.body) for request in chroma.requests] == [
        (b"/api/v2/tenants", inner),
        (b"/api/v2/version", b""),
    ]


async def test_pipelined_requests_are_answered_in_order() -> None:
    """Each response has the body of its own request."""

    async def chroma(peer: Peer) -> None:
        while True:
            request = await peer.message()
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(request.body), request.body))

    async with data_path(chroma) as path:
        peer = await path.connect()
        await peer.send(b"".join(WRITE + b"content-length: 1\r\n\r\n%d" % number for number in range(8)))
        assert [(await peer.message()).body for _ in range(8)] == [b"%d" % number for number in range(8)]
        assert path.gate.writes == 0


# ---------------------------------------------------------------------- streaming


async def test_a_response_streams() -> None:
    """The client gets the first chunk before Chroma sends the last."""
    go_on = asyncio.Semaphore(0)

    async def chroma(peer: Peer) -> None:
        await peer.message()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for chunk in (b"first", b"second", b"last", b""):
            await peer.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            await go_on.acquire()

    async with data_path(chroma) as path:
        peer = await path.connect()
        await peer.send(READ + b"\r\n")
        await peer.head()
        for chunk in (b"first", b"second", b"last", b""):
            assert await peer.chunk() == chunk
            go_on.release()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
async def test_an_upload_that_chroma_does_not_read_does_not_fill_the_memory() -> None:
    """64 MiB for a Chroma that does not read: the gateway stops reading from the client."""
    taken, take, size = 0, asyncio.Event(), 64 * MIB

    async def chroma(peer: Peer) -> None:
        nonlocal taken
        length = header(await peer.head(), b"content-length")
        await take.wait()
        while taken < int(length or 0):
            taken += len(await peer.reader.read(MIB))
        await peer.send(OK)

    async with data_path(chroma) as path:
        peer = await path.connect()
        piece, sent = bytes(64 * 1024), 0

        async def upload() -> None:
            nonlocal sent
            peer.writer.write(WRITE + b"content-length: %d\r\n\r\n" % size)
            while sent < size:
                peer.writer.write(piece)
                await peer.writer.drain()
                sent += len(piece)

        gc.collect()
        before = resident_bytes()
        uploading = asyncio.create_task(upload())
        await until(lambda: sent > 0)
        await stalled(lambda: sent)
        assert sent < 32 * MIB  # what two pairs of kernel buffers can hold
        assert resident_bytes() - before < 8 * MIB
        take.set()
        async with asyncio.timeout(DEADLINE_S):
            await uploading
        assert (await peer.message()).body == b"ok"
        assert taken == size
        assert resident_bytes() - before < 16 * MIB


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
async def test_a_response_that_the_client_does_not_read_does_not_fill_the_memory() -> None:
    """64 MiB for a client that does not read: the gateway stops reading from Chroma."""
    sent, size = 0, 64 * MIB

    async def chroma(peer: Peer) -> None:
        nonlocal sent
        await peer.message()
        peer.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        piece = bytes(64 * 1024)
        while sent < size:
            peer.writer.write(piece)
            await peer.writer.drain()
            sent += len(piece)

    async with data_path(chroma) as path:
        peer = await path.connect()
        gc.collect()
        before = resident_bytes()
        await peer.send(READ + b"\r\n")
        await until(lambda: sent > 0)
        await stalled(lambda: sent)
        assert sent < 32 * MIB
        assert resident_bytes() - before < 8 * MIB
        lines, received = await peer.head(), 0
        async with asyncio.timeout(DEADLINE_S):
            while received < int(header(lines, b"content-length") or 0):
                received += len(await peer.reader.read(MIB))
        assert received == size


async def stalled(progress) -> None:
    """Wait until `progress()` has not changed for 30 checks in a row."""
    last, same = -1, 0
    async with asyncio.timeout(DEADLINE_S):
        while same < 30:
            await asyncio.sleep(0.01)
            same = same + 1 if progress() == last else 0
            last = progress()


# ---------------------------------------------------------------------- Chroma fails


def refusal(answer: Request) -> dict[str, str]:
    assert header(answer.headers, b"content-type") == b"application/json"
    found = json.loads(answer.body)
    assert {"error", "message"} <= found.keys() <= {"error", "message", "hint"}
    return found


@pytest.mark.parametrize("request_", [READ + b"\r\n", WRITE + b"content-length: 4\r\n\r\nbody"])
async def test_503_while_nothing_listens(request_: bytes) -> None:
    """Reads and writes get it in Chroma's shape, with Retry-After. No ticket is left."""
    async with closed_port_path() as path:
        answer = await path.ask(request_)
        assert status(answer) == 503
        assert int(header(answer.headers, b"retry-after") or 0) > 0
        assert "not running" in refusal(answer)["message"]
        await assert_quiet(path)


@asynccontextmanager
async def closed_port_path() -> AsyncIterator[DataPath]:
    async with data_path() as path:
        path.upstream.close()
        yield path


async def test_503_when_chroma_accepts_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a connect times out nothing was sent, so a write gets 503 as well."""
    monkeypatch.setattr("gateway.proxy.upstream._CONNECT_TIMEOUT_S", 0.1)
    async with data_path() as path:
        path.upstream.close()
        # A listener that never accepts, its queue full.
        with socket.socket() as full:
            full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            full.bind(("127.0.0.1", path.chroma_port))
            full.listen(0)
            waiting = []
            for _ in range(4):
                waiting.append(socket.socket())
                waiting[-1].setblocking(False)
                waiting[-1].connect_ex(("127.0.0.1", path.chroma_port))
            for request in (READ + b"\r\n", WRITE + b"content-length: 4\r\n\r\nbody"):
                answer = await path.ask(request)
                assert (status(answer), refusal(answer)["error"]) == (503, "Unavailable")
            for each in waiting:
                each.close()
        await assert_quiet(path)


async def test_504_for_a_read_when_chroma_does_not_respond() -> None:
    """The message has the timeout."""
    async with data_path(never_responds, read_timeout_s=0.1) as path:
        answer = await path.ask(READ + b"\r\n")
        assert status(answer) == 504
        assert "0.1 s" in refusal(answer)["message"]
        await assert_quiet(path)


async def never_responds(peer: Peer) -> None:
    await peer.rest()


async def test_a_read_is_closed_when_chroma_stops_in_the_middle_of_its_response() -> None:
    """The status was sent already, so the connection closes."""

    async def chroma(peer: Peer) -> None:
        await peer.message()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello")
        await peer.rest()

    async with data_path(chroma, read_timeout_s=0.1) as path:
        peer = await path.connect()
        await peer.send(READ + b"\r\n")
        await peer.head()
        assert await peer.rest() == b"hello"
        await assert_quiet(path)


async def test_the_read_timeout_does_not_count_a_slow_client() -> None:
    """It counts the time without bytes from Chroma, neither a slow upload nor a slow download."""
    pause_s, body = 0.4, bytes(4 * MIB)

    async def chroma(peer: Peer) -> None:
        await peer.message()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    async with data_path(chroma, read_timeout_s=0.2) as path:
        peer = await path.connect()
        await warm(path)
        await peer.send(b"POST %s/query HTTP/1.1\r\nhost: g\r\ncontent-length: 2\r\n\r\n{" % COLLECTION)
        await asyncio.sleep(pause_s)
        await peer.send(b"}")
        lines = await peer.head()
        assert lines[0].split(b" ")[1] == b"200"
        await asyncio.sleep(pause_s)
        assert await peer.body(lines) == body


COLLECTION = b"/api/v2/tenants/t/databases/d/collections/" + ID.encode()


async def warm(path: DataPath) -> None:
    path.gate.release(await path.gate.acquire("a first read", ID), done=True)


async def test_a_write_has_no_read_timeout() -> None:
    """It keeps its ticket until Chroma responds."""
    answer_now = asyncio.Event()

    async def chroma(peer: Peer) -> None:
        await peer.message()
        await answer_now.wait()
        await peer.send(OK)

    async with data_path(chroma, read_timeout_s=0.05) as path:
        peer = await path.connect()
        await peer.send(WRITE + b"content-length: 4\r\n\r\nbody")
        await until(lambda: path.gate.writes == 1)
        answer = await path.ask(READ + b"\r\n")  # by now a write would have timed out, too
        assert status(answer) == 504
        assert path.gate.writes == 1
        answer_now.set()
        assert (await peer.message()).body == b"ok"


@pytest.mark.parametrize("method", [b"PUT", b"DELETE", b"POST"])
async def test_a_write_is_not_sent_twice_when_a_kept_connection_dies(method: bytes) -> None:
    """The connection breaks with the request on it: 502, and Chroma got the request once."""
    seen = []

    async def chroma(peer: Peer) -> None:
        seen.append((await peer.message()).lines[0])
        await peer.send(OK)
        seen.append((await peer.message()).lines[0])
        peer.reset()

    async with data_path(chroma) as path:
        await path.ask(READ + b"\r\n")
        answer = await path.ask(method + b" /api/v2/tenants/t HTTP/1.1\r\nhost: g\r\n\r\n")
        assert status(answer) == 502
        assert [line.split(b" ")[0] for line in seen] == [b"GET", method]
        await assert_quiet(path)


async def test_an_early_response_ends_the_request() -> None:
    """If Chroma answers 413 to the head, the client gets it at once, while the body is still being sent."""

    async def chroma(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
        await peer.rest()

    async with data_path(chroma) as path:
        peer = await path.connect()
        await peer.send(WRITE + b"content-length: 100000000\r\n\r\n" + bytes(100_000))
        answer = await peer.message()
        assert (status(answer), answer.body) == (413, b"big")
        await assert_quiet(path)


# ---------------------------------------------------------------------- clients disconnect


async def assert_quiet(path: DataPath) -> None:
    """No ticket and no read is left, and the gate can be held."""
    await until(lambda: path.gate.requests == path.gate.writes == path.gate.waiting == 0)
    async with path.gate.hold(0):
        pass


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("kind", ["write", "first read"])
async def test_a_hold_waits_for_a_write_whose_client_disconnected(kind: str, how: str) -> None:
    """The ticket stays until Chroma responds, and the hold begins then."""
    received, answer_now, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def chroma(peer: Peer) -> None:
        await peer.message()
        received.set()
        await answer_now.wait()
        answered.set()
        await peer.send(OK)
        await peer.rest()

    async with data_path(chroma) as path:
        peer = await path.connect()
        target = b"/api/v2/tenants" if kind == "write" else COLLECTION + b"/query"
        await peer.send(b"POST %s HTTP/1.1\r\nhost: g\r\ncontent-length: 4\r\n\r\nbody" % target)
        async with asyncio.timeout(DEADLINE_S):
            await received.wait()
        if how == "reset":
            peer.reset()
        else:
            await peer.close()

        async def hold() -> None:
            async with path.gate.hold(DEADLINE_S):
                assert answered.is_set()

        with pytest.raises(QuiesceTimeout):  # long enough for the gateway to notice the disconnect
            async with path.gate.hold(0.1):
                raise AssertionError
        holding = asyncio.create_task(hold())
        await until(lambda: path.gate.state is State.CLOSING)
        assert path.gate.writes == 1
        answer_now.set()
        async with asyncio.timeout(DEADLINE_S):
            await holding
        await assert_quiet(path)


async def test_a_client_that_disconnects_at_the_closed_gate_writes_nothing() -> None:
    """The write was not acknowledged, and Chroma never gets all of it."""
    async with data_path(chroma := Recorder()) as path:
        async with path.gate.hold(0):
            peer = await path.connect()
            await peer.send(WRITE + b"content-length: 4\r\n\r\nbody")
            await until(lambda: path.gate.waiting == 1)
            await peer.close()
            await path.ask(READ + b"\r\n")  # the gateway has noticed the disconnect by now
        await assert_quiet(path)
    assert [request.target for request in chroma.requests] == [b"/api/v2/version"]


async def test_a_disconnect_during_a_response_does_not_affect_other_clients() -> None:
    """The rest of the response is dropped. The next request gets its own response."""
    go_on = asyncio.Event()

    async def chroma(peer: Peer) -> None:
        while True:
            request = await peer.message()
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfirst")
            if request.target.endswith(b"version"):
                await go_on.wait()
            await peer.send(b"-last")

    async with data_path(chroma) as path:
        peer = await path.connect()
        await peer.send(READ + b"\r\n")
        await peer.head()
        peer.reset()
        go_on.set()
        for _ in range(3):
            assert (await path.ask(b"GET /api/v2/heartbeat HTTP/1.1\r\nhost: g\r\n\r\n")).body == b"first-last"
        await assert_quiet(path)


# ---------------------------------------------------------------------- the gate


async def test_a_client_that_reads_slowly_holds_no_ticket() -> None:
    """Chroma's work is done when its response begins, so the ticket of a first read ends there."""

    async def chroma(peer: Peer) -> None:
        await peer.message()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n" + bytes(1000))
        await peer.rest()

    async with data_path(chroma) as path:
        peer = await path.connect()
        await peer.send(b"GET %s/count HTTP/1.1\r\nhost: g\r\n\r\n" % COLLECTION)
        await peer.head()
        async with path.gate.hold(0):
            assert path.gate.requests == 1


async def test_the_first_read_of_a_collection_waits_and_the_next_does_not() -> None:
    """Each route that reads records waits at the closed gate, until one of them got 200."""
    requests = [b"GET %s/count", b"POST %s/get", b"POST %s/query", b"POST %s/search"]
    for first in requests:
        async with data_path(chroma := Recorder()) as path:
            async with path.gate.hold(0):
                asking = asyncio.create_task(path.ask(first % COLLECTION + b" HTTP/1.1\r\nhost: g\r\n\r\n"))
                await until(lambda: path.gate.waiting == 1)
                assert chroma.requests == []
            assert status(await asking) == 200
            async with path.gate.hold(0):
                for following in requests:
                    assert status(await path.ask(following % COLLECTION + b" HTTP/1.1\r\nhost: g\r\n\r\n")) == 200


async def test_a_first_read_that_failed_does_not_warm_the_collection() -> None:
    """The collection's next read is a first read again."""

    async def chroma(peer: Peer) -> None:
        while True:
            await peer.message()
            await peer.send(b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n")

    async with data_path(chroma, gate_timeout_s=0.05) as path:
        request = b"GET %s/count HTTP/1.1\r\nhost: g\r\n\r\n" % COLLECTION
        assert status(await path.ask(request)) == 500
        async with path.gate.hold(0):
            assert status(await path.ask(request)) == 503


@pytest.mark.parametrize(("code", "doubts"), [(500, 1), (400, 0), (200, 0)])
async def test_a_collection_that_chroma_fails_for_is_doubted(code: int, doubts: int) -> None:
    """By reads and writes of its records. The watch then reads it again."""

    async def chroma(peer: Peer) -> None:
        while True:
            await peer.message()
            await peer.send(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % code)

    for what in (b"get", b"query", b"upsert", b"delete"):
        async with data_path(chroma) as path:
            await path.ask(b"POST %s/%s HTTP/1.1\r\nhost: g\r\ncontent-length: 2\r\n\r\n{}" % (COLLECTION, what))
            await path.ask(READ + b"\r\n")
            assert len(path.gate.quarantine.doubted) == doubts


async def test_the_gates_errors_have_chromas_shape() -> None:
    """A write that waited too long, and any request during a restore: 503, Retry-After, error, message, hint."""
    async with data_path(gate_timeout_s=0.05) as path:
        async with path.gate.hold(0):
            answer = await path.ask(WRITE + b"content-length: 4\r\n\r\nbody")
        assert (status(answer), refusal(answer)["error"]) == (503, "GateTimeout")
        assert int(header(answer.headers, b"retry-after") or 0) > 0
        async with path.gate.refuse("a restore is under way", 0):
            for request in (READ + b"\r\n", WRITE + b"content-length: 4\r\n\r\nbody"):
                answer = await path.ask(request)
                assert (status(answer), refusal(answer)["message"]) == (503, "a restore is under way")
                assert int(header(answer.headers, b"retry-after") or 0) > 0


async def test_chromadb_raises_the_gateways_message() -> None:
    """So users of `HttpClient` see why a request was refused."""

    async def chroma(peer: Peer) -> None:
        while True:
            request = await peer.message()
            if b"auth/identity" in request.target:
                body = b'{"user_id": "", "tenant": "default_tenant", "databases": ["default_database"]}'
            elif b"pre-flight" in request.target:
                body = b'{"max_batch_size": 100}'
            else:
                body = json.dumps({"id": ID, "name": "default_database", "tenant": "default_tenant"}).encode()
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    async with data_path(chroma, gate_timeout_s=0.05) as path:
        client = await chromadb.AsyncHttpClient(host="127.0.0.1", port=path.port)
        async with path.gate.hold(0):
            with pytest.raises(Exception, match="writes are held back"):
                await client.create_collection("notes", embedding_function=None)
        async with path.gate.refuse("a restore is under way", 0):
            with pytest.raises(Exception, match="a restore is under way"):
                await client.heartbeat()
        await client._server._cleanup()  # type: ignore[attr-defined]  # chromadb has no public way to close its connections


BIG = 200_000


@pytest.mark.parametrize("action", [b"add", b"upsert", b"update", b"delete", b"query"])
async def test_a_client_that_stalls_in_a_long_body_holds_no_ticket(action: bytes) -> None:
    """Chroma acts on the whole body only. So the gate can close, and the last piece waits until it opens."""
    async with data_path(chroma := Recorder()) as path:
        peer = await path.connect()
        head = b"POST %s/%s HTTP/1.1\r\nhost: g\r\ncontent-length: %d\r\n\r\n" % (COLLECTION, action, BIG)
        await peer.send(head + bytes(BIG - 4))
        await until(lambda: path.connections.pool.in_flight == 1)
        assert (path.gate.writes, path.gate.requests) == (0, 1)
        async with path.gate.hold(0):
            await peer.send(b"more")
            await until(lambda: path.gate.waiting == 1)
            assert chroma.requests == []
            assert path.connections.pool.in_flight == 0  # it holds no slot either
        assert (await peer.message()).body == b"ok"
        assert chroma.requests[0].body == bytes(BIG - 4) + b"more"
        await assert_quiet(path)


async def test_a_long_write_that_waits_too_long_gets_503() -> None:
    """Chroma has all but its last piece then, and never gets that one."""
    async with data_path(chroma := Recorder(), gate_timeout_s=0.05) as path:
        peer = await path.connect()
        async with path.gate.hold(0):
            await peer.send(b"POST %s/add HTTP/1.1\r\nhost: g\r\ncontent-length: %d\r\n\r\n" % (COLLECTION, BIG))
            await peer.send(bytes(BIG))
            answer = await peer.message()
            assert (status(answer), json.loads(answer.body)["error"]) == (503, "GateTimeout")
        assert chroma.requests == []
        await assert_quiet(path)


@pytest.mark.parametrize("when", ["in mid-body", "at the gate"])
async def test_a_disconnect_during_a_long_write_leaves_no_state(when: str) -> None:
    """Whether the last piece came or not: Chroma gets an incomplete request, and the gate can be held."""
    async with data_path(chroma := Recorder()) as path:
        peer = await path.connect()
        await peer.send(b"POST %s/add HTTP/1.1\r\nhost: g\r\ncontent-length: %d\r\n\r\n" % (COLLECTION, BIG))
        async with path.gate.hold(0):
            await peer.send(bytes(BIG - 4))
            await until(lambda: path.connections.pool.in_flight == 1)
            if when == "at the gate":
                await peer.send(b"more")
                await until(lambda: path.gate.waiting == 1)
            peer.reset()
            await until(lambda: path.gate.requests == path.gate.waiting == 0)
        assert chroma.requests == []
        await assert_quiet(path)


async def test_a_handler_that_may_act_on_the_head_gets_it_with_a_ticket() -> None:
    """DELETE runs once Chroma has the head, whatever body follows. So the ticket comes before the first byte."""
    heads = []

    async def chroma(peer: Peer) -> None:
        heads.append(await peer.head())
        await peer.rest()

    async with data_path(chroma) as path:
        peer = await path.connect()
        async with path.gate.hold(0):
            await peer.send(b"DELETE %s HTTP/1.1\r\nhost: g\r\ncontent-length: %d\r\n\r\n" % (COLLECTION, BIG))
            await peer.send(bytes(BIG - 4))
            await until(lambda: path.gate.waiting == 1)
            assert heads == []
        await until(lambda: len(heads) == 1)
        assert path.gate.writes == 1


async def test_408_when_a_body_stops_arriving() -> None:
    """In Chroma's shape. Chroma never got all of the request, and no state is left."""
    for length in (8, BIG):
        async with data_path(chroma := Recorder(), client_timeout_s=0.2) as path:
            peer = await path.connect()
            await peer.send(WRITE + b"content-length: %d\r\n\r\n" % length + bytes(length // 2))
            answer = await peer.message()
            assert status(answer) == 408
            assert json.loads(answer.body)["error"] == "ClientTooSlow"
            assert chroma.requests == []
            await assert_quiet(path)
