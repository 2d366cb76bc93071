"""What goes with snapshots that are deleted: the moments that cannot be restored without them."""

import math
from collections.abc import Awaitable, Callable, Collection

from gateway.errors import NotFound, SnapshotError
from gateway.journal.entry import Head, Kind
from gateway.journal.merge import read_heads
from gateway.journal.plan import not_covered
from gateway.journal.sequence import Listed, Sequence
from gateway.snapshot.model import Manifest
from gateway.snapshot.repository import Repository


async def drop_with(
    sequence: Sequence,
    repository: Repository,
    snapshot_ids: Collection[str],
    require_lease: Callable[[], Awaitable[object]],
) -> int:
    """Delete the entries that lead nowhere without these snapshots, before they are deleted. Return how many.

    So history lists no moment that cannot be restored. Seals and the newest entry stay: see `gateway.journal.sequence`.
    `require_lease` is called right before something is deleted; what it raises ends the deletion. Safe to retry. Raises
    StorageError.
    """
    entries: list[Listed] | None = None
    lost: dict[str, None] = {}
    ids = sorted([each async for each in repository.newest_first()])
    for snapshot_id in snapshot_ids:
        deleted = await _manifest(repository, snapshot_id)
        if deleted is None or deleted.journal is None or snapshot_id not in ids:
            continue
        if entries is None:
            entries = not_covered(await sequence.entries())[:-1]
        kept = [each for each in ids if each not in snapshot_ids]
        before = await _first_of_line(repository, [each for each in reversed(kept) if each < snapshot_id])
        after = await _first_of_line(repository, [each for each in kept if each > snapshot_id])
        last = math.inf if after is None or after.journal is None else after.journal
        between = [each for each in entries if deleted.journal < each.last <= last]
        keys = {each.last: each.key for each in between}
        for head in await read_heads(sequence, between):
            if head.kind is not Kind.SEAL and _needs(head, deleted, before):
                lost[keys[head.number]] = None
    if lost:
        await require_lease()
        await sequence.delete([*lost])
    return len(lost)


def _needs(head: Head, deleted: Manifest, before: Manifest | None) -> bool:
    """Whether an entry between `deleted` and the next snapshot cannot be written over another one just as well.

    `before`: the one before `deleted`, None if there is none.
    """
    assert deleted.journal is not None
    if head.run > deleted.journal:  # the run began later: it is written over the snapshot that it names
        return head.snapshot == deleted.snapshot.id
    if before is None or before.journal is None:
        return True
    is_of_run = head.run <= before.journal or head.snapshot == before.snapshot.id
    # The log in the database goes back to the indexes that were stored with `deleted`, and no further.
    return not is_of_run or any(
        before.positions.get(segment_id, 0) < position for segment_id, position in deleted.positions.items()
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
