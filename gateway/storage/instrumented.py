"""A store that is counted: how often it is asked, what it moves, and what it refuses."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Protocol

from gateway.storage.protocol import ObjectInfo, Storage, Versioned
from gateway.storage.wrapper import StorageWrapper


class Counts(Protocol):
    """Who counts; see `gateway.observability.metrics`."""

    def store_asked(self, operation: str, *, up_bytes: int = 0, down_bytes: int = 0) -> None: ...

    def store_refused(self, operation: str, error: str) -> None: ...


class InstrumentedStorage(StorageWrapper):
    """`store`, and nothing else, but counted."""

    def __init__(self, store: Storage, counts: Counts) -> None:
        super().__init__(store)
        self._counts = counts

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

    async def head(self, key: str) -> ObjectInfo:
        with self._counted("head", 0):
            return await self._store.head(key)

    async def download(self, key: str, start: int = 0, length: int | None = None, *, tag: str) -> AsyncIterator[bytes]:
        down_bytes = 0
        with self._counted("download"):
            async for piece in self._store.download(key, start, length, tag=tag):
                down_bytes += len(piece)
                yield piece
        self._counts.store_asked("download", down_bytes=down_bytes)

    async def upload(
        self, key: str, pieces: AsyncIterator[bytes], *, if_absent: bool = False, if_tag: str | None = None
    ) -> ObjectInfo | None:
        up_bytes = 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal up_bytes
            async for piece in pieces:
                up_bytes += len(piece)
                yield piece

        with self._counted("upload"):
            stored = await self._store.upload(key, counted(), if_absent=if_absent, if_tag=if_tag)
        self._counts.store_asked("upload", up_bytes=up_bytes)
        return stored

    async def copy(self, source: str, target: str, *, if_absent: bool = False) -> bool:
        with self._counted("copy", 0):
            return await self._store.copy(source, target, if_absent=if_absent)

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        with self._counted("list", 0):
            async for each in self._store.list(prefix, after):
                yield each

    async def folders(self, prefix: str) -> AsyncIterator[str]:
        with self._counted("folders", 0):
            async for each in self._store.folders(prefix):
                yield each

    async def delete(self, key: str) -> None:
        with self._counted("delete", 0):
            await self._store.delete(key)

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
