"""The contents of `lease.json`: which gateway may write to a repository. Pure.

The lease is one object in the store. It changes only by compare-and-swap (the store's conditional writes). So its
states form one sequence, in which each state is made from the one before. Every state has its own `serial`. So no
two states have equal bytes, and a version that is a digest of the bytes never comes back.

**A gateway that lost the lease cannot publish.** To publish snapshot X, the holder

1. swaps `announced = X` in,
2. writes X's manifest,
3. swaps `announced` out again.

A successor that takes the lease while X is announced moves X to `aborted` in the same swap. A snapshot is
*committed* if its manifest is in the store and its id is neither announced nor aborted. It follows:

- A gateway that lost the lease before step 1 fails at step 1 and writes nothing.
- A gateway that loses the lease between steps 1 and 3 fails at step 3. X is in `aborted` from the very swap that
  took the lease away. It does not matter whether the manifest is written before that swap, after it, or a day later.
  Nothing ever leaves `aborted`.
- After step 3, X stays committed. The successor's swap came later, so the successor finds X committed.

So step 3 is the moment of publication. All publications lie on the one sequence of states, in the order of their
epochs. No clock is read, and it does not matter how long a request is under way.

A reader lists the manifests first and reads the lease second. A manifest in its list was announced before, so that
lease shows it as announced, as aborted, or as published. A repository without a lease was written by an older
gateway: nothing is aborted, and every manifest is committed.

**A gateway that lost the lease cannot delete what its successor needs.** A pack is named by its contents. So a new
snapshot may name a pack that a former holder is about to delete. Therefore a pack is deleted only after its name was
swapped into `pending_delete`. A successor inherits that list, so it knows every deletion that may still be under way.
It treats these packs as absent and never reuses their names. A holder takes a name off the list only if it put the
name there itself and every deletion was answered.

On a store that ignores conditions the steps are the same. There they hold as long as no two of them race.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.errors import Conflict, CorruptSnapshot, IncompatibleSnapshot, LeaseLost

LEASE = "lease.json"
MAX_LEASE_BYTES = 1 << 20

MAX_PENDING_DELETE = 512
"""Most packs that may be marked at once."""

_FORMAT = 1
# Inherited entries are kept. Each gateway that dies at the wrong moment adds one or two, so these bounds are far away.
_MAX_ABORTED = 10_000
_MAX_KEPT_PENDING_DELETE = 8_000


class LeaseState(BaseModel):
    """One state of the lease. The methods return the next state, or `self` if there is nothing to change."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    serial: Annotated[int, Field(ge=1)] = 1
    """Grows by one with every write, by any gateway."""
    epoch: Annotated[int, Field(ge=1)] = 1
    """The fencing number. Grows by one with every holder."""
    holder: str
    """The random name of the process that has the lease."""
    home: str
    """The random name of the holder's data directory in its place; see `gateway.lease.data_dir_state`."""
    where: str = ""
    """The holder's host and process id, for people."""
    state: Literal["held", "leaving", "released"] = "held"
    wanted_by: str | None = None
    """The process that asked the holder to leave most recently."""
    announced: str | None = None
    """The snapshot whose manifest is being written."""
    aborted: tuple[str, ...] = ()
    """Snapshots that were announced and can never be committed, oldest first."""
    pending_delete: tuple[str, ...] = ()
    """Packs whose deletion may be under way, oldest first."""
    published: str | None = None
    """The snapshot that was published most recently."""
    publisher: str | None = None
    """The home of the gateway that published it."""
    published_deleted: bool = False
    """Whether it was deleted since, or is about to be."""

    # ------------------------------------------------------------------ as bytes

    def to_bytes(self) -> bytes:
        """Return the object to store.

        `digest` is the SHA-256 of the canonical form of `lease`, so that a flipped bit does not read as another holder.
        """
        body = self.model_dump(mode="json")
        return json.dumps({"format": _FORMAT, "digest": _digest(body), "lease": body}, indent=1).encode()

    @classmethod
    def parse(cls, data: bytes, url: str) -> Self:
        """Read what `to_bytes` returned. `url` is for messages.

        Raises IncompatibleSnapshot for a newer format, CorruptSnapshot for anything else that is not a lease.
        """
        try:
            document: Any = json.loads(data)
            version = document["format"]
            if isinstance(version, int) and version > _FORMAT:
                raise IncompatibleSnapshot(
                    f"{url}{LEASE} is of format {version}, this gateway knows up to {_FORMAT}",
                    "use the gateway that wrote it, or a newer one",
                )
            if document["digest"] != _digest(document["lease"]):
                raise ValueError("the digest does not match")
            return cls.model_validate_json(json.dumps(document["lease"]))
        except (ValueError, TypeError, KeyError, RecursionError, ValidationError) as error:
            raise CorruptSnapshot(
                f"{url}{LEASE} cannot be read: it is truncated, damaged or not a lease",
                "stop every gateway on this store, then delete the object; aborted snapshots may be listed afterwards",
            ) from error

    @property
    def expected(self) -> str | None:
        """The snapshot that must be in the store: the one that was published last, unless it was deleted."""
        return None if self.published_deleted else self.published

    def is_committed(self, snapshot_id: str) -> bool:
        """Return whether a manifest that is in the store belongs to a published snapshot."""
        return snapshot_id != self.announced and snapshot_id not in self.aborted

    # ------------------------------------------------------------------ changes by other gateways

    def succeeded_by(self, holder: str, home: str, where: str) -> Self:
        """The first state of the next holder. A snapshot that is still announced becomes aborted."""
        return self._next(
            epoch=self.epoch + 1,
            holder=holder,
            home=home,
            where=where,
            state="held",
            wanted_by=None,
            announced=None,
            aborted=self._with_announced_aborted(),
        )

    def asked_by(self, holder: str) -> Self:
        """`holder` asks the present holder to leave. Nothing else changes, so the present holder can go on."""
        return self if self.wanted_by == holder else self._next(wanted_by=holder)

    # ------------------------------------------------------------------ changes by the holder; all may be repeated

    def leaving(self) -> Self:
        """The holder is about to hand over. A new state each time, so that a waiting gateway sees the holder alive."""
        return self._next(state="leaving")

    def released(self) -> Self:
        """The holder gave the lease up. The next holder need not wait."""
        return self if self.state == "released" else self._next(state="released")

    def announcing(self, snapshot_id: str) -> Self:
        """Step 1 of a publication. A snapshot that was announced before and never confirmed becomes aborted.

        Raises Conflict if `snapshot_id` is aborted.
        """
        if self.announced == snapshot_id:
            return self
        if snapshot_id in self.aborted:
            raise Conflict(f"snapshot {snapshot_id} was begun by another gateway and never published", "try again")
        return self._next(announced=snapshot_id, aborted=self._with_announced_aborted())

    def confirming(self, snapshot_id: str) -> Self:
        """Step 3 of a publication: the snapshot is committed. Raises LeaseLost if it was aborted."""
        if self.announced == snapshot_id:
            return self._next(announced=None, published=snapshot_id, publisher=self.home, published_deleted=False)
        if not self.is_committed(snapshot_id):
            raise LeaseLost(f"snapshot {snapshot_id} was aborted before it was published", "take another snapshot")
        return self

    def noting_deletion(self, snapshot_id: str) -> Self:
        """`snapshot_id` is about to be deleted, so nobody is to miss it."""
        return self._next(published_deleted=True) if snapshot_id == self.expected else self

    def aborting_announced(self) -> Self:
        """The announced snapshot becomes aborted. A confirmation of it that is still under way will be refused."""
        return self._next(announced=None, aborted=self._with_announced_aborted()) if self.announced else self

    def marking_pending_delete(self, packs: Iterable[str]) -> Self:
        """`packs` are about to be deleted, beside those that were marked before."""
        names = tuple(dict.fromkeys((*self.pending_delete, *packs)))
        return self if names == self.pending_delete else self._next(pending_delete=names[-_MAX_KEPT_PENDING_DELETE:])

    def unmarking_pending_delete(self, packs: Iterable[str]) -> Self:
        """The deletion of `packs` was answered. Their names may be used again."""
        deleted = set(packs)
        names = tuple(name for name in self.pending_delete if name not in deleted)
        return self if names == self.pending_delete else self._next(pending_delete=names)

    # ------------------------------------------------------------------ inside

    def _with_announced_aborted(self) -> tuple[str, ...]:
        return (*self.aborted, self.announced)[-_MAX_ABORTED:] if self.announced else self.aborted

    def _next(self, **changes: Any) -> Self:
        return self.model_copy(update={**changes, "serial": self.serial + 1})


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
