"""A store in memory whose answers can be lost, whose writes can come late, and whose conditions can be worthless."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import cast

from gateway.errors import ObjectMissing, StorageDenied, StorageUnavailable
from gateway.lease.probe import Conditions
from gateway.storage import ObjectInfo, Storage


class MemoryStore:
    """With `chance`, a conditional write is answered with an error: it was done, is done later, or never.

    While a write is still to come, another one of the same key may be answered with 409, as by S3.
    """

    url = "memory:///"

    def __init__(self, seed: int = 0, chance: float = 0.0, conditions: Conditions = Conditions.KEPT) -> None:
        self.objects: dict[str, bytes] = {}
        self.random, self.chance, self.conditions = random.Random(seed), chance, conditions
        self.late: list[tuple[str, bytes]] = []
        self.conflicts = Counter[str]()
        """How writes that made others be answered with 409 ended: by "nobody", "own" or "another" is the object."""
        self.hidden: set[str] = set()
        """Keys that the list does not show yet."""

    @property
    def storage(self) -> Storage:
        return cast(Storage, self)

    async def _pause(self) -> None:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        while self.late and self.random.random() < 0.3:
            self.arrive(self.random.randrange(len(self.late)))
        if self.hidden and self.random.random() < 0.3:
            self.hidden.clear()

    def arrive(self, index: int) -> None:
        """A write that is still to come arrives."""
        key, data = self.late.pop(index)
        if self.conditions is Conditions.KEPT:
            self.objects.setdefault(key, data)
        else:
            self.objects[key] = data

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        if self.conditions is Conditions.REFUSED:
            raise StorageDenied("conditions are not implemented")
        await self._pause()
        for _ in range(self.random.randrange(1, 4)):  # as often as `S3Storage` tries again
            if not self._conflicts(key, data):
                break
            await self._pause()
        else:
            raise StorageUnavailable("409 ConditionalRequestConflict")
        if self.random.random() < self.chance:
            self._lose_answer(key, data)
        if key in self.objects and self.conditions is Conditions.KEPT:
            return False
        self.objects[key] = data
        if self.random.random() < self.chance:
            self.hidden.add(key)
        await self._pause()
        return True

    def _lose_answer(self, key: str, data: bytes) -> None:
        fate = self.random.choice(("done", "late", "never"))
        if fate != "never":
            self.late.append((key, data))
        if fate == "done":
            self.arrive(len(self.late) - 1)
        raise StorageUnavailable(f"no answer ({fate})")

    def _conflicts(self, key: str, data: bytes) -> bool:
        """Whether another write of this key is still to come, and makes this one be answered with 409."""
        index = next((index for index, (other, _) in enumerate(self.late) if other == key), None)
        if index is None or self.random.random() < 0.3:
            return False
        ends = self.random.choice(("stored", "later", "never"))
        if ends == "stored" and key not in self.objects:
            self.conflicts["own" if self.late[index][1] == data else "another"] += 1
        elif ends == "never":
            self.conflicts["nobody"] += 1
        if ends == "stored":
            self.arrive(index)
        elif ends == "never":
            self.late.pop(index)
        return True

    async def put(self, key: str, data: bytes) -> None:
        await self._pause()
        if self.random.random() < self.chance:
            self._lose_answer(key, data)
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
