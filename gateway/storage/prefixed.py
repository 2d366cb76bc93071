"""One folder of a store, as a store."""

from collections.abc import AsyncIterator
from dataclasses import replace

from gateway.storage.protocol import ObjectInfo, Storage, Versioned, check_key


class PrefixedStorage:
    """The objects of `store` below `prefix`, by their keys relative to it. Closing it closes `store`.

    What cannot be a key is no key with the prefix before it either, so `store` refuses it.
    """

    def __init__(self, store: Storage, prefix: str) -> None:
        self._store = store
        self._prefix = check_key(prefix.removesuffix("/")) + "/"

    @property
    def url(self) -> str:
        return self._store.url + self._prefix

    async def put(self, key: str, data: bytes) -> None:
        await self._store.put(self._prefix + key, data)

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        return await self._store.put_if_absent(self._prefix + key, data)

    async def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        return await self._store.put_if_match(self._prefix + key, data, version)

    async def get(self, key: str) -> bytes:
        return await self._store.get(self._prefix + key)

    async def get_versioned(self, key: str) -> Versioned:
        return await self._store.get_versioned(self._prefix + key)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return await self._store.get_range(self._prefix + key, start, length)

    async def head(self, key: str) -> ObjectInfo:
        return self._mine(await self._store.head(self._prefix + key))

    def download(self, key: str, start: int = 0, length: int | None = None, *, tag: str) -> AsyncIterator[bytes]:
        return self._store.download(self._prefix + key, start, length, tag=tag)

    async def upload(
        self, key: str, pieces: AsyncIterator[bytes], *, if_absent: bool = False, if_tag: str | None = None
    ) -> ObjectInfo | None:
        stored = await self._store.upload(self._prefix + key, pieces, if_absent=if_absent, if_tag=if_tag)
        return stored and self._mine(stored)

    async def copy(self, source: str, target: str, *, if_absent: bool = False) -> bool:
        return await self._store.copy(self._prefix + source, self._prefix + target, if_absent=if_absent)

    async def presign(self, key: str, expires_s: int, filename: str) -> str | None:
        return await self._store.presign(self._prefix + key, expires_s, filename)

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in self._store.list(self._prefix + prefix, self._prefix + after if after else ""):
            yield self._mine(info)

    def folders(self, prefix: str) -> AsyncIterator[str]:
        return self._store.folders(self._prefix + prefix)

    def _mine(self, info: ObjectInfo) -> ObjectInfo:
        return replace(info, key=info.key.removeprefix(self._prefix))

    async def delete(self, key: str) -> None:
        await self._store.delete(self._prefix + key)

    async def close(self) -> None:
        await self._store.close()
