"""Test whether a store honours conditional writes, by a race: one write after the other shows too little.

Some servers accept the conditions and ignore them (rclone). Some refuse one of them (OpenStack Swift: If-Match). Some
check first and write later, so that two racing writers both succeed (OpenStack Swift: If-None-Match).

Each race has an object of its own, which is deleted at its end. Where nothing may be deleted, all races of all starts
have one object, `probe/kept`, so that the store does not fill with them. Then only the first start sees a race to
create an object; later ones see that an existing object is not replaced, and the race to change it.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Iterable
from enum import Enum

import structlog

from gateway.errors import ObjectMissing, StorageDenied, StorageUnavailable
from gateway.storage import Storage

log = structlog.get_logger()

_FOLDER = "probe/"
_KEPT = f"{_FOLDER}kept"
_RACES = 2
_RACERS = 6
_ATTEMPTS = 5


class Conditions(Enum):
    """What a store does with conditional writes."""

    KEPT = "kept"
    REFUSED = "refused"
    BROKEN = "broken"


UNFENCED = frozenset({Conditions.REFUSED, Conditions.BROKEN})
"""On such a store nothing but the lease tells two gateways apart."""


async def probe(store: Storage, *, may_delete: bool = True) -> Conditions:
    """Let writers race for an object: first to create it, then to change it. Return the result.

    Leaves nothing behind, or one or two objects that later calls use again if it may not delete: by `may_delete`, or
    because the store denies it. Safe to retry. Raises StorageUnavailable, and StorageDenied where not even a plain
    write is allowed.
    """
    result = Conditions.KEPT
    races = failures = 0
    keeps = not may_delete or await _exists(store, _KEPT)
    while races < _RACES and result is Conditions.KEPT:
        key = _KEPT if keeps else f"{_FOLDER}{uuid.uuid4().hex}"
        try:
            result = await _race(store, key, is_shared=keeps)
            races += 1
        except StorageUnavailable:
            # A server may fail under a race (rclone does). Only another race tells whether it honours conditions.
            if (failures := failures + 1) == _ATTEMPTS:
                raise
        except StorageDenied as error:
            await store.put(key, b"whether a plain write is allowed")
            log.debug("the store refuses conditional writes", cause=str(error))
            result = Conditions.REFUSED
        finally:
            keeps = keeps or not await _delete(store, key)
    return result


async def _exists(store: Storage, key: str) -> bool:
    try:
        await store.get(key)
    except ObjectMissing:
        return False
    return True


async def _delete(store: Storage, key: str) -> bool:
    """Delete the object. Return whether that is allowed. If not, make `_KEPT` for later races, also of other starts."""
    try:
        await store.delete(key)
    except StorageDenied as error:
        if await _exists(store, key):
            log.warning(
                "the store denies deletion, so nothing is tidied up in it", cause=error.message, hint=error.hint
            )
            await store.put(_KEPT, b"races for this object are part of every start, since nothing can be deleted")
        return False
    return True


async def _race(store: Storage, key: str, *, is_shared: bool) -> Conditions:
    """Hold both races. `is_shared` says that the object may exist, and that other gateways may race for it now."""
    try:
        racers = _racers("first")
        won = await _run_all(store.put_if_absent(key, data) for data in racers)
        start = await store.get_versioned(key)
        if not _is_fair(racers, won, start.data, others=is_shared):
            return Conditions.BROKEN
        racers = _racers("second")
        won = await _run_all(store.put_if_match(key, data, start.version) for data in racers)
        data = await store.get(key)
    except ObjectMissing:
        return Conditions.BROKEN
    if not _is_fair(racers, won, data, others=is_shared and data != start.data):
        return Conditions.BROKEN
    if not any(won):
        raise StorageUnavailable(f"another gateway changed {store.url}{key} at the same time", "try again")
    # After the race, an old version and an existing object must both be refused.
    late = await store.put_if_match(key, b"late", start.version) or await store.put_if_absent(key, b"late")
    return Conditions.BROKEN if late else Conditions.KEPT


def _racers(race: str) -> list[bytes]:
    """What each of the writers writes."""
    return [f"{race} {number} {uuid.uuid4().hex}".encode() for number in range(_RACERS)]


async def _run_all(racing: Iterable[Awaitable[bool]]) -> list[bool]:
    """Return which racers won. Raises the error of a racer that does not know, unless two others won."""
    results = await asyncio.gather(*racing, return_exceptions=True)
    if results.count(True) < 2:
        for result in results:
            if isinstance(result, BaseException):
                raise result
    return [result is True for result in results]


def _is_fair(racers: list[bytes], won: list[bool], data: bytes, *, others: bool) -> bool:
    """Return whether one racer won and the object has its `data`. With `others`, it may be theirs too."""
    if others and data not in racers:
        return sum(won) <= 1
    return sum(won) == 1 and data == racers[won.index(True)]
