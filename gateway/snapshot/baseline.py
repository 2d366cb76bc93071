"""What the store already holds of the data directory: what the next snapshot is measured against.

Of every file of one snapshot the pieces it is made of, and a fingerprint of each of its blocks. The
fingerprints are kept on disk too, `.gateway/baseline`, so that a gateway that starts again, or one whose
data was just restored, need not store everything anew. It may be of an older snapshot than the newest: then
the next one holds what changed since that one. Without it everything is stored again, nothing else.
"""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gateway.chroma.disk import DATABASE, Signature
from gateway.snapshot.blocks import Fingerprinter, Fingerprints, Layout, Numbers
from gateway.snapshot.model import File, Manifest, Pack, Piece
from gateway.snapshot.packing import Packed, packed

_SNAPSHOT, _SEED = "snapshot", "seed"


@dataclass(frozen=True, slots=True)
class Stored:
    """A file as it is in the store. `origins`: of each block the number of the newest patch that has it, or 0."""

    path: str
    size_bytes: int
    sha256: str
    page_bytes: int | None
    layout: Layout
    base: tuple[Packed, ...]
    patches: tuple[tuple[Packed, ...], ...]
    fingerprints: Fingerprints
    origins: npt.NDArray[np.uint8]

    @property
    def patch_bytes(self) -> list[int]:
        return [sum(piece.size_bytes for piece in patch) for patch in self.patches]

    @property
    def packs(self) -> Iterable[Pack]:
        for pieces in (self.base, *self.patches):
            for piece in pieces:
                yield piece.pack

    def blocks_of_last(self, patches: int) -> Numbers:
        """The blocks whose newest bytes are in one of the last so many patches."""
        return np.flatnonzero(self.origins > len(self.patches) - patches)


@dataclass
class Baseline:
    """One snapshot's files.

    `positions`: by segment, up to where its index has the log. `signatures`: of the indexes' files as they were read.
    """

    snapshot_id: str
    seed: int
    files: dict[str, Stored] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    signatures: dict[str, Signature] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sketch = Fingerprinter(self.seed)

    def without_packs(self, packs: Iterable[str]) -> "Baseline":
        """This, less the files that need one of `packs`, and the indexes those belong to."""
        lost = set(packs)
        return self.without(
            [path for path, file in self.files.items() if any(each.sha256 in lost for each in file.packs)]
        )

    def without(self, paths: Iterable[str]) -> "Baseline":
        """This, less these files, and the indexes they belong to."""
        lost = {path.partition("/")[0] for path in paths}
        if not lost:
            return self
        return replace(
            self,
            files={path: file for path, file in self.files.items() if path.partition("/")[0] not in lost},
            positions={segment: seq_id for segment, seq_id in self.positions.items() if segment not in lost},
        )

    def of_index(self, segment_id: str) -> list[Stored]:
        """The files of one index."""
        return [file for path, file in self.files.items() if path.startswith(f"{segment_id}/")]


def nothing() -> Baseline:
    """That of an empty store."""
    return Baseline("", secrets.randbits(64))


def merge(origins: npt.NDArray[np.uint8], count: int, changed: Numbers, patch: int) -> npt.NDArray[np.uint8]:
    """`origins` of a file of now `count` blocks, with `changed` in patch number `patch`, which is the last."""
    result = np.zeros(count, np.uint8)
    common = min(count, len(origins))
    result[:common] = np.minimum(origins[:common], patch)
    result[changed] = patch
    return result


def stored(file: File, packs: tuple[Pack, ...], fingerprints: Fingerprints, origins: npt.NDArray[np.uint8]) -> Stored:
    """A file of a manifest that names `packs`."""

    def known(pieces: Iterable[Piece]) -> tuple[Packed, ...]:
        return tuple(packed(piece, packs) for piece in pieces)

    return Stored(
        path=file.path,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        page_bytes=file.page_bytes,
        layout=Layout(file.layout),
        base=known(file.base),
        patches=tuple(known(patch) for patch in file.patches),
        fingerprints=fingerprints,
        origins=origins,
    )


def listing(files: Iterable[Stored]) -> tuple[tuple[Pack, ...], tuple[File, ...]]:
    """The packs and files of a manifest, by path. Every pack must be sealed."""
    numbers: dict[Pack, int] = {}

    def pieces(of: Iterable[Packed]) -> tuple[Piece, ...]:
        return tuple(
            Piece(
                each.size_bytes, numbers.setdefault(each.pack, len(numbers)), each.offset, each.stored_bytes, each.codec
            )
            for each in of
        )

    listed = tuple(
        File(
            path=file.path,
            size_bytes=file.size_bytes,
            sha256=file.sha256,
            page_bytes=file.page_bytes,
            layout=file.layout.parts,
            base=pieces(file.base),
            patches=tuple(pieces(patch) for patch in file.patches),
        )
        for file in sorted(files, key=lambda file: file.path)
    )
    return tuple(numbers), listed


# ---------------------------------------------------------------------- on disk


def save(path: Path, baseline: Baseline) -> None:
    """Write it, whole or not at all. Raises OSError."""
    arrays: dict[str, npt.NDArray[np.generic]] = {
        _SNAPSHOT: np.array(baseline.snapshot_id),
        _SEED: np.array(baseline.seed, np.uint64),
    }
    for name, file in baseline.files.items():
        arrays[f"fingerprints/{name}"], arrays[f"origins/{name}"] = file.fingerprints, file.origins
    for name, signature in baseline.signatures.items():
        arrays[f"signature/{name}"] = np.array(_lasting(signature), np.int64)
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as opened:
        np.savez(opened, allow_pickle=False, **arrays)
    temporary.rename(path)


def saved_snapshot(path: Path) -> str | None:
    """The id of the snapshot that the file at `path` is of; None if there is none that can be read."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return str(arrays[_SNAPSHOT])
    except Exception:  # a damaged archive raises whatever its readers stumble over
        return None


def load(
    path: Path, manifest: Manifest, segments: Mapping[str, int], signatures: Mapping[str, Signature]
) -> Baseline | None:
    """What `save` wrote for the snapshot of `manifest`; None if it cannot be read, or is of another one.

    `segments` and `signatures` are those of now. An index whose files are other ones than its max_seq_id says has
    no position; none has one if the database is another file.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            if str(arrays[_SNAPSHOT]) != manifest.snapshot.id:
                return None
            baseline = Baseline(manifest.snapshot.id, int(arrays[_SEED]))
            for file in manifest.files:
                baseline.files[file.path] = stored(
                    file, manifest.packs, arrays[f"fingerprints/{file.path}"], arrays[f"origins/{file.path}"]
                )

            def is_same(name: str) -> bool:
                noted = f"signature/{name}"
                return name in signatures and noted in arrays and tuple(arrays[noted]) == _lasting(signatures[name])

            baseline.signatures = {name: each for name, each in signatures.items() if is_same(name)}

            if int(arrays[f"signature/{DATABASE}"][_INODE]) == signatures[DATABASE].inode:
                baseline.positions = {
                    segment_id: position
                    for segment_id, position in manifest.positions.items()
                    if position != segments.get(segment_id)
                    or all(is_same(file.path) for file in baseline.of_index(segment_id))
                }
            return baseline
    except Exception:  # a damaged archive raises whatever its readers stumble over
        return None


def _lasting(signature: Signature) -> tuple[int, int, int]:
    """What of a signature stays the same when only the names of directories change."""
    return signature.mtime_ns, signature.size_bytes, signature.inode


_INODE = 2
