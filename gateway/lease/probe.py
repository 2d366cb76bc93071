"""Test whether a store honours conditional writes, by a race: one write after the other shows too little.

Some servers accept the conditions and ignore them (rclone). Some refuse one of them (OpenStack Swift: If-Match). Some
check first and write later, so that two racing writers both succeed (OpenStack Swift: If-None-Match).
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
_RACES = 2
_RACERS = 6
_ATTEMPTS = 5


class Conditions(Enum):
    """What a store does with conditional writes."""

    KEPT = "kept"
    REFUSED = "refused"
    BROKEN = "broken"


async def probe(store: Storage, *, may_delete: bool = True) -> Conditions:
    """Let writers race for an object of their own: first to create it, then to change it. Return the result.

    Leaves nothing behind if it `may_delete`. Safe to retry. Raises StorageUnavailable, and StorageDenied where
    not even a plain write is allowed.
    """
    result = Conditions.KEPT
    races = failures = 0
    while races < _RACES and result is Conditions.KEPT:
        key = f"{_FOLDER}{uuid.uuid4().hex}"
        try:
            result = await _race(store, key)
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
            if may_delete:
                await store.delete(key)
    return result


async def _race(store: Storage, key: str) -> Conditions:
    racers = [f"racer {number} {uuid.uuid4().hex}".encode() for number in range(_RACERS)]
    won = await _run_all(store.put_if_absent(key, data) for data in racers)
    if not await _exactly_one_won(store, key, racers, won):
        return Conditions.BROKEN
    start = await store.get_versioned(key)
    racers = [f"second {number} {uuid.uuid4().hex}".encode() for number in range(_RACERS)]
    won = await _run_all(store.put_if_match(key, data, start.version) for data in racers)
    if not await _exactly_one_won(store, key, racers, won):
        return Conditions.BROKEN
    # After the race, an old version and an existing object must both be refused.
    late = await store.put_if_match(key, b"late", start.version) or await store.put_if_absent(key, b"late")
    return Conditions.BROKEN if late else Conditions.KEPT


async def _run_all(racing: Iterable[Awaitable[bool]]) -> list[bool]:
    """Return which racers won. Raises the error of a racer that does not know, unless two others won."""
    results = await asyncio.gather(*racing, return_exceptions=True)
    if results.count(True) < 2:
        for result in results:
            if isinstance(result, BaseException):
                raise result
    return [result is True for result in results]


async def _exactly_one_won(store: Storage, key: str, racers: list[bytes], won: list[bool]) -> bool:
    try:
        data = await store.get(key)
    except ObjectMissing:
        return False
    return sum(won) == 1 and data == racers[won.index(True)]
