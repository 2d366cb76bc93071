"""When writes are answered: the data path with a journal that a test controls."""

import asyncio
import json
from collections.abc import Sequence

import pytest

from gateway.auth.ack import Ack
from gateway.auth.keyring import Keyring
from gateway.auth.keys import parse_keys
from gateway.chroma.names import CollectionNames
from gateway.errors import Conflict, GatewayError, LeaseLost, NotStored
from gateway.proxy.policy import RequestPolicy
from tests.integration.data_path import DEADLINE_S, OK, READ, WRITE, DataPath, Peer, Request, data_path, until
from tests.keys import entry

COLLECTION = b"/api/v2/tenants/t/databases/d/collections/0b9f4f6e-6d1c-4c7e-9a52-7f4d3a1e2b90"
STORED = b"x-gateway-ack: stored\r\n"
LOCAL = b"x-gateway-ack: local\r\n"
BODY = b"content-length: 4\r\n\r\nbody"
MIB = 1 << 20


class Journal:
    """Stands in for the journal: `store` ends all waits, with an error if it gets one."""

    is_on = True
    unsupported: str | None = None

    def __init__(self) -> None:
        self.number = 1
        self.waiting: list[asyncio.Future[None]] = []
        self.cancelled = 0

    @property
    def position(self) -> str:
        return f"7-{self.number}"

    async def stored(self) -> str:
        if not self.is_on:
            raise Conflict("the journal is off", "take a snapshot")
        waiter = asyncio.get_running_loop().create_future()
        self.waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting.remove(waiter)
        return self.position

    def store(self, error: GatewayError | None = None) -> None:
        self.number += 1
        for waiter in self.waiting:
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

    async def until_asked(self, writes: int = 1) -> None:
        """Wait until so many writes wait to be stored."""
        await until(lambda: len(self.waiting) == writes)


class Recorder:
    """Stands in for Chroma: records requests, and sends the pieces of one response to each."""

    def __init__(self, *pieces: bytes) -> None:
        self.requests: list[Request] = []
        self._pieces = pieces or (OK,)

    async def __call__(self, peer: Peer) -> None:
        while True:
            self.requests.append(await peer.message())
            for piece in self._pieces:
                await peer.send(piece)
                await asyncio.sleep(0.01)


def status(answer: Request) -> int:
    return int(answer.lines[0].split(b" ")[1])


def position(answer: Request) -> bytes | None:
    return answer.header(b"x-gateway-position")


async def silent(peer: Peer, seconds: float = 0.1) -> None:
    """Assert that nothing comes from the gateway for a while."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await peer.reader.read(1)


async def quiet(path: DataPath) -> None:
    """No ticket, read or slot is left, and the gate can be held."""
    await until(lambda: path.gate.requests == path.gate.writes == path.connections.pool.in_flight == 0)
    async with path.gate.hold(0):
        pass


# ---------------------------------------------------------------------- the position


async def test_every_write_tells_its_position() -> None:
    """That of the journal when Chroma had applied it."""
    journal = Journal()
    async with data_path(as_asked, journal=journal) as path:
        peer = await path.connect()
        for code in (200, 201, 204):
            await peer.send(WRITE + b"x-code: %d\r\n" % code + BODY)
            assert b"x-gateway-position: 7-%d" % journal.number in await peer.head()
            journal.number += 1


async def as_asked(peer: Peer) -> None:
    """Stands in for Chroma: answers with the status that the request names, without a body."""
    while True:
        code = int((await peer.message()).header(b"x-code") or b"200")
        framing = b"" if code == 204 else b"content-length: 0\r\n"
        await peer.send(b"HTTP/1.1 %d X\r\n%b\r\n" % (code, framing))


async def test_an_error_of_chroma_has_no_position_and_is_not_held_back() -> None:
    """Also where the write asks to be stored."""
    async with data_path(as_asked, journal=Journal()) as path:
        for code in (301, 400, 404, 409, 500, 503):
            answer = await path.ask(WRITE + STORED + b"x-code: %d\r\n" % code + BODY)
            assert (status(answer), position(answer)) == (code, None)


READS = [
    b"GET /api/v2/version",
    b"GET /api/v2/tenants/t",
    b"GET %b/count" % COLLECTION,
    b"POST %b/get" % COLLECTION,
    b"POST %b/query" % COLLECTION,
    # Without its id the gate takes this for a write.
    b"GET /api/v2/tenants/t/databases/d/collections/no-id/count",
    b"POST /api/v2/tenants/t/databases/d/collections/no-id/query",
    b"GET /api/v1/heartbeat",
    b"OPTIONS /api/v2/tenants",
]


async def test_a_read_has_no_position_and_is_not_held_back() -> None:
    """First reads count as writes at the gate. They change nothing that a client wrote."""
    policy = RequestPolicy(max_body_bytes=MIB, ack=Ack.STORED)
    async with data_path(journal=Journal(), policy=policy) as path:
        for request_line in READS:
            answer = await path.ask(b"%b HTTP/1.1\r\nhost: g\r\n%b%b" % (request_line, STORED, BODY))
            assert (status(answer), position(answer)) == (200, None), request_line


async def test_without_a_journal_there_are_no_positions() -> None:
    """Where it is off, and where the data directory cannot have one."""
    journal = Journal()
    journal.is_on = False
    for each in (journal, None):
        async with data_path(journal=each) as path:
            for ack in (b"", LOCAL):
                answer = await path.ask(WRITE + ack + BODY)
                assert (status(answer), position(answer)) == (200, None)


# ---------------------------------------------------------------------- held back


RESPONSES = [
    (OK,),
    (b"HTTP/1.1 201 Created\r\ncontent-length: 4\r\n\r\n", b"o", b"k!!"),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nsome\r\n5\r\n more\r\n0\r\n\r\n",),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"4\r\nso", b"me\r\n0\r\n\r\n"),
    (b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % MIB, b"x" * MIB),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",),
]


@pytest.mark.parametrize("pieces", RESPONSES)
async def test_a_stored_write_is_answered_when_the_store_has_it(pieces: Sequence[bytes]) -> None:
    """With the same bytes as without waiting. The connection serves the next request."""
    journal = Journal()
    async with data_path(Recorder(*pieces), journal=journal) as path:
        expected = await path.ask(WRITE + BODY)
        peer = await path.connect()
        for _ in range(2):
            await peer.send(WRITE + STORED + BODY)
            await journal.until_asked()
            await silent(peer)
            now = journal.position.encode()
            journal.store()
            answer = await peer.message()
            assert (answer.lines[0], answer.body) == (expected.lines[0], expected.body)
            assert position(answer) == now
            assert not journal.waiting
        await quiet(path)


@pytest.mark.parametrize("pieces", RESPONSES)
async def test_http_1_0_gets_a_stored_write_too(pieces: Sequence[bytes]) -> None:
    """Such a client understands no chunks: the end of the connection ends the body."""
    journal = Journal()
    async with data_path(Recorder(*pieces), journal=journal) as path:
        peer = await path.connect()
        await peer.send(WRITE.replace(b"HTTP/1.1", b"HTTP/1.0") + STORED + BODY)
        await journal.until_asked()
        await silent(peer)
        journal.store()
        head, _, body = (await peer.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 20")
        assert b"chunked" not in head
        assert b"x-gateway-position: 7-1" in head
        expected = await path.ask(WRITE + BODY)
        assert body == expected.body


async def test_a_write_that_waits_holds_neither_a_ticket_nor_a_slot() -> None:
    """The store's latency must not keep the gate open, nor other requests away from Chroma."""
    journal = Journal()
    async with data_path(journal=journal) as path:
        peer = await path.connect()
        await peer.send(WRITE + STORED + BODY)
        await journal.until_asked()
        await quiet(path)
        async with path.gate.refuse("a restore is under way", 0):
            await silent(peer)
        journal.store()
        assert status(await peer.message()) == 200


async def test_a_response_that_comes_in_parts_is_stored_before_its_end() -> None:
    """What Chroma has sent goes out, and the rest streams."""
    journal, go_on = Journal(), asyncio.Event()

    async def chroma(peer: Peer) -> None:
        await peer.message()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await go_on.wait()
        await peer.send(b"4\r\nlast\r\n0\r\n\r\n")

    async with data_path(chroma, journal=journal) as path:
        peer = await path.connect()
        await peer.send(WRITE + STORED + BODY)
        await journal.until_asked()
        journal.store()
        assert b"transfer-encoding: chunked" in await peer.head()
        assert await peer.chunk() == b"first"
        go_on.set()
        assert [await peer.chunk(), await peer.chunk()] == [b"last", b""]
        await quiet(path)


async def test_a_long_response_that_waits_does_not_fill_the_memory() -> None:
    """The gateway stops reading from Chroma, and goes on when the write is stored."""
    journal, size, sent = Journal(), 64 * MIB, 0

    async def chroma(peer: Peer) -> None:
        nonlocal sent
        await peer.message()
        peer.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while sent < size:
            peer.writer.write(bytes(64 * 1024))
            await peer.writer.drain()
            sent += 64 * 1024

    async with data_path(chroma, journal=journal, read_timeout_s=0.1) as path:
        peer = await path.connect()
        await peer.send(WRITE + STORED + BODY)
        await journal.until_asked()
        await silent(peer, 0.5)
        assert sent < 32 * MIB  # what the kernel's buffers can hold
        held = sum(map(len, next(iter(path.connections.clients))._request._pieces))
        assert held < MIB
        journal.store()
        assert len((await peer.message()).body) == size
        await quiet(path)


async def test_pipelined_writes_are_answered_in_order() -> None:
    """One after the other, also if another kind of request stands between."""
    journal = Journal()

    async def chroma(peer: Peer) -> None:
        while True:
            body = (await peer.message()).body or b"none"
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    def write(body: bytes, ack: bytes) -> bytes:
        return WRITE + ack + b"content-length: %d\r\n\r\n%b" % (len(body), body)

    async with data_path(chroma, journal=journal) as path:
        peer = await path.connect()
        await peer.send(
            write(b"1", STORED) + READ + b"\r\n" + write(b"2", LOCAL) + write(b"3", STORED) + READ + b"\r\n"
        )
        await journal.until_asked()
        await silent(peer)
        journal.store()
        answers = [await peer.message() for _ in range(3)]
        await journal.until_asked()
        await silent(peer)
        journal.store()
        answers += [await peer.message() for _ in range(2)]
        assert [each.body for each in answers] == [b"1", b"none", b"2", b"3", b"none"]
        assert [position(each) for each in answers] == [b"7-1", None, b"7-2", b"7-2", None]


async def test_many_writes_wait_at_once() -> None:
    """One entry of the journal answers them all."""
    journal = Journal()
    async with data_path(journal=journal) as path:
        peers = [await path.connect() for _ in range(50)]
        for peer in peers:
            await peer.send(WRITE + STORED + BODY)
        await journal.until_asked(50)
        journal.store()
        assert [status(await peer.message()) for peer in peers] == [200] * 50
        await quiet(path)


async def test_the_timeouts_of_clients_do_not_count_the_wait() -> None:
    """The client has sent everything, and waits."""
    journal = Journal()
    async with data_path(journal=journal, client_timeout_s=0.05, read_timeout_s=0.05) as path:
        path.connections.limits = path.connections.limits.__class__(
            **{**path.connections.limits.__dict__, "keep_alive_s": 0.05, "queue_timeout_s": 0.05}
        )
        peer = await path.connect()
        await peer.send(WRITE + STORED + BODY)
        await journal.until_asked()
        await silent(peer, 0.5)
        journal.store()
        assert status(await peer.message()) == 200


async def test_chromas_latency_does_not_count_the_wait() -> None:
    """The metrics of Chroma are Chroma's. The request counts once, with the time that the client waited."""
    journal = Journal()
    async with data_path(journal=journal) as path:
        peer = await path.connect()
        await peer.send(WRITE + STORED + BODY)
        await journal.until_asked()
        await silent(peer, 0.3)
        journal.store()
        await peer.message()
        counters = path.connections.policy.counters
        assert counters.upstream["write"].sum_s < 0.3 <= counters.whole["write"].sum_s
        assert [dict(each.statuses) for each in counters.by_label.values()] == [{200: 1}]


# ---------------------------------------------------------------------- not stored


@pytest.mark.parametrize(
    ("error", "name", "says"),
    [
        (
            NotStored("it was applied, and could not be stored within 30 s"),
            "NotStored",
            "it was applied, and could not",
        ),
        (LeaseLost("another gateway is the writer now", "send it there"), "LeaseLost", "it is not in the store"),
        (Conflict("there is no journal"), "NotStored", "it was applied, and it cannot be stored: there is no journal"),
    ],
)
async def test_a_write_that_cannot_be_stored_gets_503(error: GatewayError, name: str, says: str) -> None:
    """In Chroma's shape, saying that Chroma has applied it, with its position."""
    journal = Journal()
    async with data_path(journal=journal) as path:
        peer = await path.connect()
        for _ in range(2):
            await peer.send(WRITE + STORED + BODY)
            await journal.until_asked()
            now = journal.position.encode()
            journal.store(error)
            answer = await peer.message()
            found = json.loads(answer.body)
            assert (status(answer), found["error"], position(answer)) == (503, name, now)
            assert says in found["message"]
            assert "applied" in found["message"]
            assert int(answer.header(b"retry-after") or 0) > 0
        await quiet(path)


async def test_a_write_that_asks_for_too_much_is_refused_before_chroma_has_it() -> None:
    """400 without a journal, with the way out."""
    journal = Journal()
    journal.is_on, journal.unsupported = False, "the file system has no shared memory"
    for each, why in ((journal, "the file system has no shared memory"), (None, "the journal is off")):
        async with data_path(chroma := Recorder(), journal=each) as path:
            answer = await path.ask(WRITE + STORED + BODY)
            found = json.loads(answer.body)
            assert (status(answer), found["error"]) == (400, "InvalidArgumentError")
            assert why in found["message"]
            assert "X-Gateway-Ack: local" in found["hint"]
            assert status(await path.ask(WRITE + LOCAL + BODY)) == 200
            assert len(chroma.requests) == 1


async def test_a_journal_that_ends_meanwhile_acknowledges_nothing() -> None:
    """The write was sent while it was on. Nothing would store it, so it is no success."""
    journal = Journal()

    async def chroma(peer: Peer) -> None:
        await peer.message()
        journal.is_on = False
        await peer.send(OK)

    async with data_path(chroma, journal=journal) as path:
        answer = await path.ask(WRITE + STORED + BODY)
        assert (status(answer), json.loads(answer.body)["error"]) == (503, "NotStored")


async def test_an_unknown_level_is_refused() -> None:
    """400 with the two levels, on reads too, so that a typo shows at the first request."""
    async with data_path(chroma := Recorder(), journal=Journal()) as path:
        lines = [b"x-gateway-ack: %b\r\n" % value for value in (b"storde", b"", b"1", b"stored, local", b"\xe9")]
        for line in (*lines, STORED + LOCAL):
            for request in (WRITE + line + BODY, READ + line + b"\r\n"):
                answer = await path.ask(request)
                assert (status(answer), json.loads(answer.body)["error"]) == (400, "InvalidArgumentError")
                assert "local or stored" in json.loads(answer.body)["hint"]
        assert chroma.requests == []


async def test_chroma_does_not_get_the_header() -> None:
    """It is for the gateway."""
    async with data_path(chroma := Recorder(), journal=Journal()) as path:
        await path.ask(WRITE + LOCAL + BODY)
        assert chroma.requests[0].header(b"x-gateway-ack") is None


async def test_502_when_chroma_breaks_off_while_a_write_waits() -> None:
    """The client has none of the response yet, so it gets an error and not a reset."""
    journal, break_off = Journal(), asyncio.Event()

    async def chroma(peer: Peer) -> None:
        await peer.message()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello")
        await break_off.wait()
        peer.reset()

    async with data_path(chroma, journal=journal) as path:
        peer = await path.connect()
        await peer.send(WRITE + STORED + BODY)
        await journal.until_asked()
        break_off.set()
        assert status(await peer.message()) == 502
        await until(lambda: journal.cancelled == 1)
        await quiet(path)


# ---------------------------------------------------------------------- ends


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("pieces", [RESPONSES[0], RESPONSES[4]])
async def test_a_client_that_disconnects_while_it_waits_leaves_no_task(how: str, pieces: Sequence[bytes]) -> None:
    """The write is done. Nothing waits for the store any more."""
    journal = Journal()
    async with data_path(Recorder(*pieces), journal=journal) as path:
        peer = await path.connect()
        await peer.send(WRITE + STORED + BODY)
        await journal.until_asked()
        tasks = len(asyncio.all_tasks())
        if how == "reset":
            peer.reset()
        else:
            await peer.close()
        await until(lambda: journal.cancelled == 1)
        await quiet(path)
        await until(lambda: len(asyncio.all_tasks()) < tasks)


async def test_a_client_that_disconnected_before_chroma_answers_waits_for_nothing() -> None:
    """Chroma's answer ends the request."""
    journal, received, answer_now = Journal(), asyncio.Event(), asyncio.Event()

    async def chroma(peer: Peer) -> None:
        await peer.message()
        received.set()
        await answer_now.wait()
        await peer.send(OK)

    async with data_path(chroma, journal=journal) as path:
        peer = await path.connect()
        await peer.send(WRITE + STORED + BODY)
        await received.wait()
        peer.reset()
        await until(lambda: not path.connections.clients)
        answer_now.set()
        await quiet(path)
        assert not journal.waiting


async def test_a_stop_lets_waiting_answers_go_out() -> None:
    """And says that the connection ends."""
    journal = Journal()
    async with data_path(journal=journal) as path:
        peer, idle = await path.connect(), await path.connect()
        await peer.send(WRITE + STORED + BODY)
        await journal.until_asked()
        path.server.should_exit = True
        assert await idle.rest() == b""
        await silent(peer)
        journal.store()
        answer = await peer.message()
        assert (status(answer), answer.header(b"connection")) == (200, b"close")
        assert await peer.rest() == b""


# ---------------------------------------------------------------------- who decides


async def test_a_key_a_request_and_the_server_decide() -> None:
    """A key's level is the least that it gets. The header may ask for more, and for less than the server's own."""
    tokens, entries = {}, []
    for name, more in (("strict", {"ack": "stored"}), ("relaxed", {"ack": "local"}), ("plain", {})):
        tokens[name], found = entry(name, "writer", **more)
        entries.append(found)
    keyring = Keyring("an-admin-token", parse_keys(json.dumps({"keys": entries}), "here"))
    waits = {
        (Ack.LOCAL, "plain"): (False, False, True),
        (Ack.STORED, "plain"): (True, False, True),
        (Ack.LOCAL, "relaxed"): (False, False, True),
        (Ack.STORED, "relaxed"): (False, False, True),
        (Ack.LOCAL, "strict"): (True, True, True),
        (Ack.STORED, "strict"): (True, True, True),
    }
    for default in Ack:
        journal = Journal()
        policy = RequestPolicy(keyring, anonymous=False, max_body_bytes=MIB, ack=default)
        async with data_path(journal=journal, policy=policy) as path:
            for name, token in tokens.items():
                for ack, waiting in zip((b"", LOCAL, STORED), waits[default, name], strict=True):
                    peer = await path.connect()
                    await peer.send(WRITE + b"x-chroma-token: %b\r\n" % token.encode() + ack + BODY)
                    if waiting:
                        await journal.until_asked()
                        journal.store()
                    assert status(await peer.message()) == 200
                    assert not journal.waiting


async def test_a_key_with_limits_waits_too_and_gives_back_its_memory(tmp_path) -> None:
    """Its body is counted while Chroma needs it, and not while it waits for the store."""
    token, found = entry("strict", "writer", ack="stored", limits={"records": 10})
    keyring = Keyring("an-admin-token", parse_keys(json.dumps({"keys": [found]}), "here"))
    policy = RequestPolicy(keyring, anonymous=False, max_body_bytes=MIB)
    journal, body = Journal(), b'{"ids": ["a"]}'
    async with data_path(chroma := Recorder(), journal=journal, policy=policy) as path:
        path.connections._names = CollectionNames(tmp_path, run=lambda: 0)
        peer = await path.connect()
        lines = b"host: g\r\nx-chroma-token: %b\r\ncontent-length: %d\r\n" % (token.encode(), len(body))
        await peer.send(b"POST %b/add HTTP/1.1\r\n%b\r\n%b" % (COLLECTION, lines, body))
        await journal.until_asked()
        await silent(peer)
        assert path.connections._body_budget.used_bytes == 0
        await quiet(path)
        journal.store()
        async with asyncio.timeout(DEADLINE_S):
            answer = await peer.message()
        assert (status(answer), position(answer)) == (200, b"7-1")
        assert chroma.requests[0].body == body
        assert path.connections._body_budget.used_bytes == 0
