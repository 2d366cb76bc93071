"""Fetch a snapshot whose indexes are sound, or are made so.

This gateway stores no torn index. An older one did, and an upload may bring one. The index is repaired where it was
fetched, before anything is swapped (`gateway.chroma.repair`), also from older snapshots.
"""

import asyncio
from pathlib import Path

from gateway.chroma.index_health import Copies, IndexHealth, no_copies
from gateway.chroma.repair import Way
from gateway.chroma.structure import IndexCheck
from gateway.errors import CorruptSnapshot
from gateway.snapshot.fetch import OnBytes, Replay, Staged, fetch_verified
from gateway.snapshot.index_copies import StoredCopies
from gateway.snapshot.model import Manifest
from gateway.snapshot.repository import Repository

_NAMED_IDS = 5


async def fetch_sound(
    repository: Repository,
    target: Path,
    manifest: Manifest,
    progress: OnBytes,
    scratch: Path,
    *,
    keep_log: bool = True,
    served_in: Path | None = None,
    may_lose: bool = False,
    replay: Replay | None = None,
) -> Staged:
    """As `fetch_verified`; then repair the indexes that are unsound. `scratch` takes older copies of them for a while.

    Records that have no vector in the snapshot stay as they are. Raises CorruptSnapshot, too, if an index cannot be
    repaired, or if records lose their vectors by it; not if they `may_lose` them.
    """
    staged = await fetch_verified(
        repository, target, manifest, progress, keep_log=keep_log, served_in=served_in, replay=replay
    )
    if staged.unsound:
        health, copies = IndexHealth(target, served_in), StoredCopies(repository, scratch, before=manifest.snapshot.id)
        if may_lose:
            await health.repair_unsound(copies.of)
        else:
            await repair_without_loss(health, copies.of)
    return staged


async def repair_without_loss(health: IndexHealth, copies: Copies = no_copies) -> None:
    """Repair the unsound indexes of a directory. Records that had no vector before stay as they are.

    Raises CorruptSnapshot, which names a collection and why, if that cannot be done or records lose their vectors.
    """
    for repair in await health.repair_unsound(copies):
        if repair.way is not Way.NONE and repair.lost_ids:
            raise CorruptSnapshot(
                f"the index of collection {repair.segment.name} is torn ({describe(repair.before)}), and"
                f" {len(repair.lost_ids)} record(s) have no vector anywhere else, among them"
                f" {', '.join(repair.lost_ids[:_NAMED_IDS])}"
            )
    for segment, check in await asyncio.to_thread(health.unsound):
        if not check.only_lacks_vectors:
            raise CorruptSnapshot(
                f"the index of collection {segment.name} is torn and cannot be repaired: {describe(check)}"
            )


def describe(check: IndexCheck) -> str:
    """What is wrong with an index, in one line."""
    return "; ".join(map(str, check.problems))
