"""What the production check hears of requests: exact where it matters, and bounded."""

import pytest

from gateway.chroma.routes import ROUTES, Action
from gateway.proxy.heads import parse_request
from gateway.proxy.policy import RequestPolicy
from gateway.proxy.usage import (
    _MAX_CLIENTS,
    _MAX_COLLECTIONS,
    NOTHING_FOUND_BYTES,
    Connections,
    Queries,
    RecordWrites,
    Usage,
)

LOCAL, REMOTE, BRIDGE = b"127.0.0.1", b"8.8.4.4", b"172.17.0.1"


def connection(connections: Connections, peer: bytes, *headers: str) -> None:
    head = "".join(f"{each}\r\n" for each in ("GET /api/v2/tenants/x HTTP/1.1", "Host: x", *headers))
    connections.note(peer, parse_request(f"{head}\r\n".encode()))


def test_writes_are_counted_since_chromas_start() -> None:
    writes = RecordWrites()
    for epoch, second in ((0, 1), (0, 2), (1, 3), (1, 59), (1, 61)):
        writes.note("id", 201, 2, epoch, second)
    writes.note("id", 500, 2, 1, 62)
    assert (writes.epoch, writes.count, writes.busiest) == (1, 3, 2)


def test_only_an_answer_as_long_as_an_empty_one_found_nothing() -> None:
    queries = Queries()
    for status, length_bytes in ((200, NOTHING_FOUND_BYTES), (200, 157), (200, None), (500, NOTHING_FOUND_BYTES)):
        queries.note("id", status, length_bytes, 0, 10)
    found = queries.latest(20, 1)["id"]
    assert (found.total, found.nothing, found.since_s) == (3, 1, 10)


@pytest.mark.parametrize(("least", "hour", "total"), [(3, 1, 3), (2, 1, 2), (2, 2, 2), (2, 3, None)])
def test_answers_are_forgotten_after_an_hour_or_two(least: int, hour: int, total: int | None) -> None:
    """This hour's count if there are enough, else that of the hour before."""
    queries = Queries()
    for at_s in (0, 1, 2, 3600, 3601):
        queries.note("id", 200, 157, 0, at_s)
    found = queries.latest(hour * 3600 + 10, least).get("id")
    assert (found.total if found else None) == total


def test_nothing_grows_without_an_end() -> None:
    """However many collections are queried, and whatever clients call themselves."""
    usage = Usage()
    for number in range(2 * _MAX_COLLECTIONS):
        usage.queries.note(f"id-{number}", 200, 157, 0, 10)
        connection(usage.connections, LOCAL, f"User-Agent: Chroma Python Client v1.{number % 1000}.{number // 1000}")
    assert len(usage.queries.latest(10, 1)) == _MAX_COLLECTIONS
    assert len(usage.connections.python_clients) == _MAX_CLIENTS


@pytest.mark.parametrize(
    ("peer", "headers", "counted"),
    [
        (LOCAL, (), (0, 0, 0)),
        (b"::1", (), (0, 0, 0)),
        (REMOTE, (), (0, 0, 1)),
        (LOCAL, ("X-Forwarded-For: 8.8.8.8",), (1, 0, 0)),
        (REMOTE, ("X-Forwarded-For: 8.8.8.8",), (1, 0, 0)),
        (LOCAL, ("X-Forwarded-For: 8.8.8.8", "X-Forwarded-Proto: http"), (1, 0, 1)),
        (REMOTE, ("X-Forwarded-For: 8.8.8.8", "X-Forwarded-Proto: HTTPS"), (1, 1, 0)),
    ],
)
def test_a_connection_tells_how_it_came(peer: bytes, headers: tuple[str, ...], counted: tuple[int, int, int]) -> None:
    """Through a proxy, over TLS, or in clear from another machine."""
    connections = Connections()
    connection(connections, peer, *headers)
    assert (connections.forwarded, connections.encrypted, connections.clear) == counted


@pytest.mark.parametrize(
    ("peer", "headers", "private"),
    [
        *((each, (), 1) for each in (BRIDGE, b"10.0.0.7", b"::ffff:192.168.0.7", b"fd00::7")),
        (BRIDGE, ("X-Forwarded-For: 8.8.8.8",), 0),
        (BRIDGE, ("X-Forwarded-Proto: https",), 0),
        *((each, (), 0) for each in (LOCAL, REMOTE, b"unknown", b"::ffff:8.8.4.4")),
    ],
)
def test_a_private_address_may_be_this_machine(peer: bytes, headers: tuple[str, ...], private: int) -> None:
    """As through a port that Docker publishes on 127.0.0.1. So it is no connection of another machine in clear."""
    connections = Connections()
    connection(connections, peer, *headers)
    assert connections.private == private
    assert not private or not connections.clear


def test_the_python_client_says_its_version() -> None:
    connections = Connections()
    for agent in ("Chroma Python Client v0.6.3 (https://github.com/chroma-core/chroma)", "node", "python-httpx/0.28"):
        connection(connections, LOCAL, f"User-Agent: {agent}")
    assert connections.python_clients == {"0.6.3": 1}


def test_only_queries_and_writes_of_records_are_noted() -> None:
    """All other requests cost one look at an attribute."""
    policy = RequestPolicy(max_body_bytes=1000)
    noted = set()
    for route in ROUTES:
        path = route.path.replace("{collection_id}", "0" * 8 + "-0000-0000-0000-" + "0" * 12)
        if policy.decide(f"{route.method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).counter.note is not None:
            noted.add(route.action)
    assert noted == {Action.QUERY, Action.ADD, Action.UPSERT, Action.UPDATE}
