"""Whether a store keeps what conditional writes promise: asked by racing, not only by trying.

Some servers take the conditions and ignore them (rclone), some refuse one of them (OpenStack Swift:
If-Match), some look first and write later, so that two racers both win (Swift: If-None-Match).
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
_ROUNDS = 2
_RACERS = 6
_TRIES = 5


class Conditions(Enum):
    """What a store makes of conditional writes."""

    KEPT = "kept"
    REFUSED = "refused"
    BROKEN = "broken"


async def probe(store: Storage, *, may_delete: bool = True) -> Conditions:
    """Let writers race for one object of their own, first for its creation, then for each change of it.

    Leaves nothing behind if it `may_delete`. Safe to retry. Raises StorageUnavailable, and StorageDenied where
    not even a plain write is allowed.
    """
    verdict = Conditions.KEPT
    rounds = tries = 0
    while rounds < _ROUNDS:
        key = f"{_FOLDER}{uuid.uuid4().hex}"
        try:
            verdict = await _race(store, key)
            rounds += 1
        except StorageUnavailable:
            # A server may stumble over a race (rclone does); what its answer was worth, only another one tells.
            if (tries := tries + 1) == _TRIES:
                raise
        except StorageDenied as error:
            await store.put(key, b"whether a plain write is allowed")
            log.debug("conditional writes are refused", cause=str(error))
            verdict = Conditions.REFUSED
        finally:
            if may_delete:
                await store.delete(key)
        if verdict is not Conditions.KEPT:
            break
    return verdict


async def _race(store: Storage, key: str) -> Conditions:
    racers = [f"racer {number} {uuid.uuid4().hex}".encode() for number in range(_RACERS)]
    won = await _all(store.put_if_absent(key, data) for data in racers)
    if not await _one_won(store, key, racers, won):
        return Conditions.BROKEN
    start = await store.get_versioned(key)
    racers = [f"second {number} {uuid.uuid4().hex}".encode() for number in range(_RACERS)]
    won = await _all(store.put_if_match(key, data, start.version) for data in racers)
    if not await _one_won(store, key, racers, won):
        return Conditions.BROKEN
    # Who comes late, and whoever finds nothing there, is refused without any race.
    late = await store.put_if_match(key, b"late", start.version) or await store.put_if_absent(key, b"late")
    return Conditions.BROKEN if late else Conditions.KEPT


async def _all(racing: Iterable[Awaitable[bool]]) -> list[bool]:
    """Who won. Raises StorageUnavailable if some racer does not know, unless two of the others won."""
    results = await asyncio.gather(*racing, return_exceptions=True)
    if results.count(True) < 2:
        for result in results:
            if isinstance(result, BaseException):
                raise result
    return [result is True for result in results]


async def _one_won(store: Storage, key: str, racers: list[bytes], won: list[bool]) -> bool:
    try:
        data = await store.get(key)
    except ObjectMissing:
        return False
    return sum(won) == 1 and data == racers[won.index(True)]
