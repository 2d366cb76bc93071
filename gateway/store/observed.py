"""A store that is counted: how often it is asked, what it moves, and what it refuses."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Protocol

from gateway.store.protocol import ObjectInfo, Store, Versioned


class Counts(Protocol):
    """Who counts; see `gateway.observe.metrics`."""

    def store_asked(self, operation: str, *, up_bytes: int = 0, down_bytes: int = 0) -> None: ...

    def store_refused(self, operation: str, error: str) -> None: ...


class Observed:
    """`store`, and nothing else, but counted."""

    def __init__(self, store: Store, counts: Counts) -> None:
        self._store, self._counts = store, counts

    @property
    def url(self) -> str:
        return self._store.url

    async def put(self, key: str, data: bytes) -> None:
        with self._counted("put", len(data)):
            await self._store.put(key, data)

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._counted("put_if_absent", len(data)):
            return await self._store.put_if_absent(key, data)

    async def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        with self._counted("put_if_match", len(data)):
            return await self._store.put_if_match(key, data, version)

    async def get(self, key: str) -> bytes:
        with self._counted("get"):
            data = await self._store.get(key)
        self._counts.store_asked("get", down_bytes=len(data))
        return data

    async def get_versioned(self, key: str) -> Versioned:
        with self._counted("get_versioned"):
            found = await self._store.get_versioned(key)
        self._counts.store_asked("get_versioned", down_bytes=len(found.data))
        return found

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        with self._counted("get_range"):
            data = await self._store.get_range(key, start, length)
        self._counts.store_asked("get_range", down_bytes=len(data))
        return data

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        with self._counted("list", 0):
            async for each in self._store.list(prefix):
                yield each

    async def delete(self, key: str) -> None:
        with self._counted("delete", 0):
            await self._store.delete(key)

    async def close(self) -> None:
        await self._store.close()

    @contextmanager
    def _counted(self, operation: str, up_bytes: int | None = None) -> Iterator[None]:
        """Count the errors of the block; with `up_bytes`, count it as asked when it went well."""
        try:
            yield
        except Exception as error:
            self._counts.store_asked(operation)
            self._counts.store_refused(operation, type(error).__name__)
            raise
        if up_bytes is not None:
            self._counts.store_asked(operation, up_bytes=up_bytes)
