"""A store that nothing is ever deleted from."""

from collections.abc import AsyncIterator

from gateway.errors import StoreDenied
from gateway.store.protocol import ObjectInfo, Store, Versioned


class Undeletable:
    """`store`, for credentials that may write and not delete: `delete` raises StoreDenied and asks nobody."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def url(self) -> str:
        return self._store.url

    async def put(self, key: str, data: bytes) -> None:
        await self._store.put(key, data)

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        return await self._store.put_if_absent(key, data)

    async def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        return await self._store.put_if_match(key, data, version)

    async def get(self, key: str) -> bytes:
        return await self._store.get(key)

    async def get_versioned(self, key: str) -> Versioned:
        return await self._store.get_versioned(key)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return await self._store.get_range(key, start, length)

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        return self._store.list(prefix)

    async def delete(self, key: str) -> None:
        raise StoreDenied(
            f"delete {self.url}{key}: GATEWAY_STORE_NEVER_DELETE is set, so nothing is ever deleted",
            "unset it, or delete with other credentials",
        )

    async def close(self) -> None:
        await self._store.close()
