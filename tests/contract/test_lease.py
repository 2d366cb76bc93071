"""The lease and the probe on real stores: one gateway holds the lease, and one that lost it cannot publish."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.errors import LeaseLost, StorageDenied, StorageUnavailable
from gateway.lease.lease import Lease, read_lease_state
from gateway.lease.probe import Conditions, probe
from gateway.lease.state import LEASE
from gateway.storage import FileStorage, Storage
from gateway.storage.s3 import S3Storage
from tests import servers
from tests.contract.conftest import BUCKET
from tests.store_faults import FaultProxy, Rule

pytestmark = pytest.mark.asyncio(loop_scope="session")
ID, OTHER = "20261120T210455Z-3f9a1c", "20261120T210456Z-000000"


def lease(store: Storage, home: str = "", **kwargs: float) -> Lease:
    options = {"takeover_timeout_s": 30.0} | kwargs
    return Lease(store, home or uuid.uuid4().hex, "a test", conditional=True, **options)


# ---------------------------------------------------------------------- the probe


async def test_probe_recognises_a_store_that_honours_conditions(atomic_store: Storage) -> None:
    """file://, ministack and moto do. The probe leaves nothing behind."""
    assert await probe(atomic_store) is Conditions.KEPT
    assert [info.key async for info in atomic_store.list("")] == []


async def test_probe_recognises_a_store_that_ignores_conditions(
    rclone: servers.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rclone accepts the headers and writes all the same, also on an object that is kept and not created again."""
    for name, value in rclone.env.items():
        monkeypatch.setenv(name, value)
    store = S3Storage(BUCKET, uuid.uuid4().hex)
    try:
        for may_delete in (True, False, False):
            assert await probe(store, may_delete=may_delete) is Conditions.BROKEN
    finally:
        await store.close()


class ChecksFirst(FileStorage):
    """Checks, and writes later. Right for a single writer, as Swift's If-None-Match is."""

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        if [info async for info in self.list(key)]:
            return False
        await asyncio.sleep(0.02)
        await self.put(key, data)
        return True


async def test_probe_recognises_a_store_that_checks_first_and_writes_later(tmp_path: Path) -> None:
    """Only a race shows it: one write after the other, its conditions hold."""
    store = ChecksFirst(tmp_path)
    assert await store.put_if_absent("alone", b"1")
    assert not await store.put_if_absent("alone", b"2")
    assert await probe(store) is Conditions.BROKEN


class Undeletable(FileStorage):
    """Its credentials may write and not delete."""

    async def delete(self, key: str) -> None:
        raise StorageDenied(f"delete {key}: AccessDenied", "set GATEWAY_STORE_NEVER_DELETE=true")


@pytest.mark.parametrize("may_delete", [True, False])
async def test_probe_does_not_fill_a_store_that_it_may_not_delete_from(tmp_path: Path, may_delete: bool) -> None:
    """The result is right, and however often a gateway starts, no more than two small objects stay."""
    store, left = Undeletable(tmp_path), []
    for _ in range(4):
        assert await probe(store, may_delete=may_delete) is Conditions.KEPT
        left.append([info.key async for info in store.list("")])
    assert len(left[0]) == 1 + may_delete
    assert left == [left[0]] * 4


async def test_probes_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Gateways that start together, where all have one object for their races."""
    store = Undeletable(tmp_path)
    results = await asyncio.gather(*(probe(store, may_delete=False) for _ in range(3)))
    assert results == [Conditions.KEPT] * 3


class NeverMatches(FileStorage):
    """Answers every conditional change as if another writer had been faster."""

    async def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        return False


@pytest.mark.parametrize("may_delete", [True, False])
async def test_probe_recognises_a_store_that_refuses_every_change(tmp_path: Path, may_delete: bool) -> None:
    """It is not taken for one on which another gateway is faster each time."""
    for _ in range(2):
        assert await probe(NeverMatches(tmp_path), may_delete=may_delete) is Conditions.BROKEN


# ---------------------------------------------------------------------- taking it


async def test_of_many_gateways_that_start_at_once_one_holds_the_lease(atomic_store: Storage) -> None:
    """Each epoch is used once. The last gateway holds the lease, and no other can publish.

    One that is succeeded before it saw that it had the lease takes it again: then there are more epochs than gateways.
    """
    leases = [lease(atomic_store, "one home") for _ in range(5)]
    await asyncio.gather(*(each.take() for each in leases))
    lease_state = await read_lease_state(atomic_store)
    assert lease_state is not None
    assert lease_state.epoch >= 5
    holders = [each for each in leases if each.holder == lease_state.holder]
    assert len(holders) == 1
    for each in leases:
        if each in holders:
            async with each.publishing(ID):
                pass
        else:
            with pytest.raises(LeaseLost):
                async with each.publishing(OTHER):
                    pytest.fail("it may not get so far")


async def test_holder_hands_the_lease_over_when_asked(conditional_store: Storage) -> None:
    """The new gateway waits, the old one sees that it is asked, and the new one continues from its last snapshot."""
    old, new = lease(conditional_store), lease(conditional_store)
    await old.take()
    taking = asyncio.create_task(new.take())
    while not (await old.current()).wanted_by:
        await asyncio.sleep(0.02)
    await old.leave()
    async with old.publishing(ID):
        pass
    assert not taking.done()
    await old.release()
    taken = await taking
    assert taken.before is not None
    assert (taken.forced, taken.before.published) == (False, ID)
    with pytest.raises(LeaseLost, match="another gateway"):
        await old.current()


async def test_dead_holder_is_succeeded_after_the_answer_timeout(conditional_store: Storage) -> None:
    """The result says that the takeover was forced."""
    old, new = lease(conditional_store), lease(conditional_store, answer_timeout_s=0.6)
    await old.take()
    taken = await asyncio.wait_for(new.take(), 20)
    assert taken.forced
    with pytest.raises(LeaseLost):
        await old.release()


async def test_holder_that_never_finishes_is_succeeded_after_the_takeover_timeout(conditional_store: Storage) -> None:
    """Although it goes on writing that it is leaving."""
    old, new = lease(conditional_store), lease(conditional_store, takeover_timeout_s=1, answer_timeout_s=60)
    await old.take()

    async def move() -> None:
        while True:
            await old.leave()
            await asyncio.sleep(0.1)

    moving = asyncio.create_task(move())
    assert (await asyncio.wait_for(new.take(), 20)).forced
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(moving, 20)


async def test_holder_on_the_same_home_is_not_waited_for(conditional_store: Storage) -> None:
    """Only one gateway can be on a data directory, so the earlier holder has ended."""
    old, new = lease(conditional_store, "home"), lease(conditional_store, "home", answer_timeout_s=60)
    await old.take()
    assert not (await asyncio.wait_for(new.take(), 5)).forced
    await new.current()


async def test_released_lease_that_no_gateway_took_can_be_retaken(conditional_store: Storage) -> None:
    """By its former holder, unless another gateway was first."""
    old, new = lease(conditional_store), lease(conditional_store)
    await old.take()
    await old.release()
    with pytest.raises(LeaseLost):
        async with old.publishing(ID):
            pytest.fail("it may not get so far")
    await old.retake()
    async with old.publishing(ID):
        pass
    await old.release()
    await new.take()
    with pytest.raises(LeaseLost):
        await old.retake()


async def test_deleted_lease_is_written_again(conditional_store: Storage) -> None:
    """By its holder, with what it knows. The snapshot that was being published is aborted."""
    holder = lease(conditional_store)
    await holder.take()
    await holder.mark_pending_delete(["p" * 64])
    with pytest.raises(LeaseLost, match="aborted"):  # noqa: PT012
        async with holder.publishing(ID):
            await conditional_store.delete(LEASE)
            await holder.current()
    lease_state = await holder.current()
    assert (lease_state.epoch, lease_state.pending_delete, lease_state.is_committed(ID)) == (2, ("p" * 64,), False)


# ---------------------------------------------------------------------- lost answers


@pytest_asyncio.fixture(loop_scope="session")
async def through(
    ministack: servers.S3Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[S3Storage]:
    """A store on ministack behind `proxy`."""
    for name, value in ministack.env_behind(proxy).items():
        monkeypatch.setenv(name, value)
    store = S3Storage(BUCKET, uuid.uuid4().hex, attempts=2)
    yield store
    proxy.rules = []
    await store.close()


@pytest.mark.parametrize("fault", ["drop_reply", "status", "reset"])
async def test_failed_writes_are_not_taken_for_those_of_another_gateway(
    through: S3Storage, proxy: FaultProxy, fault: str
) -> None:
    """Each write fails once, or its answer is lost. The lease is taken and published under all the same."""
    holder = lease(through)

    def rule() -> list[Rule]:
        return [Rule(fault, method="PUT", contains=LEASE, count=1, status=409)]

    proxy.rules = rule()
    await holder.take()
    proxy.rules = rule()
    async with holder.publishing(ID):
        proxy.rules = rule()
    proxy.rules = rule()
    await holder.mark_pending_delete(["p" * 64])
    proxy.rules = rule()
    await holder.release()
    lease_state = await read_lease_state(through)
    assert lease_state is not None
    assert (lease_state.published, lease_state.state, lease_state.pending_delete) == (ID, "released", ("p" * 64,))
    assert lease_state.is_committed(ID)


@pytest.mark.parametrize("rule", [Rule("flip", at_byte=150, count=2), Rule("truncate", at_byte=9, count=1)])
async def test_damaged_answer_is_not_taken_for_another_holder(
    through: S3Storage, proxy: FaultProxy, rule: Rule
) -> None:
    """It is read again, by the holder and by a reader."""
    holder = lease(through)
    await holder.take()
    for read in (holder.current, lambda: read_lease_state(through)):
        proxy.rules = [replace(rule, method="GET", contains=LEASE)]
        lease_state = await read()
        assert lease_state is not None
        assert lease_state.holder == holder.holder
        proxy.rules = []


async def test_publication_that_cannot_be_confirmed_is_aborted_by_the_next(
    through: S3Storage, proxy: FaultProxy
) -> None:
    """Until then it is unknown whether it is committed. From the next announcement on it is not, for every reader."""
    holder = lease(through)
    await holder.take()
    with pytest.raises(StorageUnavailable):
        async with holder.publishing(ID):
            proxy.rules = [Rule("status", method="PUT", contains=LEASE, status=503)]
    proxy.rules = []
    lease_state = await read_lease_state(through)
    assert lease_state is not None
    assert not lease_state.is_committed(ID)
    async with holder.publishing(OTHER):
        pass
    lease_state = await read_lease_state(through)
    assert lease_state is not None
    assert (lease_state.is_committed(ID), lease_state.is_committed(OTHER)) == (False, True)


async def test_takeover_while_the_manifest_is_written_aborts_the_snapshot(conditional_store: Storage) -> None:
    """Between announcement and confirmation: the snapshot is not committed, and the former holder gets an error."""
    old, new = lease(conditional_store), lease(conditional_store, answer_timeout_s=0)
    await old.take()
    with pytest.raises(LeaseLost):
        async with old.publishing(ID):
            await new.take()
    lease_state = await read_lease_state(conditional_store)
    assert lease_state is not None
    assert not lease_state.is_committed(ID)
    async with new.publishing(OTHER):
        pass
