"""Throw away what is kept no longer: snapshots that no rule keeps, then packs that no snapshot names.

A pack is deleted only if all of this holds:

- every manifest that counts was read, after the packs were listed, and none of them names it;
- it is older than the grace age by the store's own clock, which the time of an object written at the
  beginning tells;
- it was condemned in the lease, which only its present holder can do (`gateway.lease.state`).

**Within one process** no snapshot runs meanwhile: both are operations, and there is one at a time.
**Across processes** the lease decides. Before it is ours, whoever held it cannot publish any more, so no
snapshot can come to name what we found unnamed. After it is not ours, we cannot condemn any more; and
what we condemned before, whose deletion may still be on its way, the next holder knows by name, does
not take for being there, and does not make again. The grace age is for stores where conditional writes
do not hold: there a pack that another gateway's snapshot under way has just written stays.

Killed at any point it leaves what some later collection deletes, and names condemned, which costs nothing:
deletions are idempotent, manifests go before their packs, and nothing else is written.
"""

from datetime import UTC, timedelta
from typing import Protocol

import structlog
from pydantic import BaseModel, Field

from gateway.errors import NotFound, SnapshotError
from gateway.snapshot.model import Snapshot
from gateway.snapshot.repository import Repository
from gateway.snapshot.retention import Candidate, Keep, plan_retention

log = structlog.get_logger()


class GcResult(BaseModel):
    """What a collection did."""

    dropped_snapshots: list[str] = Field(description="ids of snapshots that no rule keeps any more, and are gone")
    kept_snapshots: dict[str, list[str]] = Field(description="ids of those that stay, newest first, and why")
    deleted_packs: int = Field(0, description="packs that no snapshot named, and are gone")
    deleted_bytes: int = Field(0, description="size of those")
    young_packs: int = Field(0, description="packs that no snapshot names, and are too young to go")
    problem: str | None = Field(None, description="why no pack was deleted, where something stood against it")


class Settling(Protocol):
    """The part of the lease's keeper that a collection needs."""

    async def settle(self) -> None:
        """Make void what was announced and is not known to be published. Raises LeaseLost."""
        ...


async def collect_garbage(
    repository: Repository, fence: Settling, keep: Keep, grace_s: float, *, may_delete: bool = True
) -> GcResult:
    """Apply `keep`, then delete packs that nothing names. Only one may run at a time, and no snapshot beside it.

    Safe to retry. Raises LeaseLost, StorageError.
    """
    if not may_delete:
        return GcResult(
            dropped_snapshots=[], kept_snapshots={}, problem="GATEWAY_STORE_NEVER_DELETE is set, so nothing is deleted"
        )
    await fence.settle()
    snapshots = await repository.snapshots()
    plan = plan_retention((Candidate(each.id, each.created_at, each.label, _is_good(each)) for each in snapshots), keep)
    for snapshot_id in plan.dropped:
        await repository.drop(snapshot_id)
        log.info("snapshot dropped, no rule keeps it", snapshot=snapshot_id)
    collected = GcResult(
        dropped_snapshots=list(plan.dropped), kept_snapshots={name: list(why) for name, why in plan.kept.items()}
    )
    now = await repository.tell_time()
    packs = [info async for info in repository.pack_objects()]
    try:
        named = await _named(repository)
    except SnapshotError as error:
        collected.problem = f"a snapshot cannot be read, so it cannot be said which packs it needs: {error.message}"
        log.warning("no pack is deleted", cause=collected.problem)
        return collected
    for snapshot_id in await repository.unpublished():
        await repository.drop(snapshot_id)
    unnamed = [info for info in packs if info.key not in named]
    doomed = [info for info in unnamed if now - info.modified_at.astimezone(UTC) >= timedelta(seconds=grace_s)]
    await repository.delete_packs([info.key for info in doomed])
    collected.deleted_packs, collected.deleted_bytes = len(doomed), sum(info.size_bytes for info in doomed)
    collected.young_packs = len(unnamed) - len(doomed)
    log.info(
        "garbage collected",
        dropped_snapshots=len(plan.dropped),
        deleted_packs=collected.deleted_packs,
        deleted_bytes=collected.deleted_bytes,
        young_packs=collected.young_packs,
    )
    return collected


def _is_good(snapshot: Snapshot) -> bool:
    """One that failed its verification is not what a rule should keep in the place of one that may be whole."""
    return snapshot.state == "complete" and (snapshot.verified is None or snapshot.verified.ok)


async def _named(repository: Repository) -> set[str]:
    """Every pack that a snapshot which counts needs. Raises SnapshotError if one of them cannot be read."""
    named: set[str] = set()
    for snapshot_id in await repository.ids():
        try:
            manifest = await repository.manifest(snapshot_id)
        except NotFound:
            continue  # deleted meanwhile, so it names nothing
        named.update(pack.sha256 for pack in manifest.packs)
    return named
