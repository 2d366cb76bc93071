"""Garbage collection: delete snapshots that no rule keeps, then packs that no snapshot names.

A pack is deleted only if all of this holds:

- Every committed manifest was read after the packs were listed, and none of them names the pack.
- The pack is older than the grace age, by the store's own clock. The clock is read from an object that is written
  before the packs are listed.
- The pack is marked pending delete in the lease. Only the holder can do that (`gateway.lease.state`).

**Within one process** no snapshot is taken meanwhile: both are operations, and one operation runs at a time.

**Across processes** the lease decides. Once the lease is ours, no former holder can publish, so no snapshot can begin
to name a pack that we found unnamed. Once the lease is lost, we can mark no more packs. Packs that we marked before may
still be deleted; the next holder knows their names, treats them as absent and never reuses the names.

The grace age protects where conditional writes do not hold. There it keeps the packs that another gateway has just
written for a snapshot that is not published yet.

If the collection is killed, a later one deletes the rest. Names that stay marked cost nothing. Deletions are
idempotent, a manifest goes before its packs, and nothing else is written.
"""

from datetime import UTC, timedelta

import structlog
from pydantic import BaseModel, Field

from gateway.errors import NotFound, SnapshotError
from gateway.lease.election import LeaderElection
from gateway.snapshot.model import Snapshot
from gateway.snapshot.repository import Repository
from gateway.snapshot.retention import Candidate, Keep, RetentionPlan, plan_retention

log = structlog.get_logger()


class GcResult(BaseModel):
    """What a garbage collection did."""

    dropped_snapshots: list[str] = Field(description="ids of the snapshots that no rule keeps; they were deleted")
    kept_snapshots: dict[str, list[str]] = Field(description="ids of the other snapshots, newest first, each with why")
    deleted_packs: int = Field(0, description="packs that no snapshot named; they were deleted")
    deleted_bytes: int = Field(0, description="size of the deleted packs")
    young_packs: int = Field(0, description="packs that no snapshot names and that are too young to be deleted")
    deleted_directories: int = Field(0, description="index directories of deleted collections; they were deleted")
    freed_bytes: int = Field(0, description="what those directories took on the disk")
    problem: str | None = Field(None, description="why no pack was deleted; null if nothing prevented it")


async def collect_garbage(
    repository: Repository, leader: LeaderElection, keep: Keep, grace_s: float, *, may_delete: bool = True
) -> GcResult:
    """Delete what `keep` does not keep, then the packs that no snapshot names and that are older than `grace_s`.

    Only one may run at a time, and no snapshot meanwhile. Safe to retry. Raises LeaseLost, StorageError.
    """
    if not may_delete:
        return GcResult(
            dropped_snapshots=[], kept_snapshots={}, problem="GATEWAY_STORE_NEVER_DELETE is set, so nothing is deleted"
        )
    await leader.abort_announced()
    plan = await _apply_retention(repository, keep)
    result = GcResult(
        dropped_snapshots=list(plan.dropped), kept_snapshots={name: list(why) for name, why in plan.kept.items()}
    )
    now = await repository.store_time()
    packs = [info async for info in repository.pack_objects()]
    try:
        referenced = await _referenced_packs(repository)
    except SnapshotError as error:
        result.problem = f"a snapshot cannot be read, so it is not known which packs it needs: {error.message}"
        log.warning("no pack is deleted", cause=result.problem)
        return result
    for snapshot_id in await repository.aborted_ids():
        await repository.delete_manifest(snapshot_id)
    garbage = [info for info in packs if info.key not in referenced]
    old = [info for info in garbage if now - info.modified_at.astimezone(UTC) >= timedelta(seconds=grace_s)]
    await repository.delete_packs([info.key for info in old])
    result.deleted_packs, result.deleted_bytes = len(old), sum(info.size_bytes for info in old)
    result.young_packs = len(garbage) - len(old)
    log.info(
        "garbage collected",
        dropped_snapshots=len(plan.dropped),
        deleted_packs=result.deleted_packs,
        deleted_bytes=result.deleted_bytes,
        young_packs=result.young_packs,
    )
    return result


async def _apply_retention(repository: Repository, keep: Keep) -> RetentionPlan:
    """Delete the manifests of the snapshots that no rule keeps."""
    snapshots = await repository.snapshots()
    plan = plan_retention(
        (Candidate(each.id, each.created_at, each.label, _is_usable(each)) for each in snapshots), keep
    )
    for snapshot_id in plan.dropped:
        await repository.delete_manifest(snapshot_id)
        log.info("snapshot deleted, no rule keeps it", snapshot=snapshot_id)
    return plan


def _is_usable(snapshot: Snapshot) -> bool:
    """A snapshot that failed its verification must not be kept by a rule in place of one that may be intact."""
    return snapshot.state == "complete" and (snapshot.verified is None or snapshot.verified.ok)


async def _referenced_packs(repository: Repository) -> set[str]:
    """Return every pack that a committed snapshot names. Raises SnapshotError if a manifest cannot be read."""
    referenced: set[str] = set()
    for snapshot_id in await repository.ids():
        try:
            manifest = await repository.manifest(snapshot_id)
        except NotFound:
            continue  # It was deleted after the list was made, so it names nothing.
        referenced.update(pack.sha256 for pack in manifest.packs)
    return referenced
