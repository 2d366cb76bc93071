"""A store in memory whose answers can be lost and whose writes can come late."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import cast

from gateway.errors import ObjectMissing, StorageUnavailable
from gateway.storage import ObjectInfo, Storage


class MemoryStore:
    """With `chance`, a conditional write is answered with an error: it was done, is done later, or never."""

    url = "memory:///"

    def __init__(self, seed: int = 0, chance: float = 0.0) -> None:
        self.objects: dict[str, bytes] = {}
        self.random, self.chance = random.Random(seed), chance
        self.late: list[tuple[str, bytes]] = []
        self.hidden: set[str] = set()
        """Keys that the list does not show yet."""

    @property
    def storage(self) -> Storage:
        return cast(Storage, self)

    async def _pause(self) -> None:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        while self.late and self.random.random() < 0.3:
            key, data = self.late.pop(self.random.randrange(len(self.late)))
            self.objects.setdefault(key, data)
        if self.hidden and self.random.random() < 0.3:
            self.hidden.clear()

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        await self._pause()
        if self.random.random() < self.chance:
            fate = self.random.choice(("done", "late", "never"))
            if fate == "done":
                self.objects.setdefault(key, data)
            elif fate == "late":
                self.late.append((key, data))
            raise StorageUnavailable(f"no answer ({fate})")
        if key in self.objects:
            return False
        self.objects[key] = data
        if self.random.random() < self.chance:
            self.hidden.add(key)
        await self._pause()
        return True

    async def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        await self._pause()
        if key not in self.objects:
            raise ObjectMissing(f"{key} is missing")
        return self.objects[key][start : start + length]

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        await self._pause()
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > after and key not in self.hidden:
                yield ObjectInfo(key, len(self.objects[key]), datetime(2026, 1, 1, tzinfo=UTC))

    async def delete_all(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)
