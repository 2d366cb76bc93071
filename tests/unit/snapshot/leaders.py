"""Gateways that take part in a leader election, without a process."""

from pathlib import Path
from typing import Any

from gateway.chroma.directory import DataDirectory
from gateway.lease.data_dir_state import DataDirState
from gateway.lease.election import LeaderElection, LeaseOptions


class Writes:
    """Clients' writes, of which there are none."""

    def refuse_writes(self, reason: str) -> None: ...

    def accept_writes(self) -> None: ...

    def extend_writes(self, until_s: float) -> None: ...


async def save_nothing() -> None:
    """The last snapshot of a gateway that has nothing to save."""


def candidate(path: Path, store: Any, *, has_data: bool = False, may_delete: bool = True) -> LeaderElection:
    """A gateway on the data directory `path`, which waits for no other one. It takes the lease when it needs it."""
    DataDirectory(path).make()
    options = LeaseOptions(takeover_timeout_s=0, may_delete=may_delete)
    leader = LeaderElection(store, DataDirState(path), Writes(), save_nothing, options, where=path.name)
    leader.begin(has_data=has_data)
    return leader
