"""Who waits until the store has a write, while no cut can be made: `gateway.journal.journal`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from gateway.errors import LeaseLost, NotStored
from gateway.journal.journal import Journal, JournalOptions
from gateway.lease.election import LeaderRole

DEADLINE_S = 10


@asynccontextmanager
async def running(role: LeaderRole, ack_timeout_s: float, *, epoch: int | None = 7) -> AsyncIterator[Journal]:
    """A journal whose gateway has `role`. Chroma is down, so no cut can be made."""
    may_write = role in (LeaderRole.STARTING, LeaderRole.WRITER, LeaderRole.LEAVING)
    leader: Any = SimpleNamespace(role=role, epoch=epoch, may_write=may_write, note_journal=AsyncMock())
    options = JournalOptions(interval_s=1, ack_timeout_s=ack_timeout_s, recovery_s=10, history_s=0)
    nothing: Any = None
    journal = Journal(nothing, nothing, leader, nothing, lambda: False, lambda: False, options, where="here")
    journal._epoch = epoch  # its seal is in the store
    loop = asyncio.create_task(journal.run())
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield journal
    finally:
        loop.cancel()


@pytest.mark.parametrize("role", [LeaderRole.STARTING, LeaderRole.WRITER])
async def test_waiting_for_the_store_does_not_block_the_event_loop(role: LeaderRole) -> None:
    """A write that cannot be stored now ends with NotStored after its time, and all else goes on."""
    async with running(role, 0.2) as journal:
        waiting = asyncio.create_task(journal.stored())
        turns = 0
        while not waiting.done():
            await asyncio.sleep(0.01)
            turns += 1
        with pytest.raises(NotStored, match="applied"):
            waiting.result()
        assert turns > 3


@pytest.mark.parametrize("role", [LeaderRole.READER, LeaderRole.BEHIND])
async def test_a_gateway_without_the_lease_does_not_keep_writes_waiting(role: LeaderRole) -> None:
    """What was applied here will not be stored, so the answer comes at once."""
    async with running(role, DEADLINE_S) as journal:
        with pytest.raises(LeaseLost):
            await journal.stored()


async def test_a_write_does_not_count_as_stored_by_what_another_tenure_stores() -> None:
    """The lease was lost and taken again in between: the data may be of another gateway."""
    async with running(LeaderRole.WRITER, DEADLINE_S) as journal:
        waiting = asyncio.create_task(journal.stored())
        await asyncio.sleep(0)
        journal._leader.epoch = 8  # type: ignore[misc]
        journal._settle([*journal._waiting])
        with pytest.raises(LeaseLost):
            await waiting


async def test_what_is_replaced_by_a_restore_does_not_count_as_stored() -> None:
    """A write that was not stored before its data are swapped is not in what is stored afterwards."""
    async with running(LeaderRole.WRITER, DEADLINE_S) as journal:
        waiting = asyncio.create_task(journal.stored())
        await asyncio.sleep(0)
        async with journal.new_run():
            pass
        with pytest.raises(NotStored, match="replaced"):
            await waiting
