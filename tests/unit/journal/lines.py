"""A line of entries in a store, with snapshots, as a gateway with a journal leaves it."""

from datetime import UTC, datetime, timedelta

from gateway.journal.entry import NO_PAGES, Entry, Head, Kind
from gateway.journal.replay import RestorePoint, find_point
from gateway.journal.sequence import Sequence, key_of
from gateway.snapshot.repository import Repository
from gateway.storage import Storage
from tests.unit.snapshot.manifests import SEGMENT, manifest

T0 = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
LAST, BASE, LATER = 40, 2, 25
"""The newest entry; the first cut; the number of the second snapshot. The first one is before the first cut."""


def at(number: float) -> datetime:
    return T0 + timedelta(seconds=number * 10)


async def fill(store: Storage) -> None:
    """A seal, and a cut each ten seconds, of one run, with two snapshots."""
    for number in range(1, LAST + 1):
        is_seal = number == 1
        head = Head(
            number=number,
            first=number,
            epoch=1,
            writer="w",
            kind=Kind.SEAL if is_seal else Kind.PAGES,
            at=at(number),
            previous="",
            run=0 if is_seal else BASE,
            cut=0 if is_seal else number,
            snapshot="" if is_seal else snapshot_id(BASE - 1),
        )
        await store.put(key_of(number), Entry.make(head, NO_PAGES, ()).data)
    await snapshot_at(store, BASE - 1)
    await snapshot_at(store, LATER)


def snapshot_id(number: int) -> str:
    return f"{at(number):%Y%m%dT%H%M%SZ}-000000"


async def snapshot_at(
    store: Storage, number: int, *, position: int = 2, journal: int | None = -1, clock: timedelta = timedelta(0)
) -> None:
    """`position`: of its index. `journal`: as in its manifest; by default, `number`. `clock`: how wrong it was."""
    found = manifest(snapshot_id(number))
    changes = {
        "snapshot": found.snapshot.model_copy(update={"created_at": at(number) + clock}),
        "journal": number if journal == -1 else journal,
        "positions": {SEGMENT: position},
    }
    data = found.model_copy(update=changes).to_bytes()
    await store.put(f"snapshots/{snapshot_id(number)}/manifest.json", data)


async def point(store: Storage, moment: datetime | None) -> RestorePoint:
    found = await find_point(Sequence(store), Repository(store), moment)
    assert found is not None
    return found
