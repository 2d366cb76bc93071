"""What an operator can set about requests to S3: every request that takes it has it, and a server agrees."""

import base64
import hashlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import NoCredentialsError

from gateway.errors import StorageDenied, StorageUnavailable
from gateway.storage import Storage, s3
from gateway.storage.options import StoreOptions
from gateway.storage.s3 import S3Storage
from tests import servers
from tests.contract.conftest import BUCKET, CALLS, DATA, KEY, failure_of, failures, keys
from tests.store_faults import FaultProxy, Rule

CUSTOMER_KEY = bytes(range(32))
LARGE = bytes(range(256)) * (9 << 12)  # 9 MiB: two parts
ACCESS_POINT = "arn:aws:s3:eu-west-1:123456789012:accesspoint/vectors"

# Of the parameters of requests, by their names as headers: which operations take them (botocore's model of S3).
CREATES = {"PutObject", "CreateMultipartUpload", "CopyObject"}
PARTS = {"UploadPart", "UploadPartCopy", "CompleteMultipartUpload"}
COPIES = {"CopyObject", "UploadPartCopy"}
READS = {"GetObject", "HeadObject"}
ALL = CREATES | PARTS | COPIES | READS | {"ListObjectsV2", "DeleteObject", "AbortMultipartUpload"}
KEY_HEADERS = {
    "algorithm": "AES256",
    "key": base64.b64encode(CUSTOMER_KEY).decode(),
    "key-MD5": base64.b64encode(hashlib.md5(CUSTOMER_KEY).digest()).decode(),
}
OPTIONS: list[tuple[StoreOptions, dict[str, tuple[str, set[str]]]]] = [
    (
        StoreOptions(
            encryption="aws:kms",
            kms_key_id="alias/vectors",
            acl="bucket-owner-full-control",
            storage_class="STANDARD_IA",
            request_payer="requester",
        ),
        {
            "x-amz-server-side-encryption": ("aws:kms", CREATES),
            "x-amz-server-side-encryption-aws-kms-key-id": ("alias/vectors", CREATES),
            "x-amz-acl": ("bucket-owner-full-control", CREATES),
            "x-amz-storage-class": ("STANDARD_IA", CREATES),
            "x-amz-request-payer": ("requester", ALL),
        },
    ),
    (
        StoreOptions(customer_key=CUSTOMER_KEY),
        {
            f"x-amz-server-side-encryption-customer-{name}": (value, CREATES | PARTS | READS)
            for name, value in KEY_HEADERS.items()
        }
        | {
            f"x-amz-copy-source-server-side-encryption-customer-{name}": (value, COPIES)
            for name, value in KEY_HEADERS.items()
        },
    ),
]


async def of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def do_everything(store: Storage) -> None:
    """Every operation that sends a request, each with the result that it must have."""
    await store.put(KEY, DATA)
    assert await store.put_if_absent(KEY, b"") is False
    assert await store.put_if_match(KEY, DATA, (await store.get_versioned(KEY)).version)
    assert await store.get(KEY) == DATA
    assert await store.get_range(KEY, 5, 10) == DATA[5:15]
    assert await store.upload("large", of(LARGE)) is not None
    tag = (await store.head("large")).tag
    assert b"".join([piece async for piece in store.download("large", tag=tag)]) == LARGE
    assert await store.upload("large", of(b"x"), if_tag=tag) is not None
    assert await store.copy(KEY, "copy")
    assert await store.get("copy") == DATA
    assert await store.upload("large", of(LARGE)) is not None
    # Its bytes are not looked at: ministack takes a part that is copied for an empty one.
    assert await store.copy("large", "large copy")

    async def broken_off() -> AsyncIterator[bytes]:
        yield LARGE
        raise EOFError

    with pytest.raises(EOFError):
        await store.upload("broken off", broken_off())
    assert await keys(store) == sorted(["copy", KEY, "large", "large copy"])
    for key in await keys(store):
        await store.delete(key)


@pytest.mark.parametrize(("options", "headers"), OPTIONS, ids=["of the server", "customer key"])
async def test_every_request_that_takes_an_option_has_it(
    make: Callable[..., S3Storage],
    monkeypatch: pytest.MonkeyPatch,
    options: StoreOptions,
    headers: dict[str, tuple[str, set[str]]],
) -> None:
    """And no other request has it: a server refuses encryption in a request that reads."""
    monkeypatch.setattr(s3, "_COPY_BYTES", 8 << 20)  # so that the large copy is made in parts
    store, sent = make(options=options), dict[str, set[str | None]]()
    seen = set()

    def note(request: Any, event_name: str, **_: object) -> None:
        operation = event_name.rpartition(".")[2]
        seen.add(operation)
        for name in headers:
            value = request.headers.get(name)
            sent.setdefault(f"{operation} {name}", set()).add(value.decode() if isinstance(value, bytes) else value)

    for client in (*await store._clients(), store._patient):
        client.meta.events.register("before-send.s3", note)
    await do_everything(store)
    assert seen == ALL
    for name, (value, operations) in headers.items():
        for operation in ALL:
            assert sent[f"{operation} {name}"] == {value if operation in operations else None}, operation


async def test_without_the_customer_key_the_hint_names_the_setting(make: Callable[..., S3Storage]) -> None:
    """Without a key, with another one, and with one for an object that was stored without."""
    owner = make(options=StoreOptions(customer_key=CUSTOMER_KEY))
    await owner.put(KEY, DATA)
    others = [make(), make(options=StoreOptions(customer_key=bytes(32)))]
    for other in others:
        other._prefix = owner._prefix
        error = await failure_of(other.get(KEY))
        assert isinstance(error, StorageDenied)
        assert "GATEWAY_S3_SSE_CUSTOMER_KEY" in (error.hint or "")
    await others[0].put("plain", DATA)
    error = await failure_of(owner.get("plain"))
    assert "GATEWAY_S3_SSE_CUSTOMER_KEY" in (error.hint or "")


@pytest.mark.parametrize("options", [StoreOptions(customer_key=CUSTOMER_KEY), StoreOptions(request_payer="requester")])
async def test_there_are_no_links_that_need_headers(make: Callable[..., S3Storage], options: StoreOptions) -> None:
    """A browser does not send them, so such a link would never work."""
    assert await make(options=options).presign(KEY, 60, "name") is None


# ------------------------------------------------------------------ permissions


@pytest.mark.parametrize(
    ("call", "method", "expected"),
    [
        ("delete", "DELETE", "GATEWAY_STORE_NEVER_DELETE=true"),
        ("put", "PUT", "GATEWAY_S3_SSE"),
        ("put_if_absent", "PUT", "s3:PutObject"),
        ("get", "GET", "s3:ListBucket"),
        ("list", "GET", "s3:ListBucket"),
    ],
)
async def test_a_refusal_says_what_to_allow(
    make: Callable[..., S3Storage], proxy: FaultProxy, call: str, method: str, expected: str
) -> None:
    """The hint is for the operation that was refused, and names the way out where there is another one."""
    proxy.rules = [Rule("status", method=method, status=403)]
    error = await failure_of(CALLS[call](make()))
    assert isinstance(error, StorageDenied)
    assert expected in (error.hint or "")
    assert "chroma-gateway store check" in (error.hint or "")


async def test_parts_that_cannot_be_deleted_are_noted(make: Callable[..., S3Storage], proxy: FaultProxy) -> None:
    """The error that ended the upload stays what it is, with a note."""
    proxy.rules = [Rule("status", method="DELETE", status=403)]

    async def broken_off() -> AsyncIterator[bytes]:
        yield LARGE
        raise EOFError

    with pytest.raises(EOFError) as caught:
        await make().upload(KEY, broken_off())
    assert "s3:AbortMultipartUpload" in "".join(getattr(caught.value, "__notes__", ()))


# ------------------------------------------------------------------ spelling


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("hush-hush\n", "a line break"),
        ("hush\r\nhush", "a line break"),
        (" hush-hush", "a space"),
        ("'hush'", "quotes"),
    ],
)
async def test_a_key_with_more_than_itself_is_named(
    make: Callable[..., S3Storage], proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str
) -> None:
    """As files and env files add it. The message has the name of the variable, never the value; nothing is sent."""
    monkeypatch.setenv(name, value)
    for call, error in (await failures(make())).items():
        assert isinstance(error, StorageDenied), call
        assert f"{name} (from env) has {why}" in error.message, call
        assert "hush" not in str(error), call
    assert proxy.requests == []


@pytest.mark.parametrize("value", ["http://127.0.0.1:9000 ", "http://127.0.0.1:9000\n", "'http://127.0.0.1:9000'"])
async def test_an_endpoint_with_more_than_itself_is_denied(
    make: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """It would be another host, or none."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", value)
    error = await failure_of(make().get(KEY))
    assert isinstance(error, StorageDenied)
    assert "AWS_ENDPOINT_URL_S3" in str(error)


async def test_a_wrong_region_is_named(make: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint names the variable."""
    monkeypatch.setenv("AWS_REGION", "eu west 1")
    error = await failure_of(make().get(KEY))
    assert isinstance(error, StorageDenied)
    assert "AWS_REGION" in (error.hint or "")


async def test_the_bucket_in_the_endpoint_is_found_before_anything_is_written(
    ministack: servers.S3Server, make: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else objects would get the bucket's name before their key, and every list would fail."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"{ministack.url}/{BUCKET}/")
    store = make()
    for call in ("put", "get", "list"):
        error = await failure_of(CALLS[call](store))
        assert isinstance(error, StorageDenied), call
        assert "has the bucket's name in it" in error.message, call
        assert "GATEWAY_STORE" in (error.hint or ""), call
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", ministack.url)
    everything = S3Storage(BUCKET)
    assert [key for key in await keys(everything) if key.startswith(BUCKET)] == []
    await everything.close()


async def test_a_host_that_begins_like_the_bucket_is_right(
    ministack: servers.S3Server, make: Callable[..., S3Storage]
) -> None:
    """As the bucket `minio` at minio.example.com: only the server knows."""
    ministack.make_bucket("127")
    store = make("127")
    await store.put(KEY, DATA)
    assert await keys(store) == [KEY]


async def test_a_list_that_misses_a_key_is_denied(make: Callable[..., S3Storage], proxy: FaultProxy) -> None:
    """A list asks for none. It is an error of the endpoint, and not a damaged repository."""
    body = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code><Message>none</Message></Error>"
    proxy.rules = [Rule("replace", status=404, body=body)]
    error = await failure_of(keys(make()))
    assert isinstance(error, StorageDenied)
    assert "AWS_ENDPOINT_URL_S3" in (error.hint or "")


async def test_an_access_point_is_asked_at_its_own_address(
    make: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ARN stands in place of the bucket's name, in the region that it names."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "")
    store, sent = make(ACCESS_POINT), list[tuple[str, str]]()
    prefix = store.url.removeprefix(f"s3://{ACCESS_POINT}/")

    def stop(request: Any, **_: object) -> None:
        sent.append((request.method, request.url))
        raise NoCredentialsError

    for client in await store._clients():
        client.meta.events.register("before-send.s3", stop)
    for call in ("get", "put", "put_if_absent", "delete"):
        assert isinstance(await failure_of(CALLS[call](store)), StorageDenied)
    address = "https://vectors-123456789012.s3-accesspoint.eu-west-1.amazonaws.com"
    url = f"{address}/{prefix}folder/a%20key"
    assert sent == [("GET", url), ("PUT", url), ("PUT", url), ("DELETE", url)]


# ------------------------------------------------------------------ certificate authorities


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that is its own authority. Its key is beside it, with the suffix `.key`."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    file = tmp_path_factory.mktemp("tls") / "own.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(file), "-keyout", str(file.with_suffix(".key"))]
    subprocess.run(command, check=True, capture_output=True)
    return file


async def test_an_authority_is_read_where_other_programs_read_it(
    certificate: Path, make: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An empty variable is not set, and never ends the verification. The hint names a variable to set."""
    variables = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
    with servers.rclone_in(tmp_path, certificate) as server:
        (tmp_path / BUCKET).mkdir()
        for variable, value in server.env.items():
            monkeypatch.setenv(variable, value)
        for variable in variables:
            monkeypatch.delenv(variable, raising=False)
        for file in ("", str(tmp_path / "none.pem")):
            for variable in variables:
                monkeypatch.setenv(variable, file)
            error = await failure_of(make(attempts=1).get(KEY))
            assert isinstance(error, StorageUnavailable)
            assert "SSL_CERT_FILE" in (error.hint or "")
        for variable in variables:
            monkeypatch.setenv(variable, "")
        for variable in variables:
            with monkeypatch.context() as patch:
                patch.setenv(variable, str(certificate))
                store = make()
                await store.put(KEY, DATA)
                assert await store.get(KEY) == DATA
