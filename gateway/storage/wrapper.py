"""A store that passes everything on to another one: what stores that add something to it are made from."""

from collections.abc import AsyncIterator

from gateway.storage.protocol import ObjectInfo, Storage, Versioned


class StorageWrapper:
    """`store`, and nothing else."""

    def __init__(self, store: Storage) -> None:
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

    async def head(self, key: str) -> ObjectInfo:
        return await self._store.head(key)

    def download(self, key: str, start: int = 0, length: int | None = None, *, tag: str) -> AsyncIterator[bytes]:
        return self._store.download(key, start, length, tag=tag)

    async def upload(
        self, key: str, pieces: AsyncIterator[bytes], *, if_absent: bool = False, if_tag: str | None = None
    ) -> ObjectInfo | None:
        return await self._store.upload(key, pieces, if_absent=if_absent, if_tag=if_tag)

    async def copy(self, source: str, target: str, *, if_absent: bool = False) -> bool:
        return await self._store.copy(source, target, if_absent=if_absent)

    async def presign(self, key: str, expires_s: int, filename: str) -> str | None:
        return await self._store.presign(key, expires_s, filename)

    def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        return self._store.list(prefix, after)

    def folders(self, prefix: str) -> AsyncIterator[str]:
        return self._store.folders(prefix)

    async def delete(self, key: str) -> None:
        await self._store.delete(key)

    async def close(self) -> None:
        await self._store.close()
