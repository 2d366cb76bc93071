"""What only an S3 store can go through: many pages, wrong keys, and a network that fails in every way."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from gateway.errors import GatewayError, ObjectMissing, StoreDenied, StoreUnavailable
from gateway.store import S3Store, Store
from tests import servers
from tests.contract.conftest import BUCKET
from tests.store_faults import FaultProxy, Rule

KEY = "folder/a key"
DATA = bytes(range(256)) * 1000

# Short, for tests that wait for them.
READ_TIMEOUT_S = 0.4

WRITES: dict[str, Callable[[Store], Awaitable[object]]] = {
    "put": lambda store: store.put(KEY, DATA),
    "put_if_absent": lambda store: store.put_if_absent(KEY, DATA),
    "put_if_match": lambda store: store.put_if_match(KEY, DATA, '"a-version"'),
    "delete": lambda store: store.delete(KEY),
}
READS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "get": lambda store: store.get(KEY),
    "get_versioned": lambda store: store.get_versioned(KEY),
    "get_range": lambda store: store.get_range(KEY, 0, 10),
    "list": lambda store: keys(store),
}
CALLS = WRITES | READS


async def keys(store: Store, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix)]


@pytest.fixture
def proxy(ministack: servers.S3Server) -> Iterator[FaultProxy]:
    with servers.faults(ministack.port) as proxy:
        yield proxy


@pytest.fixture
def make(ministack: servers.S3Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Callable[..., S3Store]:
    """Makes stores behind the proxy, patient by default like real ones."""
    for name, value in (ministack.env | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{proxy.port}"}).items():
        monkeypatch.setenv(name, value)

    def make(**options: Any) -> S3Store:
        return S3Store(BUCKET, uuid.uuid4().hex, **options)

    return make


@pytest_asyncio.fixture
async def store(make: Callable[..., S3Store]) -> AsyncIterator[S3Store]:
    """Patient as by default, with one object in it."""
    store = make()
    await store.put(KEY, DATA)
    yield store
    await store.close()


@pytest_asyncio.fixture
async def hasty(make: Callable[..., S3Store]) -> AsyncIterator[S3Store]:
    """Gives up soon; empty."""
    store = make(attempts=2, read_timeout_s=READ_TIMEOUT_S, call_timeout_s=20)
    yield store
    await store.close()


# ------------------------------------------------------------------ what nobody notices


@pytest.mark.parametrize("rule", [Rule("status", status=503, count=2), Rule("status", status=500, count=2)])
@pytest.mark.parametrize("call", ["get", "put", "list", "delete"])
async def test_a_server_that_says_later_twice_is_not_noticed(
    store: S3Store, proxy: FaultProxy, rule: Rule, call: str
) -> None:
    """Two answers of 503 or 500 are followed by a third try, which is enough."""
    proxy.rules = [Rule("status", status=rule.status, count=2)]
    await CALLS[call](store)
    assert proxy.rules[0].count == 0


@pytest.mark.parametrize("call", ["get", "put", "list", "delete"])
async def test_a_connection_that_breaks_is_not_noticed(store: S3Store, proxy: FaultProxy, call: str) -> None:
    """A connection reset before the answer, or after the server did it, is followed by another try."""
    proxy.rules = [Rule("reset", count=2), Rule("drop_reply", count=1)]
    await CALLS[call](store)
    assert [rule.count for rule in proxy.rules] == [0, 0]


@pytest.mark.parametrize("fault", ["truncate", "stall"])
@pytest.mark.parametrize("at_byte", [0, 1, 100_000, len(DATA) - 1])
async def test_a_body_that_breaks_off_is_fetched_again(
    make: Callable[..., S3Store], proxy: FaultProxy, fault: Any, at_byte: int
) -> None:
    """An object whose bytes stop coming midway still arrives whole; nobody sees the part."""
    store = make(read_timeout_s=READ_TIMEOUT_S)
    await store.put(KEY, DATA)
    proxy.rules = [Rule(fault, method="GET", at_byte=at_byte, count=1)]
    assert await store.get(KEY) == DATA
    assert proxy.rules[0].count == 0
    await store.close()


async def test_a_list_that_breaks_off_is_fetched_again(store: S3Store, proxy: FaultProxy) -> None:
    """A page of a list that stops midway is not taken for a short list."""
    proxy.rules = [Rule("truncate", method="GET", at_byte=300, count=1)]
    assert await keys(store) == [KEY]
    assert proxy.rules[0].count == 0


async def test_a_server_that_ignores_ranges_is_not_noticed(store: S3Store, proxy: FaultProxy) -> None:
    """Where all of the object comes back for a range, the right part is cut out of it."""
    proxy.rules = [Rule("ignore_range", method="GET")]
    assert await store.get_range(KEY, 300, 5) == DATA[300:305]
    assert await store.get_range(KEY, len(DATA) - 2, 5) == DATA[-2:]
    assert await store.get_range(KEY, len(DATA) + 1, 5) == b""


@pytest.mark.parametrize("call", ["put_if_absent", "put_if_match"])
async def test_a_conflict_is_asked_again(store: S3Store, proxy: FaultProxy, call: str) -> None:
    """409 says that another write is under way, not who won: the answer that counts is the next one."""
    proxy.rules = [Rule("status", method="PUT", status=409, count=2)]
    assert await CALLS[call](store) is False  # the key exists, and has another version
    assert proxy.rules[0].count == 0


# ------------------------------------------------------------------ what is given up


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "rule",
    [Rule("status", status=503), Rule("status", status=500), Rule("status", status=409), Rule("reset"), Rule("stall")],
    ids=lambda rule: f"{rule.fault}{rule.status if rule.fault == 'status' else ''}",
)
async def test_a_server_that_never_recovers_is_unavailable(
    hasty: S3Store, proxy: FaultProxy, call: str, rule: Rule
) -> None:
    """Whatever the trouble, if it lasts the call ends, soon, as StoreUnavailable naming operation and key."""
    proxy.rules = [rule]
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=f"^{call.split('_')[0]} {hasty.url}"):
        await CALLS[call](hasty)
    assert time.monotonic() - started < 10
    assert proxy.requests


async def test_a_body_that_always_breaks_off_is_unavailable(hasty: S3Store, proxy: FaultProxy) -> None:
    """After so many bodies that broke off, the store is unavailable; half an object is never returned."""
    await hasty.put(KEY, DATA)
    proxy.rules = [Rule("truncate", method="GET", at_byte=1000)]
    with pytest.raises(StoreUnavailable, match="broke off 2 times"):
        await hasty.get(KEY)


async def test_a_whole_call_is_bounded(make: Callable[..., S3Store], proxy: FaultProxy) -> None:
    """However patient each step is, the call as a whole ends at its own timeout."""
    store = make(call_timeout_s=0.5)
    proxy.rules = [Rule("stall")]
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"not done after 0\.5 s"):
        await store.put(KEY, DATA)
    assert time.monotonic() - started < 3
    await store.close()


async def test_a_cancelled_call_is_cancelled(make: Callable[..., S3Store], proxy: FaultProxy) -> None:
    """Cancelling is not an error of the store, and takes effect at once."""
    store = make()
    proxy.rules = [Rule("stall")]
    call = asyncio.ensure_future(store.get(KEY))
    while not proxy.requests:
        await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await store.close()


# ------------------------------------------------------------------ conditional writes whose answer is lost


@pytest.mark.parametrize("reused", [False, True], ids=["new connection", "used connection"])
async def test_a_lost_answer_is_not_somebody_elses_write(store: S3Store, proxy: FaultProxy, reused: bool) -> None:
    """A put_if_absent that was done, and whose answer was lost, is sent once and raises: False would be a lie."""
    if reused:
        assert await store.put_if_absent("another", b"") is True
    proxy.requests.clear()
    proxy.rules = [Rule("drop_reply", method="PUT", count=1)]
    with pytest.raises(StoreUnavailable):
        await store.put_if_absent("mine", b"mine")
    assert len(proxy.requests) == 1
    assert await store.get("mine") == b"mine"


async def test_a_lost_answer_to_put_if_match_raises(store: S3Store, proxy: FaultProxy) -> None:
    """A put_if_match that was done, and whose answer was lost, is sent once and raises as well."""
    version = (await store.get_versioned(KEY)).version
    proxy.requests.clear()
    proxy.rules = [Rule("drop_reply", method="PUT", count=1)]
    with pytest.raises(StoreUnavailable):
        await store.put_if_match(KEY, b"mine", version)
    assert len(proxy.requests) == 1
    assert await store.get(KEY) == b"mine"


@pytest.mark.parametrize("rule", [Rule("status", status=503), Rule("reset"), Rule("stall")], ids=lambda rule: rule.fault)
async def test_a_conditional_write_is_sent_once(hasty: S3Store, proxy: FaultProxy, rule: Rule) -> None:
    """Neither botocore nor aiohttp sends a conditional write again, whatever became of it."""
    proxy.rules = [rule]
    with pytest.raises(StoreUnavailable):
        await hasty.put_if_absent(KEY, DATA)
    assert len(proxy.requests) == 1


# ------------------------------------------------------------------ what is wrong, and what to do about it


async def failure_of(call: Awaitable[object]) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize("call", CALLS)
async def test_a_wrong_bucket_is_denied(make: Callable[..., S3Store], call: str) -> None:
    """A bucket that does not exist is never taken for an empty one, and the message says what to correct."""
    store = S3Store("no-such-bucket")
    error = await failure_of(CALLS[call](store))
    assert isinstance(error, StoreDenied)
    assert "bucket no-such-bucket does not exist at http://127.0.0.1:" in error.message
    assert "GATEWAY_STORE" in (error.hint or "")
    await store.close()


@pytest.mark.parametrize("call", CALLS)
async def test_wrong_keys_are_denied(
    rclone: servers.S3Server, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A wrong secret is denied with the names of the variables to check, and is not in the message."""
    for name, value in (rclone.env | {"AWS_SECRET_ACCESS_KEY": "not-the-secret"}).items():
        monkeypatch.setenv(name, value)
    store = S3Store(BUCKET)
    error = await failure_of(CALLS[call](store))
    assert isinstance(error, StoreDenied)
    assert "SignatureDoesNotMatch" in error.message
    assert "AWS_SECRET_ACCESS_KEY" in (error.hint or "")
    assert "not-the-secret" not in str(error)
    await store.close()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("missing", [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_SECRET_ACCESS_KEY",)])
async def test_no_credentials_are_denied(
    make: Callable[..., S3Store], monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], call: str
) -> None:
    """Without credentials, or with half of them, the hint names the variables to set."""
    for name in missing:
        monkeypatch.delenv(name)
    store = make()
    error = await failure_of(CALLS[call](store))
    assert isinstance(error, StoreDenied)
    assert "AWS_ACCESS_KEY_ID" in (error.hint or "")
    assert "AWS_SECRET_ACCESS_KEY" in (error.hint or "")
    await store.close()


async def test_an_unknown_profile_is_denied(make: Callable[..., S3Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that no file has is denied with its name."""
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    error = await failure_of(make().get(KEY))
    assert isinstance(error, StoreDenied)
    assert "nobody" in error.message


@pytest.mark.parametrize("call", CALLS)
async def test_nothing_listening_is_unavailable(
    make: Callable[..., S3Store], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Where nothing listens the store is unavailable, with the address that was tried."""
    port = servers.free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    store = make(attempts=2)
    error = await failure_of(CALLS[call](store))
    assert isinstance(error, StoreUnavailable)
    assert f"127.0.0.1:{port}" in error.message
    assert "AWS_ENDPOINT_URL_S3" in (error.hint or "")
    await store.close()


async def test_no_such_host_is_unavailable(make: Callable[..., S3Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that does not resolve may resolve later."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://store.invalid")
    store = make(attempts=1)
    assert isinstance(await failure_of(store.get(KEY)), StoreUnavailable)
    await store.close()


async def test_an_endpoint_that_is_no_url_is_denied(
    make: Callable[..., S3Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint that cannot be one is denied, and the message shows it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "store.example.com:9000")
    error = await failure_of(make().get(KEY))
    assert isinstance(error, StoreDenied)
    assert "store.example.com:9000" in error.message


@pytest.mark.parametrize("call", READS)
@pytest.mark.parametrize("fault", ["404 of no S3 server", "a web page"])
async def test_what_is_no_s3_server_is_never_taken_for_an_empty_store(
    make: Callable[..., S3Store], proxy: FaultProxy, call: str, fault: str
) -> None:
    """A web server that happens to be at the endpoint has neither no objects nor missing ones."""
    if fault == "a web page":
        proxy.rules = [Rule("replace", status=200, body=b"<html><body>Welcome</body></html>")]
    else:
        proxy.rules = [Rule("replace", status=404, body=b"not found")]
    store = make()
    if fault == "a web page" and call in ("get", "get_range"):
        # Bytes are bytes; whoever reads them knows their digest.
        assert await CALLS[call](store)
    else:
        assert isinstance(await failure_of(CALLS[call](store)), StoreDenied)
    await store.close()


async def test_a_flipped_byte_is_the_readers_to_find(store: S3Store, proxy: FaultProxy) -> None:
    """The store does not promise digests: a byte changed on the way arrives, and the length is right."""
    proxy.rules = [Rule("flip", method="GET", at_byte=1000)]
    data = await store.get(KEY)
    assert len(data) == len(DATA)
    assert [n for n in range(len(DATA)) if data[n] != DATA[n]] == [1000]


# ------------------------------------------------------------------ the bucket


async def test_a_list_of_many_pages_is_whole(ministack: servers.S3Server, make: Callable[..., S3Store]) -> None:
    """More objects than fit on one page come all, once each, in order."""
    store = make()
    names = [f"data/{n:05}" for n in range(1050)]
    await store.put("elsewhere", b"")
    waiting = iter(names)

    async def put() -> None:
        for name in waiting:
            await store.put(name, b"")

    await asyncio.gather(*(put() for _ in range(8)))
    assert await keys(store, "data/") == names
    await store.close()


async def test_objects_that_are_no_keys_are_not_listed(make: Callable[..., S3Store]) -> None:
    """Folder markers and names with empty parts, which other programs may have made, are left out."""
    store = make()
    client, _ = await store._clients()
    prefix = store.url.removeprefix(f"s3://{BUCKET}/")
    for name in ("", "folder/", "a//b", "folder/object"):
        await client.put_object(Bucket=BUCKET, Key=prefix + name, Body=b"")
    assert await keys(store) == ["folder/object"]
    await store.close()


async def test_a_store_stays_below_its_prefix(make: Callable[..., S3Store], proxy: FaultProxy) -> None:
    """Every request names the bucket in the path and a key below the prefix."""
    store = make()
    with pytest.raises(ObjectMissing):
        await store.get(KEY)
    prefix = store.url.removeprefix(f"s3://{BUCKET}/")
    assert proxy.requests == [("GET", f"/{BUCKET}/{prefix}folder/a%20key")]
    await store.close()


@pytest.mark.parametrize(
    ("endpoint", "addressing", "expected"),
    [
        ("", "auto", "https://the-bucket.s3.eu-west-1.amazonaws.com/k"),
        ("", "path", "https://s3.eu-west-1.amazonaws.com/the-bucket/k"),
        ("https://store.example.com", "auto", "https://store.example.com/the-bucket/k"),
        ("https://store.example.com", "virtual", "https://the-bucket.store.example.com/k"),
    ],
)
async def test_the_bucket_is_named_where_the_server_expects_it(
    make: Callable[..., S3Store],
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str,
    addressing: Any,
    expected: str,
) -> None:
    """By default in the host name at AWS, in AWS_REGION, and in the path at an endpoint of one's own."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    store = S3Store("the-bucket", addressing=addressing)
    for client in await store._clients():
        signed = await client.generate_presigned_url("get_object", Params={"Bucket": "the-bucket", "Key": "k"})
        assert signed.partition("?")[0] == expected
    await store.close()
