"""Stores round a store: each passes everything on to another one and changes one thing about it.

StorageWrapper        nothing: the base of the others
PrefixedStorage       keys are relative to a folder
InstrumentedStorage   requests, bytes and errors are counted
NoDeleteStorage       nothing is ever deleted
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from gateway.errors import StorageDenied
from gateway.storage.protocol import ObjectInfo, Storage, Versioned, check_key


class StorageWrapper:
    """Passes every call on to `store`. Closing it closes `store`.

    A subclass overrides methods, or `_key` and `_info` where only the names of objects differ.
    """

    def __init__(self, store: Storage) -> None:
        self._store = store

    @property
    def url(self) -> str:
        return self._store.url

    def _key(self, key: str) -> str:
        """The name that `store` has for `key`, or for the beginning of a key."""
        return key

    def _info(self, info: ObjectInfo) -> ObjectInfo:
        """What to tell of an object of which `store` tells `info`."""
        return info

    async def put(self, key: str, data: bytes) -> None:
        await self._store.put(self._key(key), data)

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        return await self._store.put_if_absent(self._key(key), data)

    async def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        return await self._store.put_if_match(self._key(key), data, version)

    async def get(self, key: str) -> bytes:
        return await self._store.get(self._key(key))

    async def get_versioned(self, key: str) -> Versioned:
        return await self._store.get_versioned(self._key(key))

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return await self._store.get_range(self._key(key), start, length)

    async def head(self, key: str) -> ObjectInfo:
        return self._info(await self._store.head(self._key(key)))

    def download(self, key: str, start: int = 0, length: int | None = None, *, tag: str) -> AsyncIterator[bytes]:
        return self._store.download(self._key(key), start, length, tag=tag)

    async def upload(
        self, key: str, pieces: AsyncIterator[bytes], *, if_absent: bool = False, if_tag: str | None = None
    ) -> ObjectInfo | None:
        stored = await self._store.upload(self._key(key), pieces, if_absent=if_absent, if_tag=if_tag)
        return stored and self._info(stored)

    async def copy(self, source: str, target: str, *, if_absent: bool = False) -> bool:
        return await self._store.copy(self._key(source), self._key(target), if_absent=if_absent)

    async def presign(self, key: str, expires_s: int, filename: str) -> str | None:
        return await self._store.presign(self._key(key), expires_s, filename)

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in self._store.list(self._key(prefix), after and self._key(after)):
            yield self._info(info)

    def folders(self, prefix: str) -> AsyncIterator[str]:
        return self._store.folders(self._key(prefix))

    async def delete(self, key: str) -> None:
        await self._store.delete(self._key(key))

    async def delete_all(self, keys: Sequence[str]) -> None:
        await self._store.delete_all([self._key(key) for key in keys])

    async def close(self) -> None:
        await self._store.close()


class PrefixedStorage(StorageWrapper):
    """The objects of `store` below the folder `prefix`, with keys relative to it.

    Keys are checked by `store`: what is no key is none with the prefix before it either.
    """

    def __init__(self, store: Storage, prefix: str) -> None:
        super().__init__(store)
        self._prefix = check_key(prefix.removesuffix("/")) + "/"

    @property
    def url(self) -> str:
        return self._store.url + self._prefix

    def _key(self, key: str) -> str:
        return self._prefix + key

    def _info(self, info: ObjectInfo) -> ObjectInfo:
        return replace(info, key=info.key.removeprefix(self._prefix))


class NoDeleteStorage(StorageWrapper):
    """For credentials that may write and not delete: `delete` raises StorageDenied and sends no request."""

    async def delete(self, key: str) -> None:
        raise StorageDenied(
            f"delete {self.url}{key}: GATEWAY_STORE_NEVER_DELETE is set, so nothing is ever deleted",
            "unset it, or delete with other credentials",
        )

    async def delete_all(self, keys: Sequence[str]) -> None:
        for key in keys:
            await self.delete(key)


class StorageCounters(Protocol):
    """What InstrumentedStorage counts with; `gateway.observability.metrics` has it."""

    def store_asked(self, operation: str, *, up_bytes: int = 0, down_bytes: int = 0) -> None:
        """Count one request for `operation`, which sent `up_bytes` and received `down_bytes`."""
        ...

    def store_refused(self, operation: str, error: str) -> None:
        """Count one request that failed with an `error` of that name."""
        ...


class InstrumentedStorage(StorageWrapper):
    """Counts each call once it has ended: the operation, the bytes each way, and the name of its error."""

    def __init__(self, store: Storage, counters: StorageCounters) -> None:
        super().__init__(store)
        self._counters = counters

    async def put(self, key: str, data: bytes) -> None:
        with self._counted("put", len(data)):
            await super().put(key, data)

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._counted("put_if_absent", len(data)):
            return await super().put_if_absent(key, data)

    async def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        with self._counted("put_if_match", len(data)):
            return await super().put_if_match(key, data, version)

    async def get(self, key: str) -> bytes:
        with self._counted("get") as moved:
            data = await super().get(key)
            moved.down_bytes = len(data)
        return data

    async def get_versioned(self, key: str) -> Versioned:
        with self._counted("get_versioned") as moved:
            found = await super().get_versioned(key)
            moved.down_bytes = len(found.data)
        return found

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        with self._counted("get_range") as moved:
            data = await super().get_range(key, start, length)
            moved.down_bytes = len(data)
        return data

    async def head(self, key: str) -> ObjectInfo:
        with self._counted("head"):
            return await super().head(key)

    async def download(self, key: str, start: int = 0, length: int | None = None, *, tag: str) -> AsyncIterator[bytes]:
        with self._counted("download") as moved:
            async for piece in super().download(key, start, length, tag=tag):
                moved.down_bytes += len(piece)
                yield piece

    async def upload(
        self, key: str, pieces: AsyncIterator[bytes], *, if_absent: bool = False, if_tag: str | None = None
    ) -> ObjectInfo | None:
        with self._counted("upload") as moved:

            async def counted() -> AsyncIterator[bytes]:
                async for piece in pieces:
                    moved.up_bytes += len(piece)
                    yield piece

            return await super().upload(key, counted(), if_absent=if_absent, if_tag=if_tag)

    async def copy(self, source: str, target: str, *, if_absent: bool = False) -> bool:
        with self._counted("copy"):
            return await super().copy(source, target, if_absent=if_absent)

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        with self._counted("list"):
            async for info in super().list(prefix, after):
                yield info

    async def folders(self, prefix: str) -> AsyncIterator[str]:
        with self._counted("folders"):
            async for name in super().folders(prefix):
                yield name

    async def delete(self, key: str) -> None:
        with self._counted("delete"):
            await super().delete(key)

    async def delete_all(self, keys: Sequence[str]) -> None:
        with self._counted("delete_all"):
            await super().delete_all(keys)

    @contextmanager
    def _counted(self, operation: str, up_bytes: int = 0) -> Iterator["_Moved"]:
        """Count the block as one `operation`: with what was moved if it ends well, else with its error."""
        moved = _Moved(up_bytes)
        try:
            yield moved
        except Exception as error:
            self._counters.store_asked(operation)
            self._counters.store_refused(operation, type(error).__name__)
            raise
        self._counters.store_asked(operation, up_bytes=moved.up_bytes, down_bytes=moved.down_bytes)


@dataclass(slots=True)
class _Moved:
    """How many bytes one call has sent and received."""

    up_bytes: int = 0
    down_bytes: int = 0
