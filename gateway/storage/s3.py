"""Objects in a bucket, at AWS or any other server that speaks S3. botocore reads credentials and endpoint from `AWS_*`.

What is retried, and where:

1. botocore retries a request that failed on its way or was answered with "later".
2. `_read` and `download` continue after a body that broke off midway, which botocore never does.
3. A call whose credentials have expired or are gone is repeated once, with credentials that are read anew: a file of
   them may have been replaced.
4. A conditional write goes through a client of its own, on which nothing is retried: botocore and aiohttp would both
   send it again after a lost answer, and then report our own write as that of another writer.
"""

import asyncio
import base64
import contextlib
import functools
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import quote, urlsplit

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore.exceptions import (
    BotoCoreError,
    ChecksumError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    InvalidRegionError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError
from botocore.utils import parse_timestamp
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from gateway.aio import TaskPool
from gateway.errors import (
    GatewayError,
    InvalidRequest,
    ObjectArchived,
    ObjectMissing,
    StorageDenied,
    StorageError,
    StorageUnavailable,
)
from gateway.storage.gcs_preconditions import generation, has_gcs_preconditions, translate
from gateway.storage.options import DEFAULT_OPTIONS, StoreOptions
from gateway.storage.protocol import Grant, ObjectInfo, Versioned, check_key, check_prefix
from gateway.storage.s3_hints import (
    BRING_BACK,
    CHECK_CREDENTIALS,
    CHECK_ENDPOINT,
    CHECK_REGION,
    CHECK_SPELLING,
    SET_CREDENTIALS,
    hint_for_refusal,
    hint_for_transport,
    misspelling,
)
from gateway.storage.s3_permissions import grants_in

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

# botocore reads neither AWS_REGION, as the other SDKs of AWS do, nor SSL_CERT_FILE, as most programs do.
_SESSION_VARIABLES: dict[str, Any] = {
    "region": ("region", ["AWS_REGION", "AWS_DEFAULT_REGION"], None, None),
    "ca_bundle": ("ca_bundle", ["AWS_CA_BUNDLE"], None, None),
    "ssl_cert_file": (None, ["SSL_CERT_FILE"], None, None),
    "requests_ca_bundle": (None, ["REQUESTS_CA_BUNDLE"], None, None),
}
_AUTHORITIES = ("ca_bundle", "ssl_cert_file", "requests_ca_bundle")
_DEFAULT_REGION = "us-east-1"

_RETRY_FIRST_S = 0.1
_RETRY_LONGEST_S = 5.0

# S3 allows 10,000 parts of at least 5 MiB, and copies of 5 GiB at once.
_PART_BYTES = 8 << 20
_COPY_BYTES = 1 << 30
_PIECE_BYTES = 256 << 10
_ABORT_TIMEOUT_S = 5
# S3 allows 1,000 keys in one request.
_DELETED_AT_ONCE = 1000
_DELETES_AT_ONCE = 16
_RENEW_AFTER_S = 5

_ACCESS_POINT = re.compile(
    r"(arn:aws[a-z-]*:s3:[a-z0-9-]+:[0-9]{12}:accesspoint[/:][a-z0-9-]{3,50})(?:/(.*))?", re.DOTALL
)

_BROKEN_OFF = (HTTPClientError, IncompleteReadError, FlexibleChecksumError, aiohttp.ClientError)
_TRANSPORT = (*_BROKEN_OFF, ConnectionError, ChecksumError, OSError)
_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    CredentialRetrievalError,
    MetadataRetrievalError,
    NoAuthTokenError,
    TokenRetrievalError,
    SSOError,
)

# Answers that other credentials may change: those in use have expired, or were replaced.
_STALE_CREDENTIALS = ("ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "TokenRefreshRequired")

# Answers that may differ at the next try.
_DAMAGED_ON_THE_WAY = ("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "RequestTimeout")
_LATER = (408, 409, 425, 429)
_NOT_IMPLEMENTED = 501

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def _renewing(
    call: Callable[_Parameters, Awaitable[_Result]],
) -> Callable[_Parameters, Coroutine[Any, Any, _Result]]:
    """Repeat a method's call once that was refused for its credentials. A refused call has changed nothing."""

    @functools.wraps(call)
    async def renewed(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        storage: Any = args[0]
        began_s = time.monotonic()
        try:
            return await call(*args, **kwargs)
        except StorageDenied as error:
            refusal = error.__cause__
            if not isinstance(refusal, ClientError) or _code(refusal) not in _STALE_CREDENTIALS:
                raise
            if not await storage._renew(began_s):
                raise
        return await call(*args, **kwargs)

    return renewed


def open_url(location: str, options: StoreOptions) -> "S3Storage":
    """Return the store at `s3://` and `location`, which is `bucket[/prefix]`. Raises InvalidRequest.

    In place of the bucket's name there may be the ARN of an access point.
    """
    bucket, prefix = _bucket_and_prefix(location)
    return S3Storage(bucket, prefix, options=options)


def grants(location: str, options: StoreOptions, prefix: str) -> list[Grant]:
    """Return the least that a gateway must be allowed to do below `prefix` of the store at `location`."""
    bucket, root = _bucket_and_prefix(location)
    return grants_in(bucket, f"{root.removesuffix('/')}/{prefix}" if root else prefix, options)


def _bucket_and_prefix(location: str) -> tuple[str, str]:
    if not location.startswith("arn:"):
        bucket, _, prefix = location.partition("/")
        return bucket, prefix
    if not (found := _ACCESS_POINT.fullmatch(location)):
        raise InvalidRequest(
            f"{location!r} does not begin with the ARN of an access point of one region"
            " (arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME); a bucket is named without its ARN"
        )
    return found[1], found[2] or ""


class S3Storage:
    """The objects of `bucket` below `prefix`. It connects with the first call.

    `bucket` may be the ARN of an access point. `attempts` limits the tries of one call and `call_timeout_s`
    the time of all of them together; the other timeouts are for one step of one try.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        options: StoreOptions = DEFAULT_OPTIONS,
        attempts: int = 5,
        connect_timeout_s: float = 5,
        read_timeout_s: float = 30,
        call_timeout_s: float = 600,
        max_connections: int = 32,
    ) -> None:
        self._bucket = bucket
        self._prefix = check_key(prefix.removesuffix("/")) + "/" if prefix else ""
        self._attempts = attempts
        self._call_timeout_s = call_timeout_s
        self._config: dict[str, Any] = {
            "connect_timeout": connect_timeout_s,
            "read_timeout": read_timeout_s,
            "max_pool_connections": max_connections,
            # By default botocore sends checksums in trailers, which not every S3 server understands.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            # Over plain HTTP botocore would hash every body on the event loop. Content-MD5 covers the body instead: it
            # is computed in a thread, and signed.
            "s3": {"addressing_style": options.addressing, "payload_signing_enabled": False},
            # By default botocore presigns with an older signature, which newer regions refuse.
            "signature_version": "s3v4",
        }
        # A link has no headers, and both of these are sent as headers.
        self._has_links = options.customer_key is None and options.request_payer is None
        self._parameters = _parameters(options)
        self._connecting = asyncio.Lock()
        self._connected: tuple[S3Client, S3Client] | None = None
        self._patient: Any = None
        self._connected_at_s = 0.0
        self._deletes_many = True
        self._exit = contextlib.AsyncExitStack()
        self._exit_of_former = contextlib.AsyncExitStack()

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}"

    # ------------------------------------------------------------------ writing

    @_renewing
    async def put(self, key: str, data: bytes) -> None:
        async with self._call("put", key):
            client, _ = await self._clients()
            answer = await client.put_object(
                Bucket=self._bucket, Key=self._key(key), Body=data, ContentMD5=await _content_md5(data)
            )
            _require_stored(answer, f"put {self.url}{key}")

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        return await self._put_if(key, data, IfNoneMatch="*")

    async def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        return await self._put_if(key, data, IfMatch=version)

    @_renewing
    async def _put_if(self, key: str, data: bytes, **condition: Any) -> bool:
        async with self._call("put", key):
            _, client = await self._clients()
            content_md5 = await _content_md5(data)
            # 409 means that another write is under way: the answer to the next try counts.
            async for attempt in self._retrying(lambda error: _status(error) == 409):
                with attempt:
                    try:
                        answer = await client.put_object(
                            Bucket=self._bucket,
                            Key=self._key(key),
                            Body=data,
                            ContentMD5=content_md5,
                            **condition,
                        )
                        _require_stored(answer, f"put {self.url}{key}")
                    except ClientError as error:
                        if _status(error) == 412 or ("IfMatch" in condition and _code(error) == "NoSuchKey"):
                            return False
                        raise
            return True

    async def upload(
        self, key: str, pieces: AsyncIterator[bytes], *, if_absent: bool = False, if_tag: str | None = None
    ) -> ObjectInfo | None:
        condition = ({"IfNoneMatch": "*"} if if_absent else {}) | ({"IfMatch": f'"{if_tag}"'} if if_tag else {})
        where = {"Bucket": self._bucket, "Key": self._key(key)}
        size_bytes, multipart, tag = 0, None, None
        try:
            async for part, is_last in _parts(pieces, _PART_BYTES):
                size_bytes += len(part)
                if is_last and multipart is None:
                    tag = await self._put_part(key, part, condition)
                else:
                    multipart = multipart or await self._begin_multipart(key, where)
                    await multipart.add(part)
                    # Checked first too: some servers ignore conditions on the completion of a multipart upload.
                    if is_last and await self._may_complete(key, if_absent, if_tag):
                        tag = await self._complete(key, multipart, condition)
        except BaseException as error:
            if multipart is not None and (left := await self._abort(multipart)):
                error.add_note(left)
            raise
        if multipart is not None:
            if tag is None:
                await self._abort(multipart)
            else:
                # rclone answers the completion with another ETag than the object then has.
                return await self.head(key)
        if tag is None:
            return None
        return ObjectInfo(key, size_bytes, datetime.now(UTC), tag)

    @_renewing
    async def _put_part(self, key: str, data: bytes, condition: dict[str, Any]) -> str | None:
        """Put an object of one part. Return its tag, or None if the condition failed."""
        async with self._call("put", key):
            retrying, once = await self._clients()
            answer = await self._conditionally(
                condition,
                (once if condition else retrying).put_object,
                Bucket=self._bucket,
                Key=self._key(key),
                Body=data,
                ContentMD5=await _content_md5(data),
            )
            return _tag(answer["ETag"]) if answer else None

    @_renewing
    async def _begin_multipart(self, key: str, where: dict[str, str]) -> "_Multipart":
        async with self._call("put", key):
            client, _ = await self._clients()
            answer: Any = await client.create_multipart_upload(**where)  # type: ignore[arg-type]
        return _Multipart(where | {"UploadId": answer["UploadId"]}, client, lambda: self._call("put", key))

    async def _may_complete(self, key: str, if_absent: bool, if_tag: str | None) -> bool:
        if not if_absent and if_tag is None:
            return True
        try:
            return (await self.head(key)).tag == if_tag
        except ObjectMissing:
            return if_tag is None

    @_renewing
    async def _complete(self, key: str, multipart: "_Multipart", condition: dict[str, Any]) -> str | None:
        async with self._call("put", key):
            await self._clients()
            answer = await self._conditionally(
                condition,
                # Some servers put all parts together before they answer anything.
                self._patient.complete_multipart_upload,
                **multipart.where,
                MultipartUpload={"Parts": multipart.parts},
            )
            return _tag(answer["ETag"]) if answer else None

    async def _conditionally(self, condition: dict[str, Any], call: Any, **arguments: Any) -> dict[str, Any] | None:
        """Return the answer to `call`, or None if the condition failed. A conflict with another write is retried."""
        async for attempt in self._retrying(lambda error: bool(condition) and _status(error) == 409):
            with attempt:
                try:
                    answer: dict[str, Any] = await call(**arguments, **condition)
                except ClientError as error:
                    if condition and (_status(error) == 412 or _code(error) == "NoSuchKey"):
                        return None
                    raise
        return answer

    async def _abort(self, multipart: "_Multipart") -> str | None:
        """Delete the parts that were sent. Return why that failed: then a lifecycle rule has to remove them."""
        try:
            async with asyncio.timeout(_ABORT_TIMEOUT_S):
                client, _ = await self._clients()
                await client.abort_multipart_upload(**multipart.where)  # type: ignore[arg-type]
        except Exception as error:
            return f"the parts that were sent stay in the store: {_reason(error)} (allow s3:AbortMultipartUpload)"
        return None

    async def copy(self, source: str, target: str, *, if_absent: bool = False) -> bool:
        info = await self.head(source)
        if if_absent:  # no condition on the target of a copy is known to every server
            return await self.upload(target, self.download(source, tag=info.tag), if_absent=True) is not None
        where = {"Bucket": self._bucket, "Key": self._key(target)}
        origin = {"Bucket": self._bucket, "Key": self._key(source)}
        if info.size_bytes <= _COPY_BYTES:
            async with self._call("copy", source):
                client, _ = await self._clients()
                await client.copy_object(**where, CopySource=origin)  # type: ignore[arg-type]
            return True
        multipart = await self._begin_multipart(target, where)
        try:
            for start in range(0, info.size_bytes, _COPY_BYTES):
                end = min(start + _COPY_BYTES, info.size_bytes) - 1
                await multipart.add_copy(origin, info.tag, start, end)
            await self._complete(target, multipart, {})
        except BaseException:
            await self._abort(multipart)
            raise
        return True

    async def presign(self, key: str, expires_s: int, filename: str) -> str | None:
        if not self._has_links:
            self._key(key)
            return None
        async with self._call("presign", key):
            client, _ = await self._clients()
            return await client.generate_presigned_url(
                "get_object",
                Params={
                    "Bucket": self._bucket,
                    "Key": self._key(key),
                    "ResponseContentDisposition": f"attachment; filename*=UTF-8''{quote(filename, safe='')}",
                },
                ExpiresIn=expires_s,
            )

    @_renewing
    async def delete(self, key: str) -> None:
        async with self._call("delete", key):
            client, _ = await self._clients()
            try:
                await client.delete_object(Bucket=self._bucket, Key=self._key(key))
            except ClientError as error:
                if _code(error) != "NoSuchKey":  # AWS never answers this to a delete, other servers do
                    raise

    async def delete_all(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETED_AT_ONCE):
            left = keys[start : start + _DELETED_AT_ONCE]
            if self._deletes_many and len(left) > 1:
                try:
                    left = await self._delete_many(left)
                except StorageDenied:  # not every server knows this request; `delete` tells what is wrong, if anything
                    self._deletes_many = False
            async with TaskPool(_DELETES_AT_ONCE) as pool:
                for key in left:
                    await pool.start(self._delete_one, key)

    async def _delete_one(self, key: str) -> None:
        await self.delete(key)

    @_renewing
    async def _delete_many(self, keys: Sequence[str]) -> list[str]:
        """Delete objects with one request. Return the keys that the server did not delete."""
        async with self._call("delete", f"{keys[0]} and {len(keys) - 1} more"):
            client, _ = await self._clients()
            objects: Any = [{"Key": self._key(key)} for key in keys]
            answer: Any = await client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})
            return [error["Key"].removeprefix(self._prefix) for error in answer.get("Errors", ())]

    # ------------------------------------------------------------------ reading

    async def get(self, key: str) -> bytes:
        data, _ = await self._read(key)
        return data

    async def get_versioned(self, key: str) -> Versioned:
        data, answer = await self._read(key)
        if not answer.get("ETag"):
            raise StorageDenied(
                f"get {self.url}{key}: the answer has no ETag", "GATEWAY_STORE needs a server with ETags"
            )
        return Versioned(data, generation(answer["ResponseMetadata"]["HTTPHeaders"]) or answer["ETag"])

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        # A range has at least one byte, and with none the object must still be there.
        last = start + max(length, 1) - 1
        try:
            data, answer = await self._read(key, Range=f"bytes={start}-{last}")
        except _PastTheEnd:
            return b""
        # A server may ignore the range and answer with the whole object. The status alone does not tell: rclone
        # answers 200 with the range.
        whole = answer["ResponseMetadata"]["HTTPStatusCode"] == 200 and not answer.get("ContentRange")
        skip = start if whole else 0
        return data[skip : skip + length]

    @_renewing
    async def _read(self, key: str, **condition: Any) -> tuple[bytes, dict[str, Any]]:
        async with self._call("get", key):
            client, _ = await self._clients()
            async for attempt in self._retrying(lambda error: isinstance(error, _BodyBrokeOff)):
                with attempt:
                    try:
                        answer: Any = await client.get_object(Bucket=self._bucket, Key=self._key(key), **condition)
                    except ClientError as error:
                        if _status(error) == 416:
                            raise _PastTheEnd from None
                        raise
                    try:
                        data: bytes = await answer["Body"].read()
                    except (*_BROKEN_OFF, OSError) as error:
                        raise _BodyBrokeOff(_reason(error)) from error
                    finally:
                        answer["Body"].close()
            return data, answer

    @_renewing
    async def head(self, key: str) -> ObjectInfo:
        async with self._call("head", key):
            client, _ = await self._clients()
            try:
                answer = await client.head_object(Bucket=self._bucket, Key=self._key(key))
            except ClientError as error:
                if _status(error) != 404:
                    raise
            else:
                modified_at = answer["LastModified"].astimezone(UTC)
                return ObjectInfo(key, answer["ContentLength"], modified_at, _tag(answer["ETag"]))
        # An answer without a body does not say what is missing: the key, the bucket, or an S3 server. A list does.
        if not await self._page(key, {"MaxKeys": 1}):
            raise StorageDenied(f"head {self.url}{key}: the answer is not a list of objects", CHECK_ENDPOINT)
        raise ObjectMissing(f"head {self.url}{key}: there is no such object")

    async def download(self, key: str, start: int = 0, length: int | None = None, *, tag: str) -> AsyncIterator[bytes]:
        end = None if length is None else start + length
        broken = 0
        while end is None or start < end:
            try:
                async with self._body(key, start, end, tag) as body:
                    async for piece in body:
                        start, broken = start + len(piece), 0
                        yield piece
                return
            except _PastTheEnd:
                return
            except _BodyBrokeOff as error:
                broken += 1
                if broken >= self._attempts:
                    raise StorageUnavailable(
                        f"get {self.url}{key}: the body broke off {broken} times: {error}"
                    ) from error
                await asyncio.sleep(_RETRY_FIRST_S * 2**broken)

    @contextlib.asynccontextmanager
    async def _body(self, key: str, start: int, end: int | None, tag: str) -> "AsyncIterator[AsyncIterator[bytes]]":
        """Yield the pieces of an object from `start` to before `end`, without retries.

        Not under the time limit of a call: the reader may take its time between two pieces.
        """
        asked: dict[str, Any] = (
            {} if (start, end) == (0, None) else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        )
        async with self._call("get", key):
            client, _ = await self._clients()
            try:
                answer: Any = await client.get_object(
                    Bucket=self._bucket, Key=self._key(key), IfMatch=f'"{tag}"', **asked
                )
            except ClientError as error:
                if _status(error) == 416:
                    raise _PastTheEnd from None
                if _status(error) == 412:
                    raise ObjectMissing(f"get {self.url}{key}: it was replaced meanwhile") from None
                raise
        body = answer["Body"]
        try:
            if _tag(answer["ETag"]) != tag:  # a server that ignores conditions
                raise ObjectMissing(f"get {self.url}{key}: it was replaced meanwhile")
            whole = answer["ResponseMetadata"]["HTTPStatusCode"] == 200 and not answer.get("ContentRange")
            yield self._pieces(body, start if whole else 0, None if end is None else end - start)
        finally:
            body.close()

    async def _pieces(self, body: Any, skip: int, length: int | None) -> AsyncIterator[bytes]:
        left = length
        while left is None or left > 0:
            try:
                async with asyncio.timeout(self._call_timeout_s):
                    piece: bytes = await body.read(_PIECE_BYTES)
            except (*_BROKEN_OFF, OSError) as error:  # TimeoutError is an OSError
                raise _BodyBrokeOff(_reason(error)) from error
            if not piece:
                return
            skipped = min(skip, len(piece))
            skip -= skipped
            piece = piece[skipped:] if left is None else piece[skipped : skipped + left]
            left = None if left is None else left - len(piece)
            if piece:
                yield piece

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        async for page in self._pages(prefix, {"StartAfter": self._prefix + after} if after else {}):
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(self._prefix)
                # Some servers ignore StartAfter.
                if _is_key(key) and key > after:
                    yield ObjectInfo(
                        key, item["Size"], item["LastModified"].astimezone(UTC), _tag(item.get("ETag", ""))
                    )

    async def folders(self, prefix: str) -> AsyncIterator[str]:
        async for page in self._pages(prefix, {"Delimiter": "/"}):
            for item in page.get("CommonPrefixes", ()):
                name = item["Prefix"].removeprefix(self._prefix + prefix).removesuffix("/")
                if _is_key(name):
                    yield name

    async def _pages(self, prefix: str, first: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        asked = first
        while True:
            page = await self._page(prefix, asked)
            yield page
            if not page["IsTruncated"]:
                return
            asked = first | {"ContinuationToken": page["NextContinuationToken"]}

    @_renewing
    async def _page(self, prefix: str, asked: dict[str, Any]) -> dict[str, Any]:
        async with self._call("list", prefix):
            client, _ = await self._clients()
            page: Any = await client.list_objects_v2(
                Bucket=self._bucket, Prefix=check_prefix(self._prefix + prefix), **asked
            )
            # A web page with status 200 that parses as XML would look like an empty list.
            if "IsTruncated" not in page or (page["IsTruncated"] and not page.get("NextContinuationToken")):
                raise ResponseParserError("the answer is not a list of objects")
            return dict(page)

    # ------------------------------------------------------------------ connection

    async def close(self) -> None:
        self._connected = None
        await self._exit.aclose()
        await self._exit_of_former.aclose()

    async def _renew(self, used_since_s: float) -> bool:
        """Read credentials anew for later calls, unless that was done since `used_since_s`.

        Returns False if it was done too recently to do any good.
        """
        async with self._connecting:
            if self._connected_at_s > used_since_s:
                return True
            if time.monotonic() - self._connected_at_s < _RENEW_AFTER_S:
                return False
            # Calls under way still use the former clients, and end before the next time.
            await self._exit_of_former.aclose()
            self._exit_of_former, self._connected = self._exit, None
            return True

    async def _clients(self) -> "tuple[S3Client, S3Client]":
        """Return a client that retries, and one that sends everything once. Connects at the first call."""
        async with self._connecting:
            if self._connected is None:
                try:
                    self._connected = await self._connect()
                    self._connected_at_s = time.monotonic()
                except json.JSONDecodeError:  # of a `credential_process`
                    raise
                except InvalidRegionError as error:
                    raise StorageDenied(f"connect to {self.url}: {error}", CHECK_REGION) from error
                except ValueError as error:  # botocore raises it for an endpoint that is no URL
                    raise StorageDenied(f"connect to {self.url}: {error}", CHECK_ENDPOINT) from error
            return self._connected

    async def _connect(self) -> "tuple[S3Client, S3Client]":
        aws = AioSession(session_vars=_SESSION_VARIABLES)
        # botocore's own parser takes 80 % of the time of a long list.
        aws.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
        await self._check_credentials(aws)
        session = aioboto3.Session(botocore_session=aws)
        region = session.region_name or _DEFAULT_REGION
        # An empty variable is not set. botocore itself would take it for a wish not to verify certificates.
        authorities = next(filter(None, map(aws.get_config_variable, _AUTHORITIES)), True)
        retrying = AioConfig(
            **self._config,
            http_session_cls=_Session,
            retries={"mode": "standard", "total_max_attempts": self._attempts},
        )
        once, patient = (
            AioConfig(
                **self._config | timeouts,
                http_session_cls=_Once,
                # Ceph stalls on a connection on which it has refused a write; new ones cost little here.
                connector_args={"force_close": True, "keepalive_timeout": None},
                retries={"mode": "standard", "total_max_attempts": 1},
            )
            for timeouts in ({}, {"read_timeout": self._call_timeout_s})
        )
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    session.client("s3", region_name=region, config=config, verify=authorities)
                )
                for config in (retrying, once, patient)
            ]
            if self._parameters:
                for client in clients:
                    client.meta.events.register("provide-client-params.s3", self._add_parameters)
            await self._check_endpoint(clients[0])
            self._patient = clients[2]
            self._exit = stack.pop_all()
        if has_gcs_preconditions(clients[1].meta.endpoint_url):
            clients[1].meta.events.register("before-call.s3.PutObject", translate)
        return clients[0], clients[1]

    def _add_parameters(self, params: dict[str, Any], model: Any, **_: object) -> dict[str, Any]:
        """Add what the options say and the operation takes. A handler of botocore's `provide-client-params.s3`."""
        taken = model.input_shape.members
        return {name: value for name, value in self._parameters.items() if name in taken} | params

    async def _check_credentials(self, session: AioSession) -> None:
        """Raise StorageDenied if a key was spelled so that no server can know it: with a line break of a file."""
        credentials = await session.get_credentials()
        if credentials is None:
            return
        frozen = await credentials.get_frozen_credentials()
        for name, value in (
            ("AWS_ACCESS_KEY_ID", frozen.access_key),
            ("AWS_SECRET_ACCESS_KEY", frozen.secret_key),
            ("AWS_SESSION_TOKEN", frozen.token),
        ):
            if why := misspelling(value or "", in_one_word=name == "AWS_ACCESS_KEY_ID"):
                # `method` says where botocore has them from.
                where = f"{name} (from {credentials.method})"
                raise StorageDenied(f"connect to {self.url}: {where} {why}", CHECK_SPELLING)

    async def _check_endpoint(self, client: "S3Client") -> None:
        """Raise StorageDenied if the endpoint names the bucket too: its name would become a part of all keys."""
        endpoint = client.meta.endpoint_url
        if why := misspelling(endpoint, in_one_word=True):
            raise StorageDenied(f"connect to {self.url}: AWS_ENDPOINT_URL_S3 {why}", CHECK_SPELLING)
        where = urlsplit(endpoint)
        if not (
            where.netloc.startswith(f"{self._bucket}.") or f"{where.path.rstrip('/')}/".endswith(f"/{self._bucket}/")
        ):
            return
        # It may still be right: the bucket `minio` at minio.example.com. If it is wrong, the server takes the second
        # name for a key, and has no such key.
        try:
            await client.list_objects_v2(Bucket=self._bucket, MaxKeys=1)
        except ClientError as error:
            if _code(error) == "NoSuchKey":
                raise StorageDenied(
                    f"connect to {self.url}: AWS_ENDPOINT_URL_S3 ({endpoint}) has the bucket's name in it",
                    "take it out: GATEWAY_STORE names the bucket",
                ) from error

    def _key(self, key: str) -> str:
        return check_key(self._prefix + key)

    def _retrying(self, is_worth_it: Callable[[BaseException], bool]) -> AsyncRetrying:
        return AsyncRetrying(
            retry=retry_if_exception(is_worth_it),
            stop=stop_after_attempt(self._attempts),
            wait=wait_random_exponential(_RETRY_FIRST_S, _RETRY_LONGEST_S),
            reraise=True,
        )

    # ------------------------------------------------------------------ errors

    @contextlib.asynccontextmanager
    async def _call(self, operation: str, key: str) -> AsyncIterator[None]:
        """Limit the time of a call, and translate every foreign exception into one of our errors."""
        where = f"{operation} {self.url}{key}"
        try:
            async with asyncio.timeout(self._call_timeout_s):
                yield
        except ClientError as error:
            raise self._refusal(operation, where, error) from error
        except _CREDENTIALS as error:
            raise StorageDenied(f"{where}: {_reason(error)}", SET_CREDENTIALS) from error
        except _BodyBrokeOff as error:
            raise StorageUnavailable(f"{where}: the body broke off {self._attempts} times: {error}") from error
        except TimeoutError as error:
            raise StorageUnavailable(f"{where}: not done after {self._call_timeout_s} s", CHECK_ENDPOINT) from error
        except _TRANSPORT as error:
            raise StorageUnavailable(f"{where}: {_reason(error)}", hint_for_transport(error)) from error
        except (BotoCoreError, ResponseParserError) as error:
            raise StorageDenied(f"{where}: {_reason(error)}", CHECK_ENDPOINT) from error
        except (GatewayError, _PastTheEnd):
            raise
        except Exception as error:
            # Where credentials come from, anything may be raised: RuntimeError for some that are stale after a refresh,
            # JSONDecodeError for garbage of a `credential_process` (`botocore/credentials.py`).
            raise StorageUnavailable(f"{where}: {type(error).__name__}: {_reason(error)}", CHECK_CREDENTIALS) from error

    def _refusal(self, operation: str, where: str, error: ClientError) -> StorageError:
        """Return our error for an answer that is an error."""
        code, status = _code(error), _status(error)
        said = error.response["Error"].get("Message") or "no reason given"
        message = f"{where}: {code} ({status}): {said}"
        # A list asks for no key: a server that misses one took a name in the endpoint for the bucket's.
        if code == "NoSuchKey" and operation != "list":
            return ObjectMissing(message)
        if code == "InvalidObjectState":
            return ObjectArchived(f"{where}: it is in an archive, such as Glacier, and cannot be read", BRING_BACK)
        if code in _DAMAGED_ON_THE_WAY or status in _LATER or (status >= 500 and status != _NOT_IMPLEMENTED):
            return StorageUnavailable(message)
        if code == "NoSuchBucket":
            endpoint = self._connected[0].meta.endpoint_url if self._connected else "the endpoint"
            message = f"{where}: bucket {self._bucket} does not exist at {endpoint}"
        # Also a 404 without NoSuchKey: it comes from another server, and must not look like an empty store.
        return StorageDenied(message, hint_for_refusal(operation, code, status, said))


class _Multipart:
    """A multipart upload under way. The caller that begins one completes or aborts it."""

    def __init__(
        self, where: dict[str, str], client: Any, call: Callable[[], contextlib.AbstractAsyncContextManager[None]]
    ) -> None:
        self.where, self._client, self._call = where, client, call
        self.parts: list[dict[str, Any]] = []

    async def add(self, data: bytes) -> None:
        """Send the next part. botocore may retry it: sending a part twice is the same as sending it once."""
        number = len(self.parts) + 1
        async with self._call():
            answer = await self._client.upload_part(
                **self.where, PartNumber=number, Body=data, ContentMD5=await _content_md5(data)
            )
        self.parts.append({"PartNumber": number, "ETag": answer["ETag"]})

    async def add_copy(self, origin: dict[str, str], tag: str, start: int, last: int) -> None:
        """Copy the next part from another object, which must still have `tag`."""
        number = len(self.parts) + 1
        async with self._call():
            answer = await self._client.upload_part_copy(
                **self.where,
                PartNumber=number,
                CopySource=origin,
                CopySourceIfMatch=f'"{tag}"',
                CopySourceRange=f"bytes={start}-{last}",
            )
        self.parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})


class _BodyBrokeOff(Exception):
    """The body of an answer ended before its promised length."""


class _PastTheEnd(Exception):
    """A range begins past the end of the object."""


class _Session(AIOHTTPSession):
    """Sends the body of a request without waiting for "100 Continue"."""

    async def send(self, request: Any) -> Any:
        # botocore asks for "100 Continue" first, and aiohttp waits for it without a time limit.
        request.headers.pop("Expect", None)
        return await super().send(request)


class _Once(_Session):
    """Sends every request once."""

    async def _get_session(self, proxy_url: str | None) -> aiohttp.ClientSession:
        session: aiohttp.ClientSession = await super()._get_session(proxy_url)  # type: ignore[misc]
        # aiohttp has no public option for this, and considers PUT a method that may be sent twice.
        session._retry_connection = False
        return session


def _status(error: BaseException) -> int:
    """Return the HTTP status of an answer that is an error, 0 for any other exception."""
    if not isinstance(error, ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _require_stored(answer: Any, where: str) -> None:
    """Raise StorageDenied unless a store answered: a proxy may answer with a page and "200 OK", and store nothing."""
    if not answer.get("ETag"):
        raise StorageDenied(f"{where}: the answer has no ETag, so it is not of an S3 server", CHECK_ENDPOINT)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _parameters(options: StoreOptions) -> dict[str, Any]:
    """Return parameters of botocore's operations, each of which takes some of them."""
    found: dict[str, Any] = {
        "ServerSideEncryption": options.encryption,
        "SSEKMSKeyId": options.kms_key_id,
        "ACL": options.acl,
        "StorageClass": options.storage_class,
        "RequestPayer": options.request_payer,
        "MaxKeys": options.page_keys,
    }
    if options.customer_key is not None:
        digest = hashlib.md5(options.customer_key, usedforsecurity=False).digest()
        for of in ("", "CopySource"):
            found[f"{of}SSECustomerAlgorithm"] = "AES256"
            found[f"{of}SSECustomerKey"] = base64.b64encode(options.customer_key).decode()
            found[f"{of}SSECustomerKeyMD5"] = base64.b64encode(digest).decode()
    return {name: value for name, value in found.items() if value is not None}


def _reason(error: BaseException) -> str:
    """Return the message of botocore or aiohttp on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _timestamp(value: Any) -> datetime:
    """Return what `botocore.utils.parse_timestamp` does, faster: lists have ISO 8601, and headers have RFC 5322."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        with contextlib.suppress(AttributeError, TypeError, ValueError):  # also of a number
            if (parsed := parse(value)).tzinfo:
                return parsed
    return parse_timestamp(value)


def _tag(etag: str) -> str:
    """Return an ETag without quotes: some servers quote it in headers and not in lists, or the other way round."""
    return etag.removeprefix("W/").strip('"')


async def _parts(pieces: AsyncIterator[bytes], size: int) -> AsyncIterator[tuple[bytes, bool]]:
    """Yield the same bytes in parts of exactly `size`, and whether each is the last; that may be shorter or empty."""
    held = bytearray()
    async for piece in pieces:
        held += piece
        while len(held) > size:
            yield bytes(held[:size]), False
            del held[:size]
    yield bytes(held), True


async def _content_md5(data: bytes) -> str:
    """Return the digest that every S3 server checks.

    With it botocore computes no SHA-256 of the body over TLS, which would block the event loop (`botocore/auth.py`,
    `_should_sha256_sign_payload`).
    """
    digest = await asyncio.to_thread(hashlib.md5, data, usedforsecurity=False)
    return base64.b64encode(digest.digest()).decode()


def _is_key(key: str) -> bool:
    """Return whether a gateway can have written it. Folder markers of S3 consoles, for example, are no keys."""
    try:
        check_key(key)
    except InvalidRequest:
        return False
    return True
