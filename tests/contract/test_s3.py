"""What only an S3 store meets: many pages, wrong credentials, and a network that fails in every way."""

import asyncio
import shlex
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.utils import parse_timestamp

from gateway.errors import ObjectArchived, ObjectMissing, StorageDenied, StorageError, StorageUnavailable
from gateway.storage import s3
from gateway.storage.options import StoreOptions
from gateway.storage.s3 import S3Storage
from tests import servers
from tests.contract.conftest import BUCKET, CALLS, DATA, KEY, WRITES, failure_of, failures, keys
from tests.ports import free_port
from tests.store_faults import FaultProxy, Rule

# Short, for tests that wait for them.
READ_TIMEOUT_S = 0.4


LASTING = [
    *(Rule("status", status=status) for status in (409, 429, 503)),
    Rule("close"),
    Rule("reset"),
    Rule("stall"),
    Rule("drop_reply"),
]


@pytest_asyncio.fixture
async def store(make: Callable[..., S3Storage]) -> S3Storage:
    """Patient as by default, with one object in it."""
    store = make()
    await store.put(KEY, DATA)
    return store


@pytest.fixture
def hasty(make: Callable[..., S3Storage]) -> S3Storage:
    """Gives up soon; empty."""
    return make(attempts=2, read_timeout_s=READ_TIMEOUT_S, call_timeout_s=20)


# ------------------------------------------------------------------ what nobody notices


@pytest.mark.parametrize("fault", ["503", "close", "reset", "drop_reply"])
async def test_transient_faults_are_retried(store: S3Storage, proxy: FaultProxy, fault: Any) -> None:
    """Two bad answers, or connections broken before or after the server acted, are followed by one more try."""
    rule = {"fault": "status", "status": int(fault)} if fault.isdigit() else {"fault": fault}
    aims = [("GET", "a%20key"), ("GET", "list-type"), ("PUT", "another"), ("DELETE", "third")]
    proxy.rules = [Rule(**rule, method=method, contains=target, count=2) for method, target in aims]
    data, found, _, _ = await asyncio.gather(
        store.get(KEY), keys(store, KEY), store.put("another", DATA), store.delete("third")
    )
    assert (data, found) == (DATA, [KEY])
    assert [rule.count for rule in proxy.rules] == [0] * len(aims)
    assert await store.get("another") == DATA


@pytest.mark.parametrize("fault", ["truncate", "stall"])
@pytest.mark.parametrize("at_byte", [0, 1, 100_000, len(DATA) - 1])
async def test_a_body_that_breaks_off_is_fetched_again(
    make: Callable[..., S3Storage], proxy: FaultProxy, fault: Any, at_byte: int
) -> None:
    """An object whose bytes stop midway still arrives whole; a part of it is never returned."""
    store = make(read_timeout_s=READ_TIMEOUT_S)
    await store.put(KEY, DATA)
    proxy.rules = [Rule(fault, method="GET", at_byte=at_byte, count=1)]
    assert await store.get(KEY) == DATA
    assert proxy.rules[0].count == 0


async def test_a_list_that_breaks_off_is_fetched_again(store: S3Storage, proxy: FaultProxy) -> None:
    """A page of a list that stops midway is not taken for a short list."""
    proxy.rules = [Rule("truncate", method="GET", at_byte=300, count=1)]
    assert await keys(store) == [KEY]
    assert proxy.rules[0].count == 0


async def test_a_server_may_ignore_ranges(store: S3Storage, proxy: FaultProxy) -> None:
    """Where the whole object comes back for a range, the right part is cut out of it."""
    proxy.rules = [Rule("ignore_range", method="GET")]
    assert await store.get_range(KEY, 300, 5) == DATA[300:305]
    assert await store.get_range(KEY, len(DATA) - 2, 5) == DATA[-2:]
    assert await store.get_range(KEY, len(DATA) + 1, 5) == b""


@pytest.mark.parametrize("call", ["put_if_absent", "put_if_match"])
async def test_a_conflict_is_retried(store: S3Storage, proxy: FaultProxy, call: str) -> None:
    """409 says that another write is under way, not who won. The next answer decides."""
    proxy.rules = [Rule("status", method="PUT", status=409, count=2)]
    assert await CALLS[call](store) is False  # the key exists, and has another version
    assert proxy.rules[0].count == 0


# ------------------------------------------------------------------ what is given up


@pytest.mark.parametrize("rule", LASTING, ids=lambda rule: f"{rule.fault}{rule.status}")
async def test_a_fault_that_lasts_is_storage_unavailable(hasty: S3Storage, proxy: FaultProxy, rule: Rule) -> None:
    """Every call ends in bounded time, and the error names the operation and the key."""
    proxy.rules = [rule]
    started = time.monotonic()
    for call, error in (await failures(hasty)).items():
        assert isinstance(error, StorageUnavailable), call
        assert error.message.startswith(f"{call.partition('_')[0]} {hasty.url}"), call
    assert time.monotonic() - started < 10


async def test_a_silent_server_is_storage_unavailable(
    make: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The read timeout is the limit for a server that answers nothing, not even "100 Continue"."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        store = make(attempts=1, read_timeout_s=READ_TIMEOUT_S)
        started = time.monotonic()
        for call, error in (await failures(store)).items():
            assert isinstance(error, StorageUnavailable), call
        # By their own defaults they would wait for minutes.
        assert time.monotonic() - started < 30


async def test_a_body_that_always_breaks_off_is_storage_unavailable(hasty: S3Storage, proxy: FaultProxy) -> None:
    """Half an object is never returned."""
    await hasty.put(KEY, DATA)
    proxy.rules = [Rule("truncate", method="GET", at_byte=1000)]
    with pytest.raises(StorageUnavailable, match="broke off 2 times"):
        await hasty.get(KEY)


async def test_a_whole_call_has_a_time_limit(make: Callable[..., S3Storage], proxy: FaultProxy) -> None:
    """However long each step may take, the call as a whole ends at its own timeout."""
    store = make(call_timeout_s=0.5)
    proxy.rules = [Rule("stall")]
    started = time.monotonic()
    with pytest.raises(StorageUnavailable, match=r"not done after 0\.5 s"):
        await store.put(KEY, DATA)
    # The proxy never answers.
    assert time.monotonic() - started < 30


async def test_a_cancelled_call_ends_at_once(make: Callable[..., S3Storage], proxy: FaultProxy) -> None:
    """Its CancelledError is not turned into an error of the store."""
    store = make()
    proxy.rules = [Rule("stall")]
    call = asyncio.ensure_future(store.get(KEY))
    while not proxy.requests:
        await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


# ------------------------------------------------------------------ conditional writes whose answer is lost


@pytest.mark.parametrize("reused", [False, True], ids=["new connection", "used connection"])
async def test_a_lost_answer_to_put_if_absent_raises(store: S3Storage, proxy: FaultProxy, reused: bool) -> None:
    """It is sent once. False would say that another writer stored the object."""
    if reused:
        assert await store.put_if_absent("another", b"") is True
    proxy.requests.clear()
    proxy.rules = [Rule("drop_reply", method="PUT", count=1)]
    with pytest.raises(StorageUnavailable):
        await store.put_if_absent("mine", b"mine")
    assert len(proxy.requests) == 1
    assert await store.get("mine") == b"mine"


async def test_a_lost_answer_to_put_if_match_raises(store: S3Storage, proxy: FaultProxy) -> None:
    """It is sent once, as put_if_absent is."""
    version = (await store.get_versioned(KEY)).version
    proxy.requests.clear()
    proxy.rules = [Rule("drop_reply", method="PUT", count=1)]
    with pytest.raises(StorageUnavailable):
        await store.put_if_match(KEY, b"mine", version)
    assert len(proxy.requests) == 1
    assert await store.get(KEY) == b"mine"


@pytest.mark.parametrize(
    "rule", [Rule("status"), Rule("close"), Rule("reset"), Rule("stall")], ids=lambda rule: rule.fault
)
async def test_a_conditional_write_is_sent_once(hasty: S3Storage, proxy: FaultProxy, rule: Rule) -> None:
    """Neither botocore nor aiohttp sends a conditional write again, whatever became of it."""
    proxy.rules = [rule]
    with pytest.raises(StorageUnavailable):
        await hasty.put_if_absent(KEY, DATA)
    assert len(proxy.requests) == 1


# ------------------------------------------------------------------ what is wrong, and what to do about it


async def test_a_wrong_bucket_is_denied(make: Callable[..., S3Storage]) -> None:
    """A bucket that does not exist is never taken for an empty one, and the message says what to correct."""
    store = make("no-such-bucket")
    for call, error in (await failures(store)).items():
        assert isinstance(error, StorageDenied), call
        assert "bucket no-such-bucket does not exist at http://127.0.0.1:" in error.message, call
        assert "GATEWAY_STORE" in (error.hint or ""), call


async def test_wrong_credentials_are_denied(
    rclone: servers.S3Server, make: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint names the variables to check, and the secret is not in the message."""
    for name, value in (rclone.env | {"AWS_SECRET_ACCESS_KEY": "not-the-secret"}).items():
        monkeypatch.setenv(name, value)
    store = make()
    for call, error in (await failures(store)).items():
        assert isinstance(error, StorageDenied), call
        assert "SignatureDoesNotMatch" in error.message, call
        assert "AWS_SECRET_ACCESS_KEY" in (error.hint or ""), call
        assert "not-the-secret" not in str(error), call


async def test_credentials_that_were_replaced_are_read_anew(
    rclone: servers.S3Server, make: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The server knows the old ones no longer, or not yet: the call that finds out succeeds with those of the file."""
    file = tmp_path / "credentials"
    right = "[default]\naws_access_key_id = {AWS_ACCESS_KEY_ID}\naws_secret_access_key = {AWS_SECRET_ACCESS_KEY}\n"
    file.write_text(right.format(**rclone.env | {"AWS_ACCESS_KEY_ID": "replaced"}))
    for name, value in rclone.env.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setattr(s3, "_RENEW_AFTER_S", 0)
    store = make()
    assert "InvalidAccessKeyId" in (await failure_of(store.put(KEY, DATA))).message
    file.write_text(right.format(**rclone.env))
    await asyncio.gather(*(store.put(f"{KEY}{number}", DATA) for number in range(8)))
    assert await store.get(f"{KEY}0") == DATA


@pytest.mark.parametrize("output", ["not JSON", '{"Version": 1}'])
async def test_whatever_a_source_of_credentials_raises_is_an_error_of_the_store(
    make: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str
) -> None:
    """Nothing that waits for the store may end by an exception that it does not know."""
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = echo {shlex.quote(output)}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for call, error in (await failures(make())).items():
        assert isinstance(error, StorageError), call
        assert "AWS_ACCESS_KEY_ID" in (error.hint or ""), call


@pytest.mark.parametrize("missing", [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_SECRET_ACCESS_KEY",)])
async def test_missing_credentials_are_denied(
    make: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    """Without credentials, or with half of them, the hint names the variables to set."""
    for name in missing:
        monkeypatch.delenv(name)
    store = make()
    for call, error in (await failures(store)).items():
        assert isinstance(error, StorageDenied), call
        assert "AWS_ACCESS_KEY_ID" in (error.hint or ""), call
        assert "AWS_SECRET_ACCESS_KEY" in (error.hint or ""), call


async def test_an_unknown_profile_is_denied(make: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names a profile that no file has."""
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    error = await failure_of(make().get(KEY))
    assert isinstance(error, StorageDenied)
    assert "nobody" in error.message


async def test_a_refused_connection_is_storage_unavailable(
    make: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the address that was tried."""
    port = free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    store = make(attempts=2)
    for call, error in (await failures(store)).items():
        assert isinstance(error, StorageUnavailable), call
        assert f"127.0.0.1:{port}" in error.message, call
        assert "AWS_ENDPOINT_URL_S3" in (error.hint or ""), call


async def test_an_unknown_host_is_storage_unavailable(
    make: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that does not resolve may resolve later."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://store.invalid")
    store = make(attempts=1)
    assert isinstance(await failure_of(store.get(KEY)), StorageUnavailable)


async def test_an_endpoint_that_is_no_url_is_denied(
    make: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message shows it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "store.example.com:9000")
    error = await failure_of(make().get(KEY))
    assert isinstance(error, StorageDenied)
    assert "store.example.com:9000" in error.message


async def test_404_from_another_server_is_not_object_missing(make: Callable[..., S3Storage], proxy: FaultProxy) -> None:
    """Only S3's NoSuchKey counts; otherwise a wrong endpoint would look like an empty store."""
    proxy.rules = [Rule("replace", status=404, body=b"not found")]
    store = make()
    for call, error in (await failures(store)).items():
        assert isinstance(error, StorageDenied), call


async def test_a_web_page_is_not_an_empty_list(make: Callable[..., S3Storage], proxy: FaultProxy) -> None:
    """A web server that answers everything with a page has no list of objects."""
    store = make(attempts=1)
    for page in (b"<html><body>Welcome</body></html>", b"<p>unclosed", b"{}", b""):
        proxy.rules = [Rule("replace", status=200, body=page)]
        error = await failure_of(keys(store))
        assert isinstance(error, StorageDenied | StorageUnavailable), page


@pytest.mark.parametrize("call", ["put", "put_if_absent", "put_if_match"])
async def test_a_web_page_is_not_a_stored_object(make: Callable[..., S3Storage], proxy: FaultProxy, call: str) -> None:
    """A proxy that asks for a login answers a PUT with "200 OK" too."""
    proxy.rules = [Rule("replace", status=200, body=b"<html><body>Log in</body></html>")]
    error = await failure_of(WRITES[call](make(attempts=1)))
    assert isinstance(error, StorageDenied)
    assert "no ETag" in error.message


async def test_the_store_does_not_check_digests(store: S3Storage, proxy: FaultProxy) -> None:
    """A byte that is changed on the way arrives: finding it is up to the reader."""
    proxy.rules = [Rule("flip", method="GET", at_byte=1000)]
    data = await store.get(KEY)
    assert len(data) == len(DATA)
    assert [n for n in range(len(DATA)) if data[n] != DATA[n]] == [1000]


# ------------------------------------------------------------------ the bucket


@pytest.mark.parametrize(("objects", "page"), [(25, 10), pytest.param(1050, 1000, marks=pytest.mark.soak)])
async def test_a_list_of_many_pages_is_whole(make: Callable[..., S3Storage], objects: int, page: int) -> None:
    """More objects than fit on one page come all, once each, in order."""
    store = make(options=StoreOptions(page_keys=page))
    names = [f"data/{n:05}" for n in range(objects)]
    await store.put("elsewhere", b"")
    waiting = iter(names)

    async def put() -> None:
        for name in waiting:
            await store.put(name, b"")

    await asyncio.gather(*(put() for _ in range(8)))
    assert await keys(store, "data/") == names


async def test_objects_that_are_no_keys_are_not_listed(make: Callable[..., S3Storage]) -> None:
    """Folder markers and names with empty parts, which other programs may have made, are left out."""
    store = make()
    client, _ = await store._clients()
    prefix = store.url.removeprefix(f"s3://{BUCKET}/")
    for name in ("", "folder/", "a//b", "folder/object"):
        await client.put_object(Bucket=BUCKET, Key=prefix + name, Body=b"")
    assert await keys(store) == ["folder/object"]


async def test_a_store_stays_below_its_prefix(make: Callable[..., S3Storage], proxy: FaultProxy) -> None:
    """Every request names the bucket in the path and a key below the prefix."""
    store = make()
    with pytest.raises(ObjectMissing):
        await store.get(KEY)
    prefix = store.url.removeprefix(f"s3://{BUCKET}/")
    assert proxy.requests == [("GET", f"/{BUCKET}/{prefix}folder/a%20key")]


@pytest.mark.parametrize(
    ("endpoint", "addressing", "expected"),
    [
        ("", "auto", "https://the-bucket.s3.eu-west-1.amazonaws.com"),
        ("", "path", "https://s3.eu-west-1.amazonaws.com/the-bucket"),
        ("https://store.example.com", "auto", "https://store.example.com/the-bucket"),
        ("https://store.example.com", "virtual", "https://the-bucket.store.example.com"),
    ],
)
async def test_the_bucket_is_named_where_the_server_expects_it(
    make: Callable[..., S3Storage],
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str,
    addressing: Any,
    expected: str,
) -> None:
    """By default in the host name at AWS, in AWS_REGION, and in the path at an endpoint of one's own."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    store = make("the-bucket", options=StoreOptions(addressing=addressing))
    prefix = store.url.removeprefix("s3://the-bucket/")
    sent = []

    def stop(request: Any, **_: object) -> None:
        sent.append(request.url.removesuffix(f"/{prefix}k"))
        raise NoCredentialsError

    for client in await store._clients():
        client.meta.events.register("before-send.s3", stop)
    for call in (store.get("k"), store.put_if_absent("k", b"")):
        assert isinstance(await failure_of(call), StorageDenied)
    assert sent == [expected, expected]


async def test_objects_are_deleted_one_by_one_where_the_server_knows_no_other_way(
    store: S3Storage, proxy: FaultProxy
) -> None:
    """It is asked once. Afterwards each object has a request of its own."""
    names = [f"gone/{number}" for number in range(5)]
    for name in names:
        await store.put(name, b"x")
    proxy.rules, proxy.requests = [Rule("status", status=501, method="POST")], []
    await store.delete_all(names[:3])
    await store.delete_all(names[3:])
    assert await keys(store) == [KEY]
    assert [method for method, _ in proxy.requests if method in ("POST", "DELETE")] == ["POST"] + ["DELETE"] * 5


# ------------------------------------------------------------------ answers of AWS alone


def test_archived_object_says_how_to_bring_it_back() -> None:
    """Glacier answers InvalidObjectState to a read. It is neither missing nor a matter of permissions."""
    response: Any = {"Error": {"Code": "InvalidObjectState"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
    error = S3Storage("bucket")._refusal("get", "get s3://bucket/data/a", ClientError(response, "GetObject"))
    assert isinstance(error, ObjectArchived)
    assert "s3://bucket/data/a" in error.message
    assert "restore-object" in (error.hint or "")


@pytest.mark.parametrize(
    "value", ["2026-11-20T21:04:55.000Z", "2026-11-20T21:04:55Z", "Fri, 20 Nov 2026 21:04:55 GMT", 1795208695]
)
def test_times_are_read_as_botocore_reads_them(value: Any) -> None:
    """In lists, in headers, and of servers that send neither."""
    assert s3._timestamp(value) == parse_timestamp(value)
    assert s3._timestamp(value).tzinfo is not None
