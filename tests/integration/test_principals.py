"""Limits of clients, on the wire: per address, of memory, of time."""

import socket
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from gateway.auth.addresses import networks
from gateway.auth.keyring import Keyring
from gateway.auth.quota import QuotaLimits
from gateway.chroma.names import CollectionNames
from gateway.proxy import data_path, proxied_request
from gateway.proxy.policy import RequestPolicy
from tests.front import COLLECTION, MIB, Front, front, until
from tests.ports import free_port

LONG = 700_000


@pytest.fixture
def limited(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Front]:
    """A data path without a Chroma, for clients without keys."""
    with front(free_port()) as built:
        built.path.policy = RequestPolicy(max_body_bytes=40 * MIB, limits=request.param)
        built.path._trusted = networks("127.0.0.1")
        built.path._names = CollectionNames(tmp_path, run=lambda: 0)  # there is no database: these tests need no names
        yield built


def status(answer: bytes) -> int:
    return int(answer.split()[1])


@pytest.mark.parametrize("limited", [QuotaLimits(requests_per_s=0.01)], indirect=True)
def test_the_addresses_of_an_ipv6_network_share_a_limit(limited: Front) -> None:
    """Addresses of two networks do not."""

    def ask(address: str) -> int:
        head = f"GET /api/v2/tenants/t HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {address}\r\n\r\n"
        return status(limited.ask(head.encode()))

    assert [ask("2001:db8:1:1::1"), ask("2001:db8:1:1::2"), ask("2001:db8:1:1:ffff::3")] == [503, 429, 429]
    assert [ask("2001:db8:1:2::1"), ask("10.0.0.1"), ask("10.0.0.2"), ask("10.0.0.1")] == [503, 503, 503, 429]


@pytest.mark.parametrize("limited", [QuotaLimits(requests_per_s=0.01)], indirect=True)
def test_new_addresses_do_not_walk_a_full_table_each_time(limited: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the table is full, the oldest addresses are dropped many at a time."""
    monkeypatch.setattr(data_path, "_MAX_ADDRESSES", 100)
    sweeps, sweep = [], limited.path._drop_idle_quotas

    def counted(now_s: float) -> None:
        sweeps.append(len(limited.path._address_quotas))
        sweep(now_s)

    monkeypatch.setattr(limited.path, "_drop_idle_quotas", counted)
    with limited.connect() as wire:
        for number in range(200):
            address = f"10.0.{number // 256}.{number % 256}"
            wire.send(f"GET /api/v2/tenants/t HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {address}\r\n\r\n".encode())
            assert status(wire.answer()) == 503
            assert len(limited.path._address_quotas) <= 100
    assert len(sweeps) <= 10


@pytest.mark.parametrize("limited", [QuotaLimits(records=10)], indirect=True)
def test_bodies_held_until_complete_do_not_fill_the_memory(limited: Front) -> None:
    """To count records a body is held until it is complete. All requests together have one budget."""
    budget = limited.path._body_budget
    budget.max_bytes = MIB
    head = f"POST {COLLECTION}/add HTTP/1.1\r\nHost: x\r\nContent-Length: {LONG}\r\n\r\n".encode()
    with limited.connect() as first, limited.connect() as second:
        first.send(head + b" " * (LONG - 1))
        until(lambda: budget.used_bytes == LONG - 1)
        second.send(head + b" " * (LONG - 1))
        refused = second.answer()
        assert status(refused) == 503
        assert b"retry-after: 1" in refused.lower()
        until(lambda: budget.used_bytes == LONG - 1)
    until(lambda: budget.used_bytes == 0)
    with limited.connect() as third:
        third.send(head + b" " * LONG)
        assert status(third.answer()) == 400  # the records of an empty body cannot be counted
    until(lambda: budget.used_bytes == 0)


def test_pipelined_refusals_let_other_connections_go_first() -> None:
    """A client sends thousands of requests in one piece: it gets one response per turn of the event loop."""
    number, ask = 3000, b"GET /api/v2/tenants/t HTTP/1.1\r\nHost: x\r\n\r\n"
    with front(free_port()) as built, built.connect() as wire:
        built.path.policy = RequestPolicy(Keyring("an-admin-token"), anonymous=False, max_body_bytes=MIB)
        until(lambda: bool(built.path.clients))
        (client,) = built.path.clients
        answered: Future[int] = Future()

        def receive_all() -> None:
            client.data_received(ask * number)
            answered.set_result(refused())

        def refused() -> int:
            return sum(counter.statuses[401] for counter in built.path.policy.counters.by_label.values())

        client.loop.call_soon_threadsafe(receive_all)
        assert answered.result(10) == 1
        assert [status(wire.answer()) for _ in range(number)] == [401] * number
        wire.send(ask)
        assert status(wire.answer()) == 401
        assert refused() == number + 1


def test_a_slow_upload_loses_its_slot_when_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets 408. While no other request waits for a slot, an upload may take long."""
    monkeypatch.setattr(proxied_request, "_UPLOAD_GRACE_S", 0.2)
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
            (client,) = [each for each in built.path.clients if each._request is not None]
            checked: Future[bool] = Future()

            def much_later() -> None:
                client._request.check_timeouts(client.loop.time() + 1000, 10_000, 10_000)
                checked.set_result(client._request is not None)

            client.loop.call_soon_threadsafe(much_later)
            assert checked.result(10)
            other.send(b"GET /api/v2/tenants/t HTTP/1.1\r\nHost: x\r\n\r\n")
            assert status(slow.answer()) == 408
            next_one, _ = chroma.accept()
            with next_one:
                assert next_one.recv(100).startswith(b"GET /api/v2/tenants/t ")
                next_one.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                assert status(other.answer()) == 200
