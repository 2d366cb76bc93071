"""The lease as data: in any order of steps there is one sequence of publications, and no loser takes part in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from gateway.errors import Conflict, CorruptSnapshot, GatewayError, IncompatibleSnapshot, LeaseLost
from gateway.lease.state import LeaseState

HELD = LeaseState(holder="a", home="home a")


def test_every_state_has_its_own_serial() -> None:
    """So a version that is a digest of the bytes never comes back."""
    states = [HELD]
    for change in (
        lambda lease_state: lease_state.asked_by("b"),
        lambda lease_state: lease_state.leaving(),
        lambda lease_state: lease_state.leaving(),
        lambda lease_state: lease_state.announcing("20261120T210455Z-3f9a1c"),
        lambda lease_state: lease_state.confirming("20261120T210455Z-3f9a1c"),
        lambda lease_state: lease_state.marking_pending_delete(["f" * 64]),
        lambda lease_state: lease_state.unmarking_pending_delete(["f" * 64]),
        lambda lease_state: lease_state.released(),
        lambda lease_state: lease_state.succeeded_by("b", "home b", "there"),
        lambda lease_state: lease_state.succeeded_by("a", "home a", "here"),
    ):
        states.append(change(states[-1]))
    assert len({state.to_bytes() for state in states}) == len(states)
    assert [state.serial for state in states] == list(range(1, len(states) + 1))


@pytest.mark.parametrize(
    ("before", "change"),
    [
        (HELD, lambda lease_state: lease_state.asked_by("b")),
        (HELD, lambda lease_state: lease_state.announcing("x")),
        (HELD.announcing("x"), lambda lease_state: lease_state.confirming("x")),
        (HELD.announcing("x"), lambda lease_state: lease_state.aborting_announced()),
        (HELD, lambda lease_state: lease_state.marking_pending_delete(["p"])),
        (HELD.marking_pending_delete(["p"]), lambda lease_state: lease_state.unmarking_pending_delete(["p"])),
        (HELD, lambda lease_state: lease_state.released()),
    ],
)
def test_every_step_may_be_repeated(before: LeaseState, change: Callable[[LeaseState], LeaseState]) -> None:
    """After a lost answer the step is made again and recognised as done."""
    once = change(before)
    assert once is not before
    assert change(once) is once


def test_announced_snapshot_that_was_not_confirmed_stays_aborted() -> None:
    """After another announcement, after a takeover, and despite a late confirmation."""
    begun = HELD.announcing("x")
    for later in (begun.announcing("y"), begun.succeeded_by("b", "home b", ""), begun.aborting_announced()):
        assert not later.is_committed("x")
        with pytest.raises(LeaseLost):
            later.confirming("x")
        with pytest.raises(Conflict):
            later.announcing("x")


def test_successor_inherits_the_packs_pending_delete() -> None:
    """The deletions may still be under way."""
    assert HELD.marking_pending_delete(["p", "q"]).unmarking_pending_delete(["q"]).succeeded_by(
        "b", "home b", ""
    ).pending_delete == ("p",)


def test_parsed_lease_equals_the_stored_one() -> None:
    """Every field survives."""
    state = (
        HELD.announcing("x")
        .marking_pending_delete(["p"])
        .asked_by("b")
        .succeeded_by("c", "home c", "there")
        .asked_by("d")
    )
    assert LeaseState.parse(state.to_bytes(), "memory://") == state


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": "1"}', b"null", b"\xff"])
def test_anything_but_a_lease_is_corrupt(data: bytes) -> None:
    """A reader that took it for a missing lease would list aborted snapshots."""
    with pytest.raises(CorruptSnapshot, match=r"lease\.json cannot be read"):
        LeaseState.parse(data, "memory://")


def test_flipped_bit_does_not_read_as_another_lease() -> None:
    """At any place: what can still be parsed is what was written."""
    data = HELD.announcing("x").to_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1
        try:
            assert LeaseState.parse(bytes(flipped), "memory://") == HELD.announcing("x")
        except (CorruptSnapshot, IncompatibleSnapshot):
            pass


def test_newer_lease_format_is_refused() -> None:
    """It may mean something that this gateway does not know."""
    with pytest.raises(IncompatibleSnapshot, match="format 2"):
        LeaseState.parse(b'{"format": 2}', "memory://")


class _Publication:
    """The three steps of one gateway. The manifest may be written at any later time."""

    def __init__(self, holder: str, snapshot_id: str, version: int) -> None:
        self.holder, self.snapshot_id, self.version = holder, snapshot_id, version
        self.confirmed = False


class Fight(RuleBasedStateMachine):
    """Gateways take the lease from each other at any point, and every request may be delayed at will.

    The store is one register with compare-and-swap, and a set of manifests.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lease: LeaseState | None = None
        self.manifests: set[str] = set()
        self.history: list[tuple[int, str]] = []
        self.visible: set[str] = set()
        self.count = 0

    publications = Bundle("publications")
    written = Bundle("written")

    def swap(self, seen: LeaseState | None, wanted: LeaseState) -> bool:
        if (self.lease.to_bytes() if self.lease else None) != (seen.to_bytes() if seen else None):
            return False
        self.lease = wanted
        return True

    @rule(holder=st.sampled_from("abc"))
    def take(self, holder: str) -> None:
        """By force, at any time."""
        self.count += 1
        name = f"{holder}{self.count}"
        seen = self.lease
        self.swap(seen, seen.succeeded_by(name, holder, "") if seen else LeaseState(holder=name, home=holder))

    @rule(target=publications, seen_by=st.sampled_from("abc"))
    def announce(self, seen_by: str) -> _Publication | None:
        """By the present holder, with a new id."""
        if self.lease is None:
            return None
        self.count += 1
        seen = self.lease
        snapshot_id = f"{self.count:06}"
        assert self.swap(seen, seen.announcing(snapshot_id))
        return _Publication(seen.holder, snapshot_id, seen.epoch)

    @rule(target=written, publication=consumes(publications))
    def write_manifest(self, publication: _Publication | None) -> _Publication | None:
        """However late."""
        if publication:
            self.manifests.add(publication.snapshot_id)
        return publication

    @rule(publication=written)
    def confirm(self, publication: _Publication | None) -> None:
        """If it still can."""
        if publication is None or self.lease is None or self.lease.holder != publication.holder:
            return
        seen = self.lease
        try:
            wanted = seen.confirming(publication.snapshot_id)
        except GatewayError:
            assert not publication.confirmed
            return
        if wanted is not seen:
            assert self.swap(seen, wanted)
            self.history.append((seen.epoch, publication.snapshot_id))
        publication.confirmed = True

    @rule()
    def settle(self) -> None:
        if self.lease is not None:
            assert self.swap(self.lease, self.lease.aborting_announced())

    @invariant()
    def committed_snapshots_are_the_confirmed_ones(self) -> None:
        committed = {each for each in self.manifests if self.lease is None or self.lease.is_committed(each)}
        assert committed == {snapshot_id for _, snapshot_id in self.history}

    @invariant()
    def no_committed_snapshot_is_lost(self) -> None:
        committed = {each for each in self.manifests if self.lease and self.lease.is_committed(each)}
        assert self.visible <= committed
        self.visible = committed

    @invariant()
    def publications_are_in_the_order_of_epochs(self) -> None:
        epochs = [epoch for epoch, _ in self.history]
        assert epochs == sorted(epochs)


TestFight = Fight.TestCase
TestFight.settings = settings(max_examples=150, stateful_step_count=40, suppress_health_check=list(HealthCheck))
