"""What visitors may ask for, on the wire: limits by address, and how much may be held for them."""

import socket
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from gateway.auth.addresses import networks
from gateway.auth.keyring import Keyring
from gateway.auth.quota import QuotaLimits
from gateway.proxy import data_path
from gateway.proxy import proxied_request as exchange
from gateway.proxy.policy import RequestPolicy
from gateway.proxy.scoped_requests import CollectionNames
from tests.front import COLLECTION, MIB, Front, front, until
from tests.gateway_process import free_port

LONG = 700_000


class _NoNames:
    """Nobody here has a scope."""

    generation = None

    def changed(self) -> None:
        pass

    def known(self, collection_id: str) -> None:
        raise AssertionError

    async def find(self, collection_id: str) -> None:
        raise AssertionError


@pytest.fixture
def limited(request: pytest.FixtureRequest) -> Iterator[Front]:
    """A data path, with nobody behind it, for visitors without keys."""
    with front(free_port()) as built:
        built.path.policy = RequestPolicy(max_body_bytes=40 * MIB, limits=request.param)
        built.path._trusted = networks("127.0.0.1")
        names: CollectionNames = _NoNames()
        built.path._names = names
        yield built


def status(answer: bytes) -> int:
    return int(answer.split()[1])


@pytest.mark.parametrize("limited", [QuotaLimits(requests_per_s=0.01)], indirect=True)
def test_who_has_a_network_has_no_more_than_one_address(limited: Front) -> None:
    """Addresses of one network of IPv6 share a limit; those of two do not."""

    def ask(address: str) -> int:
        head = f"GET /api/v2/tenants/t HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {address}\r\n\r\n"
        return status(limited.ask(head.encode()))

    assert [ask("2001:db8:1:1::1"), ask("2001:db8:1:1::2"), ask("2001:db8:1:1:ffff::3")] == [503, 429, 429]
    assert [ask("2001:db8:1:2::1"), ask("10.0.0.1"), ask("10.0.0.2"), ask("10.0.0.1")] == [503, 503, 503, 429]


@pytest.mark.parametrize("limited", [QuotaLimits(requests_per_s=0.01)], indirect=True)
def test_a_table_that_is_full_costs_no_more_than_one_that_is_not(
    limited: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of addresses that keep coming the eldest are forgotten many at a time."""
    monkeypatch.setattr(data_path, "_MAX_ADDRESSES", 100)
    sweeps, sweep = [], limited.path._forget_idle

    def counted(now_s: float) -> None:
        sweeps.append(len(limited.path._addresses))
        sweep(now_s)

    monkeypatch.setattr(limited.path, "_forget_idle", counted)
    with limited.connect() as wire:
        for number in range(200):
            address = f"10.0.{number // 256}.{number % 256}"
            wire.send(f"GET /api/v2/tenants/t HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {address}\r\n\r\n".encode())
            assert status(wire.answer()) == 503
            assert len(limited.path._addresses) <= 100
    assert len(sweeps) <= 10


@pytest.mark.parametrize("limited", [QuotaLimits(records=10)], indirect=True)
def test_bodies_that_wait_for_their_end_do_not_fill_the_memory(limited: Front) -> None:
    """Where records are counted a body is held until it is whole: of all visitors together no more than so much."""
    scratch_directory = limited.path._room
    scratch_directory.most_bytes = MIB
    head = f"POST {COLLECTION}/add HTTP/1.1\r\nHost: x\r\nContent-Length: {LONG}\r\n\r\n".encode()
    with limited.connect() as first, limited.connect() as second:
        first.send(head + b" " * (LONG - 1))
        until(lambda: scratch_directory.taken_bytes == LONG - 1)
        second.send(head + b" " * (LONG - 1))
        refused = second.answer()
        assert status(refused) == 503
        assert b"retry-after: 1" in refused.lower()
        until(lambda: scratch_directory.taken_bytes == LONG - 1)
    until(lambda: scratch_directory.taken_bytes == 0)
    with limited.connect() as third:
        third.send(head + b" " * LONG)
        assert status(third.answer()) == 400  # it counts nothing, as there is nothing
    until(lambda: scratch_directory.taken_bytes == 0)


def test_requests_that_come_at_once_take_turns_with_others() -> None:
    """A client that sends thousands in one piece gets an answer to each, but not all of them before anybody else."""
    number, ask = 3000, b"GET /api/v2/tenants/t HTTP/1.1\r\nHost: x\r\n\r\n"
    with front(free_port()) as built, built.connect() as wire:
        built.path.policy = RequestPolicy(Keyring("an-admin-token"), anonymous=False, max_body_bytes=MIB)
        until(lambda: bool(built.path.clients))
        (client,) = built.path.clients
        answered: Future[int] = Future()

        def come() -> None:
            client.data_received(ask * number)
            answered.set_result(refused())

        def refused() -> int:
            return sum(counter.statuses[401] for counter in built.path.policy.counters.by_label.values())

        client.loop.call_soon_threadsafe(come)
        assert answered.result(10) == 1
        assert [status(wire.answer()) for _ in range(number)] == [401] * number
        wire.send(ask)
        assert status(wire.answer()) == 401
        assert refused() == number + 1


def test_who_sends_slowly_keeps_no_place_that_others_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of which Chroma has a part makes room if it does not go on; where nobody waits it may take long."""
    monkeypatch.setattr(exchange, "_MAY_BE_SLOW_S", 0.2)
    head = f"POST {COLLECTION}/get HTTP/1.1\r\nHost: x\r\nContent-Length: {40 * MIB}\r\n\r\n".encode()
    with (
        socket.create_server(("127.0.0.1", 0)) as chroma,
        front(chroma.getsockname()[1], max_in_flight=1) as built,
        built.connect() as slow,
        built.connect() as other,
    ):
        chroma.settimeout(10)
        slow.send(head + b" " * 70_000)
        taken, _ = chroma.accept()
        with taken:
            (client,) = [each for each in built.path.clients if each._exchange is not None]
            checked: Future[bool] = Future()

            def much_later() -> None:
                client._exchange.check(client.loop.time() + 1000, 10_000, 10_000)
                checked.set_result(client._exchange is not None)

            client.loop.call_soon_threadsafe(much_later)
            assert checked.result(10)
            other.send(b"GET /api/v2/tenants/t HTTP/1.1\r\nHost: x\r\n\r\n")
            assert status(slow.answer()) == 408
            next_one, _ = chroma.accept()
            with next_one:
                assert next_one.recv(100).startswith(b"GET /api/v2/tenants/t ")
                next_one.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                assert status(other.answer()) == 200
