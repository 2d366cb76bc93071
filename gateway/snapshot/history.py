"""What is kept in memory of the manifests in a store.

Manifests never change, so each is read once. A manifest is not kept whole: 1,500 manifests of 53 KB took 609 MB. Kept
are, by snapshot:

- what retention and garbage collection ask: when it was taken, its label, and the packs that it names, 8 bytes each
- how the admin API shows it, as JSON: only of the snapshots that were shown last, up to `_SHOWN_BYTES` in all

`encode` and `decode` give the summaries the form of an object in the store, so that a gateway need not read all
manifests again after a restart or on another disk. docs/format.md describes it. Pure.
"""

import bisect
import hashlib
import zlib
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, KeysView, Mapping
from datetime import datetime
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, Field

from gateway.snapshot.model import Manifest, Snapshot

_SHOWN_BYTES = 16 << 20
_MAX_DOCUMENT_BYTES = 256 << 20


class Summary(NamedTuple):
    """What is kept of a manifest. `packs`: the names of its packs as 32 bytes each.

    `version` tells a changed object from the one that was read: its size in bytes and its tag in a listing. The tag is
    empty, or all of it None, as far as no listing has shown it yet.
    """

    created_at: datetime
    label: str | None
    packs: tuple[bytes, ...]
    version: tuple[int, str] | None


class _Document(BaseModel):
    """What `encode` compresses. By snapshot: its time, its label, its version, and the numbers of its packs."""

    format: Literal[1] = 1
    packs: list[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
    snapshots: dict[str, tuple[datetime, str | None, int, str, list[Annotated[int, Field(ge=0)]]]]


def encode(summaries: Mapping[str, Summary]) -> bytes:
    """Return an object with those of `summaries` whose version is known: a SHA-256, then JSON compressed by zlib."""
    numbers: dict[bytes, int] = {}
    snapshots = {
        snapshot_id: (
            summary.created_at,
            summary.label,
            *summary.version,
            [numbers.setdefault(name, len(numbers)) for name in summary.packs],
        )
        for snapshot_id, summary in summaries.items()
        if summary.version and summary.version[1]
    }
    document = _Document(packs=[name.hex() for name in numbers], snapshots=snapshots)
    body = zlib.compress(document.model_dump_json().encode(), 1)
    return hashlib.sha256(body).digest() + body


def decode(data: bytes) -> dict[str, Summary]:
    """Return the summaries that `encode` was given. Raises ValueError if they are damaged or of another format."""
    digest, body = data[:32], data[32:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("the digest does not match")
    try:
        document = _Document.model_validate_json(zlib.decompressobj().decompress(body, _MAX_DOCUMENT_BYTES))
        names = [bytes.fromhex(name) for name in document.packs]
        return {
            snapshot_id: Summary(created_at, label, tuple(names[number] for number in packs), (size_bytes, tag))
            for snapshot_id, (created_at, label, size_bytes, tag, packs) in document.snapshots.items()
        }
    except (zlib.error, IndexError) as error:
        raise ValueError(f"it cannot be read: {error}") from error


class History:
    """Summaries by snapshot id. Used from the event loop's thread."""

    def __init__(self) -> None:
        self._summaries: dict[str, Summary] = {}
        self._ids: list[str] = []  # sorted
        # How many of the manifests name a pack. The keys are the very objects of `Summary.packs`.
        self._named: Counter[bytes] = Counter()
        self._names: dict[bytes, bytes] = {}
        self._shown: OrderedDict[str, bytes] = OrderedDict()
        self._shown_bytes = 0
        self._missing: set[bytes] = set()
        self._broken: dict[str, str] | None = {}

    def __contains__(self, snapshot_id: str) -> bool:
        return snapshot_id in self._summaries

    def __getitem__(self, snapshot_id: str) -> Summary:
        return self._summaries[snapshot_id]

    def is_current(self, snapshot_id: str, version: tuple[int, str]) -> bool:
        """Return whether the manifest that a listing shows with `version` is known.

        A summary that no listing has shown yet, as that of a snapshot just taken, takes this version.
        """
        summary = self._summaries.get(snapshot_id)
        if summary is None:
            return False
        if summary.version is None or summary.version == (version[0], ""):
            self._summaries[snapshot_id] = summary._replace(version=version)
            return True
        return summary.version == version

    def add(self, manifest: Manifest, version: tuple[int, str] | None = None) -> None:
        """Keep what is needed of a manifest that was read or written."""
        snapshot = manifest.snapshot
        packs = tuple(bytes.fromhex(pack.sha256) for pack in manifest.packs)
        self.put(snapshot.id, Summary(snapshot.created_at, snapshot.label, packs, version))
        self._show(snapshot)

    def put(self, snapshot_id: str, summary: Summary) -> None:
        """Keep a summary. What was known of the same snapshot before gives the version, if `summary` has none."""
        packs, version = summary.packs, summary.version
        if (known := self._summaries.get(snapshot_id)) is None or known.packs != packs:
            self.forget(snapshot_id)
            packs = tuple(self._names.setdefault(name, name) for name in packs)
            bisect.insort(self._ids, snapshot_id)
            self._named.update(packs)
            self._broken = None
        else:
            packs, version = known.packs, version or known.version
        self._summaries[snapshot_id] = summary._replace(packs=packs, version=version)

    @property
    def summaries(self) -> Mapping[str, Summary]:
        """All that are known, by id."""
        return self._summaries

    def forget(self, snapshot_id: str) -> None:
        """Drop what is kept of a snapshot that is gone."""
        summary = self._summaries.pop(snapshot_id, None)
        if summary is None:
            return
        del self._ids[bisect.bisect_left(self._ids, snapshot_id)]
        self._hide(snapshot_id)
        self._named.subtract(summary.packs)
        for name in set(summary.packs):
            if not self._named[name]:
                del self._named[name], self._names[name]
                self._missing.discard(name)
        self._broken = None

    def keep_only(self, snapshot_ids: Collection[str]) -> None:
        """Drop what is kept of all other snapshots."""
        for snapshot_id in self._summaries.keys() - set(snapshot_ids):
            self.forget(snapshot_id)

    # ------------------------------------------------------------------ ids

    def ids(self) -> KeysView[str]:
        """All ids that are known, in no order."""
        return self._summaries.keys()

    def newest_id(self) -> str | None:
        """The newest id that is known, None without any."""
        return self._ids[-1] if self._ids else None

    def id_before(self, snapshot_id: str | None, count: int) -> str | None:
        """The id that lies `count` known ids before `snapshot_id`, or before the end; None if there are fewer."""
        end = len(self._ids) if snapshot_id is None else bisect.bisect_left(self._ids, snapshot_id)
        return self._ids[end - count] if end >= count else None

    # ------------------------------------------------------------------ as the admin API shows them

    def shown(self, snapshot_id: str) -> Snapshot | None:
        """Return how to show a snapshot, None if that is not kept."""
        if (shown := self._shown.get(snapshot_id)) is None:
            return None
        self._shown.move_to_end(snapshot_id)
        return Snapshot.model_validate_json(shown)

    def _show(self, snapshot: Snapshot) -> None:
        self._hide(snapshot.id)
        self._shown[snapshot.id] = shown = snapshot.model_dump_json(exclude={"verified"}).encode()
        self._shown_bytes += len(shown)
        while self._shown_bytes > _SHOWN_BYTES:
            self._hide(next(iter(self._shown)))

    def _hide(self, snapshot_id: str) -> None:
        self._shown_bytes -= len(self._shown.pop(snapshot_id, b""))

    # ------------------------------------------------------------------ packs

    def names(self, pack: str) -> bool:
        """Return whether a known manifest names this pack."""
        return bytes.fromhex(pack) in self._named

    def named_but_not_in(self, packs: Collection[str]) -> list[str]:
        """Return the packs that known manifests name and that are not among `packs`."""
        return [name.hex() for name in self._named.keys() - {bytes.fromhex(pack) for pack in packs}]

    def set_missing(self, packs: Iterable[str]) -> None:
        """Note which packs are named and not in the store, in place of what was noted before."""
        names = map(bytes.fromhex, packs)
        self._missing = {self._names[name] for name in names if name in self._named}
        self._broken = None

    def found(self, pack: str) -> None:
        """Note that a pack is in the store."""
        if (name := bytes.fromhex(pack)) in self._missing:
            self._missing.discard(name)
            self._broken = None

    @property
    def missing(self) -> list[str]:
        """The packs that are named and not in the store."""
        return [name.hex() for name in self._missing]

    @property
    def broken(self) -> dict[str, str]:
        """The snapshots that need a pack which is missing, newest first, each with one such pack."""
        if self._broken is None:
            self._broken = {}
            for snapshot_id in reversed(self._ids) if self._missing else ():
                if lost := self._missing.intersection(self._summaries[snapshot_id].packs):
                    self._broken[snapshot_id] = min(lost).hex()
        return self._broken
