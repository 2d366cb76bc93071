"""What goes with a snapshot that is deleted: the moments that cannot be restored without it."""

import math

from gateway.errors import NotFound, SnapshotError
from gateway.journal.entry import Kind
from gateway.journal.plan import not_covered
from gateway.journal.sequence import Sequence
from gateway.snapshot.model import Manifest
from gateway.snapshot.repository import Repository


async def drop_with(sequence: Sequence, repository: Repository, snapshot_id: str) -> int:
    """Delete the entries that lead nowhere without the snapshot, before it is deleted. Return how many.

    These are the ones up to the next snapshot, unless the one before it leads there too. So history lists no moment
    that cannot be restored. Seals and the newest entry stay: see `gateway.journal.sequence`. Safe to retry. Raises
    StorageError.
    """
    ids = sorted([each async for each in repository.newest_first()])
    deleted = await _manifest(repository, snapshot_id)
    if deleted is None or deleted.journal is None or snapshot_id not in ids:
        return 0
    at = ids.index(snapshot_id)
    before = await _first_of_line(repository, ids[:at][::-1])
    after = await _first_of_line(repository, ids[at + 1 :])
    last = math.inf if after is None or after.journal is None else after.journal
    entries = not_covered(await sequence.entries(deleted.journal))
    lost = [each for each in entries[:-1] if each.last <= last]
    if not lost or (before is not None and await _leads_on(sequence, before, deleted, lost[-1].key)):
        return 0
    heads = {each.key: await sequence.head(each.key) for each in lost if not each.is_merged}
    keys = [each.key for each in lost if each.is_merged or heads[each.key].kind is not Kind.SEAL]
    await sequence.delete(keys)
    return len(keys)


async def _leads_on(sequence: Sequence, before: Manifest, deleted: Manifest, key: str) -> bool:
    """Whether the entries after `deleted`, of which `key` is the last, can be written over `before` just as well."""
    assert before.journal is not None
    assert deleted.journal is not None
    head = await sequence.head(key)
    is_of_run = head.run <= deleted.journal and (head.run <= before.journal or head.snapshot == before.snapshot.id)
    # The log in the database goes back to the indexes that were stored with `deleted`, and no further.
    return is_of_run and all(
        before.positions.get(segment_id, 0) >= position for segment_id, position in deleted.positions.items()
    )


async def _first_of_line(repository: Repository, ids: list[str]) -> Manifest | None:
    """The first of these snapshots that is of the journal's line."""
    for snapshot_id in ids:
        manifest = await _manifest(repository, snapshot_id)
        if manifest is not None and manifest.journal is not None:
            return manifest
    return None


async def _manifest(repository: Repository, snapshot_id: str) -> Manifest | None:
    try:
        return await repository.manifest(snapshot_id)
    except (NotFound, SnapshotError):
        return None
