"""The lease as data: whatever the order of steps, one line of publications, and no loser among them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from gateway.errors import Conflict, CorruptSnapshot, GatewayError, IncompatibleSnapshot, LeaseLost
from gateway.lease.state import LeaseState

HELD = LeaseState(holder="a", home="home a")


def test_every_state_differs_from_the_one_before() -> None:
    """Each change has a serial of its own, so a version that is a digest cannot come back."""
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
        (HELD.announcing("x"), lambda lease_state: lease_state.settling()),
        (HELD, lambda lease_state: lease_state.marking_pending_delete(["p"])),
        (HELD.marking_pending_delete(["p"]), lambda lease_state: lease_state.unmarking_pending_delete(["p"])),
        (HELD, lambda lease_state: lease_state.released()),
    ],
)
def test_a_step_that_was_made_is_not_made_again(before: LeaseState, change: Callable[[LeaseState], LeaseState]) -> None:
    """After a lost answer it is asked for again, and recognised as done."""
    once = change(before)
    assert once is not before
    assert change(once) is once


def test_what_was_announced_and_not_confirmed_never_counts_again() -> None:
    """Not after another announcement, not after a succession, not by a late confirmation."""
    begun = HELD.announcing("x")
    for later in (begun.announcing("y"), begun.succeeded_by("b", "home b", ""), begun.settling()):
        assert not later.is_committed("x")
        with pytest.raises(LeaseLost):
            later.confirming("x")
        with pytest.raises(Conflict):
            later.announcing("x")


def test_what_a_holder_condemned_its_successor_knows() -> None:
    """Its deletes may still be on their way."""
    assert HELD.marking_pending_delete(["p", "q"]).unmarking_pending_delete(["q"]).succeeded_by(
        "b", "home b", ""
    ).pending_delete == ("p",)


def test_it_is_read_as_it_was_written() -> None:
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
def test_what_is_no_lease_is_not_taken_for_one(data: bytes) -> None:
    """A reader that took it for none would list what never counted."""
    with pytest.raises(CorruptSnapshot, match=r"lease\.json cannot be read"):
        LeaseState.parse(data, "memory://")


def test_a_flipped_bit_is_not_another_holder() -> None:
    """Wherever it is: what can still be read is what was written."""
    data = HELD.announcing("x").to_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1
        try:
            assert LeaseState.parse(bytes(flipped), "memory://") == HELD.announcing("x")
        except (CorruptSnapshot, IncompatibleSnapshot):
            pass


def test_a_newer_lease_is_left_to_the_newer_gateway() -> None:
    """It may mean what this one does not know."""
    with pytest.raises(IncompatibleSnapshot, match="format 2"):
        LeaseState.parse(b'{"format": 2}', "memory://")


class _Publication:
    """One gateway's way through the three steps; its manifest may be written at any later time."""

    def __init__(self, holder: str, snapshot_id: str, version: int) -> None:
        self.holder, self.snapshot_id, self.version = holder, snapshot_id, version
        self.confirmed = False


class Fight(RuleBasedStateMachine):
    """Gateways that take the lease from each other at every point, with every request as late as it likes.

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
        """By whoever holds it; the id is fresh."""
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
            assert self.swap(self.lease, self.lease.settling())

    @invariant()
    def what_counts_is_what_was_confirmed(self) -> None:
        counting = {each for each in self.manifests if self.lease is None or self.lease.is_committed(each)}
        assert counting == {snapshot_id for _, snapshot_id in self.history}

    @invariant()
    def nothing_that_counted_is_lost(self) -> None:
        counting = {each for each in self.manifests if self.lease and self.lease.is_committed(each)}
        assert self.visible <= counting
        self.visible = counting

    @invariant()
    def history_is_one_line(self) -> None:
        epochs = [epoch for epoch, _ in self.history]
        assert epochs == sorted(epochs)


TestFight = Fight.TestCase
TestFight.settings = settings(max_examples=150, stateful_step_count=40, suppress_health_check=list(HealthCheck))
