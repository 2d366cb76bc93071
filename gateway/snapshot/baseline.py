"""The baseline: what the store has of the data directory. The next snapshot stores what differs from it.

A baseline is one snapshot's files. For each file it holds the pieces in the store, and a fingerprint of each block. The
fingerprints are kept on disk too (`.gateway/baseline`), so that a gateway that restarts, or that just restored a
snapshot, need not store everything anew. The baseline may be older than the newest snapshot. Then the next snapshot
stores what changed since the baseline. Without a baseline, everything is stored again.
"""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gateway.chroma.disk import DATABASE, Signature
from gateway.files import durable_file
from gateway.snapshot.blocks import Fingerprinter, Fingerprints, Layout, Numbers
from gateway.snapshot.model import File, Manifest, Pack, Piece
from gateway.snapshot.packing import PackedPiece, packed_piece

Origins = npt.NDArray[np.uint8]
"""uint8, (n_blocks,): for each block of a file the number of the newest patch that has it, or 0 for the base."""

_SNAPSHOT, _SEED, _SOUND = "snapshot", "seed", "sound"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as it is in the store."""

    path: str
    size_bytes: int
    sha256: str
    page_bytes: int | None
    layout: Layout
    base: tuple[PackedPiece, ...]
    patches: tuple[tuple[PackedPiece, ...], ...]
    fingerprints: Fingerprints
    origins: Origins

    @property
    def patch_bytes(self) -> list[int]:
        """The size of each patch, oldest first."""
        return [sum(piece.size_bytes for piece in patch) for patch in self.patches]

    @property
    def packs(self) -> Iterable[Pack]:
        """The pack of each piece."""
        for pieces in (self.base, *self.patches):
            for piece in pieces:
                yield piece.pack

    def blocks_of_last(self, patches: int) -> Numbers:
        """The blocks whose newest bytes are in one of the last `patches` patches."""
        return np.flatnonzero(self.origins > len(self.patches) - patches)


@dataclass
class Baseline:
    """The files of one snapshot. `seed` is that of the fingerprints.

    `positions`: by segment, the position in Chroma's log up to which its index holds it. Of indexes that are not torn.
    `signatures`: by path, those of the index files at the time they were read.
    `sound`: the segments whose index is known to have every record too, see `Manifest.sound`.
    """

    snapshot_id: str
    seed: int
    files: dict[str, StoredFile] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    signatures: dict[str, Signature] = field(default_factory=dict)
    sound: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.fingerprinter = Fingerprinter(self.seed)

    def without_packs(self, packs: Iterable[str]) -> "Baseline":
        """Return this without the files that need one of `packs`, and without the indexes of those files."""
        lost = set(packs)
        return self.without(
            [path for path, file in self.files.items() if any(each.sha256 in lost for each in file.packs)]
        )

    def without(self, paths: Iterable[str]) -> "Baseline":
        """Return this without the files at `paths`, and without the indexes of those files."""
        lost = {path.partition("/")[0] for path in paths}
        if not lost:
            return self
        return replace(
            self,
            files={path: file for path, file in self.files.items() if path.partition("/")[0] not in lost},
            positions={segment: seq_id for segment, seq_id in self.positions.items() if segment not in lost},
        )

    def index_files(self, segment_id: str) -> list[StoredFile]:
        """The files of one index."""
        return [file for path, file in self.files.items() if path.startswith(f"{segment_id}/")]


def empty_baseline() -> Baseline:
    """Return the baseline of an empty store, with a new seed."""
    return Baseline("", secrets.randbits(64))


def merge_origins(origins: Origins, count: int, changed: Numbers, patch: int) -> Origins:
    """Return the origins after the blocks `changed` went into patch number `patch`, which is the newest one now.

    The file has `count` blocks now.
    """
    result = np.zeros(count, np.uint8)
    common = min(count, len(origins))
    result[:common] = np.minimum(origins[:common], patch)
    result[changed] = patch
    return result


# ---------------------------------------------------------------------- from and into a manifest


def stored_file(file: File, packs: tuple[Pack, ...], fingerprints: Fingerprints, origins: Origins) -> StoredFile:
    """Return a file of a manifest that names `packs`."""

    def packed(pieces: Iterable[Piece]) -> tuple[PackedPiece, ...]:
        return tuple(packed_piece(piece, packs) for piece in pieces)

    return StoredFile(
        path=file.path,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        page_bytes=file.page_bytes,
        layout=Layout(file.layout),
        base=packed(file.base),
        patches=tuple(packed(patch) for patch in file.patches),
        fingerprints=fingerprints,
        origins=origins,
    )


def manifest_files(files: Iterable[StoredFile]) -> tuple[tuple[Pack, ...], tuple[File, ...]]:
    """Return the packs of a manifest, and its files by path. Every pack must be sealed."""
    numbers: dict[Pack, int] = {}

    def pieces(packed: Iterable[PackedPiece]) -> tuple[Piece, ...]:
        return tuple(
            Piece(
                each.size_bytes, numbers.setdefault(each.pack, len(numbers)), each.offset, each.stored_bytes, each.codec
            )
            for each in packed
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
    """Write the baseline to `path` durably, all of it or nothing. Raises DiskFull or GatewayError."""
    arrays: dict[str, npt.NDArray[np.generic]] = {
        _SNAPSHOT: np.array(baseline.snapshot_id),
        _SEED: np.array(baseline.seed, np.uint64),
        _SOUND: np.array(sorted(baseline.positions), np.str_),
    }
    for name, file in baseline.files.items():
        arrays[f"fingerprints/{name}"], arrays[f"origins/{name}"] = file.fingerprints, file.origins
    for name, signature in baseline.signatures.items():
        arrays[f"signature/{name}"] = np.array(_without_ctime(signature), np.int64)
    with durable_file(path) as opened:
        np.savez(opened, allow_pickle=False, **arrays)


def saved_snapshot_id(path: Path) -> str | None:
    """Return the id of the snapshot whose baseline is at `path`, None if there is none that can be read."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return str(arrays[_SNAPSHOT])
    except Exception:  # numpy and zipfile raise many kinds of errors for a damaged archive
        return None


def load(
    path: Path, manifest: Manifest, segments: Mapping[str, int], signatures: Mapping[str, Signature]
) -> Baseline | None:
    """Return the baseline that `save` wrote for the snapshot of `manifest`.

    None if the file cannot be read, or belongs to another snapshot. `segments` (max_seq_id by segment) and `signatures`
    are the present ones. An index has no position if its files changed although its max_seq_id did not. If the database
    was replaced by another file, no index has a position. Nor has one that is not known to be sound in the store.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            if str(arrays[_SNAPSHOT]) != manifest.snapshot.id:
                return None
            baseline = Baseline(manifest.snapshot.id, int(arrays[_SEED]), sound=manifest.sound)
            for file in manifest.files:
                baseline.files[file.path] = stored_file(
                    file, manifest.packs, arrays[f"fingerprints/{file.path}"], arrays[f"origins/{file.path}"]
                )

            def is_unchanged(name: str) -> bool:
                saved = f"signature/{name}"
                return (
                    name in signatures and saved in arrays and tuple(arrays[saved]) == _without_ctime(signatures[name])
                )

            baseline.signatures = {name: each for name, each in signatures.items() if is_unchanged(name)}

            sound = set(arrays[_SOUND].tolist()) if _SOUND in arrays else set()
            if int(arrays[f"signature/{DATABASE}"][_INODE]) == signatures[DATABASE].inode:
                baseline.positions = {
                    segment_id: position
                    for segment_id, position in manifest.positions.items()
                    if segment_id in sound
                    and (
                        position != segments.get(segment_id)
                        or all(is_unchanged(file.path) for file in baseline.index_files(segment_id))
                    )
                }
            return baseline
    except Exception:  # numpy and zipfile raise many kinds of errors for a damaged archive
        return None


def _without_ctime(signature: Signature) -> tuple[int, int, int]:
    """What stays the same when a directory above the file is renamed."""
    return signature.mtime_ns, signature.size_bytes, signature.inode


_INODE = 2
