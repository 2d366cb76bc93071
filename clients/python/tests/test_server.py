"""What the client does when a server misbehaves, as a real one does only now and then."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from chroma import Denied, Refused, Unavailable
from chroma.configuration import Configuration
from chroma.server import Collection, Server

COLLECTION = Collection("the-id", "name", None, "cosine", {})
IDENTITY = httpx.Response(200, json={"tenant": "*", "databases": ["*"]})


def served(answer: Callable[[httpx.Request], httpx.Response], patience_s: float = 60) -> tuple[Server, list[float]]:
    """A client of a server that gives these answers; and how long it slept between them."""
    slept: list[float] = []
    server = Server(Configuration(), patience_s, sleep=slept.append)
    client = httpx.Client(transport=httpx.MockTransport(answer))
    server._connections = lambda: client  # type: ignore[method-assign]
    return server, slept


def in_turn(*answers: httpx.Response | Exception) -> Callable[[httpx.Request], httpx.Response]:
    rest = iter(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/identity"):
            return httpx.Response(200, json={"tenant": "*", "databases": ["*"]})
        given = next(rest)
        if isinstance(given, Exception):
            raise given
        return given

    return answer


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.Response(503, json={"error": "NotStored", "message": "later"}),
        httpx.Response(429),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("the connection broke"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_may_pass_is_tried_again(trouble: Any) -> None:
    """Each time a little later."""
    server, slept = served(in_turn(trouble, trouble, httpx.Response(200, json={"max_batch_size": 7})))
    assert server.max_batch_size() == 7
    assert len(slept) == 2
    assert slept[0] < slept[1] * 1.6


def test_the_server_says_when_to_come_back() -> None:
    """By Retry-After."""
    server, slept = served(in_turn(httpx.Response(503, headers={"Retry-After": "5"}), httpx.Response(200, json={})))
    server.max_batch_size()
    assert 5 <= slept[0] <= 7.5


def test_patience_ends() -> None:
    """The error names the server and the cause, and says that nothing is lost."""
    server, _ = served(in_turn(httpx.Response(503, json={"message": "restoring"})), patience_s=0)
    with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:8000 answers 503: restoring\. Nothing is lost"):
        server.max_batch_size()


def test_without_a_journal_the_same_is_sent_without_its_header() -> None:
    """Once; the next batches do not ask."""
    headers = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/identity"):
            return IDENTITY
        headers.append(request.headers.get("X-Gateway-Ack"))
        return httpx.Response(
            400 if "X-Gateway-Ack" in request.headers else 200, json={"message": "the journal is off"}
        )

    server, _ = served(answer)
    assert not server.upsert(COLLECTION, {}, stored=True)
    assert not server.upsert(COLLECTION, {}, stored=True)
    assert headers == ["stored", None, None]


def test_a_wrong_request_is_not_taken_for_a_journal_that_is_off() -> None:
    """It is raised, and the next one asks again."""
    server, _ = served(lambda request: IDENTITY if "identity" in request.url.path else httpx.Response(400, text="bad"))
    with pytest.raises(Refused, match="400: bad"):
        server.upsert(COLLECTION, {}, stored=True)
    assert not server._without_journal


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(401, json={"message": "no key", "hint": "send one"}), Denied),
        (httpx.Response(403), Denied),
        (httpx.Response(200, text="<html>"), Refused),
        (httpx.Response(302, headers={"Location": "/login"}), Refused),
    ],
)
def test_other_answers_are_errors_of_this_client(answer: httpx.Response, error: type[Exception]) -> None:
    """None of httpx is seen by callers."""
    server, slept = served(in_turn(answer))
    with pytest.raises(error):
        server.max_batch_size()
    assert not slept


@pytest.mark.parametrize(
    ("identity", "path"),
    [
        ({"tenant": "acme", "databases": ["images"]}, "/api/v2/tenants/acme/databases/images/collections/name"),
        (
            {"tenant": "acme", "databases": ["a", "b"]},
            "/api/v2/tenants/acme/databases/default_database/collections/name",
        ),
        (
            {"tenant": "*", "databases": ["web-*"]},
            "/api/v2/tenants/default_tenant/databases/default_database/collections/name",
        ),
        ({"tenant": ""}, "/api/v2/tenants/default_tenant/databases/default_database/collections/name"),
    ],
)
def test_the_tenant_and_the_database_are_those_of_the_key(identity: dict[str, Any], path: str) -> None:
    """Where it has one of each."""
    paths = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return httpx.Response(200, json=identity) if "identity" in request.url.path else httpx.Response(404)

    server, _ = served(answer)
    assert server.find_collection("name") is None
    assert paths[-1] == path
