"""A store in memory that obeys a test and counts calls."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256

from gateway.errors import ObjectMissing, StorageUnavailable
from gateway.storage.protocol import ObjectInfo, Versioned


class MemoryStore:
    """Objects by key. While `unreachable` every call raises. A put waits for `may_put`, then raises `put_error`."""

    url = "memory://"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.unreachable = False
        self.put_error: Exception | None = None
        self.may_put = asyncio.Event()
        self.may_put.set()
        self.putting = self.most_putting = 0

    def _reach(self) -> None:
        if self.unreachable:
            raise StorageUnavailable("the store is down")

    async def put(self, key: str, data: bytes) -> None:
        self._reach()
        self.putting += 1
        self.most_putting = max(self.most_putting, self.putting)
        try:
            await self.may_put.wait()
            if self.put_error is not None:
                raise self.put_error
            self.puts.append(key)
            self.objects[key] = data
        finally:
            self.putting -= 1

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        if key in self.objects:
            return False
        await self.put(key, data)
        return True

    async def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        if key not in self.objects or sha256(self.objects[key]).hexdigest() != version:
            return False
        await self.put(key, data)
        return True

    async def get(self, key: str) -> bytes:
        self._reach()
        if key not in self.objects:
            raise ObjectMissing(f"{key} does not exist")
        return self.objects[key]

    async def get_versioned(self, key: str) -> Versioned:
        data = await self.get(key)
        return Versioned(data, sha256(data).hexdigest())

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return (await self.get(key))[start : start + length]

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        self._reach()
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > after:
                yield ObjectInfo(key, len(self.objects[key]), datetime.now(UTC))

    async def delete(self, key: str) -> None:
        self._reach()
        self.objects.pop(key, None)

    async def delete_all(self, keys: Sequence[str]) -> None:
        for key in keys:
            await self.delete(key)

    async def close(self) -> None:
        pass
