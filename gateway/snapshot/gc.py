"""Garbage collection: delete snapshots that no rule keeps, then packs that no snapshot names.

It holds two lists: the packs in the store, and the packs that manifests name. What is named and not there is a finding:
the snapshots that need such a pack are broken, no rule counts them, and the next snapshot stores again what it needs.

A pack is deleted only if all of this holds:

- The committed manifests were listed after the packs were, and no manifest names the pack.
- No manifest that cannot be read may name it. A manifest that was read before cannot hide what it names, also not from
  another process: the store has summaries of manifests. While one was never read, no pack is deleted: it may name any
  of them. Ages do not tell, since a pack may have been stored again after the manifest.
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

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import structlog
from pydantic import BaseModel, Field

from gateway.lease.election import LeaderElection
from gateway.snapshot.manifests import AllRead
from gateway.snapshot.repository import Repository
from gateway.snapshot.retention import Candidate, Keep, RetentionPlan, plan_retention

log = structlog.get_logger()

_MAX_NAMED, _MAX_KEPT_NAMED = 100, 1000


class GcResult(BaseModel):
    """What a garbage collection did."""

    dropped_snapshots: list[str] = Field(description="ids of the snapshots that no rule keeps; they were deleted")
    kept_snapshots: dict[str, list[str]] = Field(
        description="ids of the other snapshots, newest first, at most a thousand, each with why",
        examples=[{"20261120T210455Z-3f9a1c": ["last", "daily"]}],
    )
    deleted_packs: int = Field(0, description="packs that no snapshot named; they were deleted")
    deleted_bytes: int = Field(0, description="size of the deleted packs")
    young_packs: int = Field(0, description="packs that no snapshot names and that are too young to be deleted")
    held_packs: int = Field(0, description="packs that stay because a manifest that cannot be read may name them")
    missing_packs: int = Field(0, description="packs that a snapshot needs and that are not in the store")
    broken_snapshots: list[str] = Field(
        default_factory=list, description="ids of the snapshots that need one of those; newest first, at most a hundred"
    )
    deleted_directories: int = Field(0, description="index directories of deleted collections; they were deleted")
    freed_bytes: int = Field(0, description="what those directories took on the disk")
    problem: str | None = Field(
        None, description="what kept garbage from being deleted, or is wrong with the store; null if nothing is"
    )


class _Pack(NamedTuple):
    """A pack in the store: what a collection needs of its object."""

    size_bytes: int
    modified_at: datetime


async def collect_garbage(
    repository: Repository,
    leader: LeaderElection,
    keep: Keep,
    grace_s: float,
    *,
    may_delete: bool = True,
    history_from: str | None = None,
    before_deletion: Callable[[Collection[str]], Awaitable[object]] | None = None,
) -> GcResult:
    """Delete what `keep` does not keep, then the packs that no snapshot names and that are older than `grace_s`.

    `history_from`: see `plan_retention`. `before_deletion` is called with the ids of the snapshots that
    no rule keeps.

    Only one may run at a time, and no snapshot meanwhile. Safe to retry. Raises LeaseLost, StorageError.
    """
    if may_delete:
        await leader.abort_announced()
        now = await repository.store_time()
    packs = {info.key: _Pack(info.size_bytes, info.modified_at) async for info in repository.pack_objects()}
    read = await repository.look_for_damage(packs)
    problems = repository.damage
    result = GcResult(
        dropped_snapshots=[],
        kept_snapshots={},
        missing_packs=len(repository.missing_packs),
        broken_snapshots=list(repository.broken)[:_MAX_NAMED],
        problem="; ".join(problems) or None,
    )
    if not may_delete:
        result.problem = "; ".join(["GATEWAY_STORE_NEVER_DELETE is set, so nothing is deleted", *problems])
        return result
    plan = await _apply_retention(repository, read, keep, history_from, before_deletion)
    result.dropped_snapshots = list(plan.dropped)
    result.kept_snapshots = {name: list(why) for name, why in itertools.islice(plan.kept.items(), _MAX_KEPT_NAMED)}
    await repository.delete_manifests(read.listing.aborted, read.listing.verified)
    named = await asyncio.to_thread(read.named, plan.dropped)
    garbage = {name: pack for name, pack in packs.items() if bytes.fromhex(name) not in named}
    held = garbage if read.unreadable.keys() - read.summaries.keys() else {}
    old = [
        name
        for name, pack in garbage.items()
        if name not in held and now - pack.modified_at.astimezone(UTC) >= timedelta(seconds=grace_s)
    ]
    await repository.delete_packs(old)
    await repository.save_summaries()
    result.deleted_packs, result.deleted_bytes = len(old), sum(packs[name].size_bytes for name in old)
    result.held_packs = len(held)
    result.young_packs = len(garbage) - len(old) - len(held)
    log.info(
        "garbage collected",
        dropped_snapshots=len(plan.dropped),
        deleted_packs=result.deleted_packs,
        deleted_bytes=result.deleted_bytes,
        young_packs=result.young_packs,
        held_packs=result.held_packs,
    )
    return result


async def _apply_retention(
    repository: Repository,
    read: AllRead,
    keep: Keep,
    history_from: str | None,
    before_deletion: Callable[[Collection[str]], Awaitable[object]] | None,
) -> RetentionPlan:
    """Delete the manifests of the snapshots that no rule keeps."""
    listing = read.listing
    failed = await repository.failed_verifications(listing)
    # A broken snapshot must not be kept by a rule in place of one that may be intact.
    unusable = failed.union(repository.broken, read.unreadable)
    candidates = [Candidate(each, *read.taken(each), each not in unusable) for each in listing.ids]
    plan = await asyncio.to_thread(plan_retention, candidates, keep, history_from)
    if plan.dropped and before_deletion is not None:
        await before_deletion(plan.dropped)
    await repository.delete_manifests(plan.dropped, listing.verified)
    for snapshot_id in plan.dropped:
        log.info("snapshot deleted, no rule keeps it", snapshot=snapshot_id)
    return plan
