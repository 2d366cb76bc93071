"""Who may write to a repository, as data: the contents of `lease.json`. Pure.

One object of the store says which gateway is the writer. It changes by compare-and-swap alone (the
store's conditional writes), so its states form one line, each made of the one before. Every state has
a `serial` of its own: two states are never equal in bytes, and a version that is a digest of them
cannot come back.

**A loser cannot publish.** To publish snapshot X the writer (1) swaps `announced = X` in, (2) writes
X's manifest, (3) swaps `announced` out again. A successor that swaps itself in between finds X
announced and moves it to `aborted`. A snapshot *counts* if its manifest is in the store and its id is
neither announced nor void. Then:

- Whoever lost the lease before (1) fails there and writes nothing.
- Whoever loses it between (1) and (3) fails in (3). X is in `aborted` from the very swap on that took the
  lease away, whether its manifest is written before, after or a day later. Nothing leaves `aborted`.
- After (3) X counts for good, and the successor, whose swap came later, finds it there.

So (3) is the moment of publication; all such moments lie on the one line of states, in the order of
their epochs. No clock is read, and how long a request was on its way does not matter. A reader lists
the manifests first and reads the lease after: a manifest it saw was announced before, so the lease
shows it as announced, as void, or as published. Without a lease (an older gateway's repository)
nothing is void and everything counts.

**A loser cannot delete what a winner needs.** What is in a pack is what it is named by, so a new snapshot may
name a pack that a loser is just about to delete. Packs are therefore deleted only after they were
swapped into `pending_delete`. A successor inherits that list and can tell every delete that may still be on
its way: it takes none of these names for one that is there, and makes none of them again. Names
of one's own deletes that were all answered are acquitted.

On a store that ignores conditions the same steps are taken, and hold as long as no two of them race.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.errors import Conflict, CorruptSnapshot, IncompatibleSnapshot, LeaseLost

LEASE = "lease.json"
MAX_LEASE_BYTES = 1 << 20

_FORMAT = 1
# What a successor inherits is kept for good, a name or two for each gateway that died at the wrong moment.
_MAX_ABORTED = 10_000
_MAX_KEPT_PENDING_DELETE = 2_000
MAX_PENDING_DELETE = 64


class LeaseState(BaseModel):
    """One state of the lease."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    serial: Annotated[int, Field(ge=1)] = 1
    """Grows by one with every write, whoever makes it."""
    epoch: Annotated[int, Field(ge=1)] = 1
    """Grows by one with every holder: the fencing number."""
    holder: str
    """A process: a random name that it was given at its start."""
    home: str
    """A data directory: a random name that it was given once."""
    where: str = ""
    """The holder's host and process id, for people."""
    state: Literal["held", "leaving", "released"] = "held"
    wanted_by: str | None = None
    """The newest process that asked the holder to leave."""
    announced: str | None = None
    aborted: tuple[str, ...] = ()
    pending_delete: tuple[str, ...] = ()
    published: str | None = None
    """The newest snapshot that was published under a lease, and the home of who published it."""
    publisher: str | None = None

    # ------------------------------------------------------------------ as bytes

    def to_bytes(self) -> bytes:
        """As it is stored; `digest` is the SHA-256 of the canonical form of `lease`: a flipped bit must not pass
        for another holder."""
        body = self.model_dump(mode="json")
        return json.dumps({"format": _FORMAT, "digest": _digest(body), "lease": body}, indent=1).encode()

    @classmethod
    def parse(cls, data: bytes, url: str) -> Self:
        """Raises IncompatibleSnapshot for a newer format, CorruptSnapshot for anything that is no lease."""
        try:
            document: Any = json.loads(data)
            version = document["format"]
            if isinstance(version, int) and version > _FORMAT:
                raise IncompatibleSnapshot(
                    f"{url}{LEASE} is of format {version}, this gateway knows up to {_FORMAT}",
                    "use the gateway that wrote it, or a newer one",
                )
            if document["digest"] != _digest(document["lease"]):
                raise ValueError("it does not have the digest it names")
            return cls.model_validate_json(json.dumps(document["lease"]))
        except (ValueError, TypeError, KeyError, RecursionError, ValidationError) as error:
            raise CorruptSnapshot(
                f"{url}{LEASE} cannot be read: it is cut off, damaged or no lease",
                "stop every gateway on this store, then delete it: snapshots that never counted may show up",
            ) from error

    def is_committed(self, snapshot_id: str) -> bool:
        """Whether a manifest that is in the store is that of a published snapshot."""
        return snapshot_id != self.announced and snapshot_id not in self.aborted

    # ------------------------------------------------------------------ for who is not the holder

    def succeeded_by(self, holder: str, home: str, where: str) -> Self:
        """The next holder's first state: what was announced and never published is void from here on."""
        return self._next(
            epoch=self.epoch + 1,
            holder=holder,
            home=home,
            where=where,
            state="held",
            wanted_by=None,
            announced=None,
            aborted=self._aborted(),
        )

    def asked_by(self, holder: str) -> Self:
        """The holder is asked to leave. Nothing else changes, so the holder goes on as it was."""
        return self if self.wanted_by == holder else self._next(wanted_by=holder)

    # ------------------------------------------------------------------ for the holder; all may be repeated

    def leaving(self) -> Self:
        """The holder is on its way out; called again and again, so that who waits sees it alive."""
        return self._next(state="leaving")

    def released(self) -> Self:
        """The holder is done; who comes next need not wait."""
        return self if self.state == "released" else self._next(state="released")

    def announcing(self, snapshot_id: str) -> Self:
        """Step 1 of a publication. What was announced before and never confirmed is void."""
        if self.announced == snapshot_id:
            return self
        if snapshot_id in self.aborted:
            raise Conflict(f"snapshot {snapshot_id} was begun by another gateway and never published", "try again")
        return self._next(announced=snapshot_id, aborted=self._aborted())

    def confirming(self, snapshot_id: str) -> Self:
        """Step 3: from here on the snapshot counts. Raises LeaseLost if it cannot any more."""
        if self.announced == snapshot_id:
            return self._next(announced=None, published=snapshot_id, publisher=self.home)
        if not self.is_committed(snapshot_id):
            raise LeaseLost(f"snapshot {snapshot_id} was given up before it was published", "take another")
        return self

    def settling(self) -> Self:
        """What was announced and never confirmed is void, and a confirmation that is on its way is refused."""
        return self._next(announced=None, aborted=self._aborted()) if self.announced else self

    def marking_pending_delete(self, packs: Iterable[str]) -> Self:
        """Packs that are about to be deleted, beside those that were condemned before."""
        names = tuple(dict.fromkeys((*self.pending_delete, *packs)))
        return self if names == self.pending_delete else self._next(pending_delete=names[-_MAX_KEPT_PENDING_DELETE:])

    def unmarking_pending_delete(self, packs: Iterable[str]) -> Self:
        """Packs whose deletion was answered: their names may be used again."""
        gone = set(packs)
        names = tuple(name for name in self.pending_delete if name not in gone)
        return self if names == self.pending_delete else self._next(pending_delete=names)

    # ------------------------------------------------------------------ inside

    def _aborted(self) -> tuple[str, ...]:
        return (*self.aborted, self.announced)[-_MAX_ABORTED:] if self.announced else self.aborted

    def _next(self, **changes: Any) -> Self:
        return self.model_copy(update={**changes, "serial": self.serial + 1})


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
