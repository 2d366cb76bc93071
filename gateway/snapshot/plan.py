"""Plans: what to store of a changed file, which indexes to read, what to fetch in which order. Pure."""

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from gateway.snapshot.model import File, Manifest, Pack, Piece

# How many patches of a file a new snapshot has. Each adds bytes that a restore fetches beside those it keeps, and lines
# in the manifest. `gateway.snapshot.model` has the larger number that is read.
MAX_PATCHES = 8
# The patches of a file together may have this part of the file's bytes. Past that, the file is stored anew.
_MAX_PATCHED = 0.5

# How fast a restore replays Chroma's log, and how fast a snapshot reads an index. The cheaper of the two is done.
# Measured on one core with 384 dimensions (scripts/bench-snapshot).
REPLAYED_ROWS_PER_S = 600
_READ_BYTES_PER_S = 500e6


# ---------------------------------------------------------------------- how to store a file


class FileAction(Enum):
    """Keep the file as the store has it, add a patch, or store all of it anew."""

    KEEP = "keep"
    PATCH = "patch"
    REBASE = "rebase"


class FilePlan(NamedTuple):
    """How to store a file. A new patch replaces the newest `replaced` ones, so it must hold their blocks too."""

    action: FileAction
    replaced: int = 0


def plan_file(size_bytes: int, patches: Sequence[int] | None, changed_bytes: int, *, resized: bool) -> FilePlan:
    """Plan how to store a file of `size_bytes`, of which `changed_bytes` differ from what the store has.

    `patches`: size in bytes of each patch in the store, oldest first; None if the store does not have the file, or has
    it in another layout. A patch is merged while it is at most twice as large as what was merged before it. So a byte
    is stored again as often as the logarithm of the number of changes.
    """
    if patches is None:
        return FilePlan(FileAction.REBASE)  # there are no blocks that a patch could refer to
    if not changed_bytes and not resized:
        return FilePlan(FileAction.KEEP)
    if changed_bytes + sum(patches) > size_bytes * _MAX_PATCHED:
        return FilePlan(FileAction.REBASE)
    if not changed_bytes:
        return FilePlan(FileAction.KEEP)  # the file was only truncated
    if len(patches) < MAX_PATCHES:
        return FilePlan(FileAction.PATCH)
    replaced, merged = 0, changed_bytes
    for patch in reversed(patches):
        if patch > 2 * merged and replaced >= MAX_PATCHES // 2:
            break
        replaced, merged = replaced + 1, merged + patch
    return FilePlan(FileAction.PATCH, replaced)


# ---------------------------------------------------------------------- which indexes to read


class IndexPlan(NamedTuple):
    """Which indexes must be read, which are worth reading, and the position of each one that the store has."""

    required: list[str]
    optional: list[str]
    positions: dict[str, int]


def plan_indexes(segments: Mapping[str, int], stored: Mapping[str, int], replayable: Collection[str]) -> IndexPlan:
    """Plan which indexes of a cut to read; `optional` is empty.

    `segments`: max_seq_id by segment in the cut. `stored`: position by segment in the store. `replayable`: segments
    for which the log of the cut has every row after the stored position.
    """
    plan = IndexPlan([], [], {})
    for segment_id, seq_id in segments.items():
        position = stored.get(segment_id)
        if position == seq_id or not seq_id:
            plan.positions[segment_id] = seq_id
        elif position is None or position > seq_id or segment_id not in replayable:
            plan.required.append(segment_id)
        else:
            plan.positions[segment_id] = position
    return plan


def is_reading_cheaper(rows_to_replay: int, size_bytes: int) -> bool:
    """Return whether to read an index of `size_bytes` now costs less than to replay `rows_to_replay` at a restore."""
    return rows_to_replay / REPLAYED_ROWS_PER_S > size_bytes / _READ_BYTES_PER_S


# ---------------------------------------------------------------------- what to fetch


class Part(NamedTuple):
    """A piece of a file. `number` is that of its patch, or 0: then the piece lies at `offset` of the base."""

    file: File
    piece: Piece
    number: int
    offset: int


class Fetch(NamedTuple):
    """One pack to fetch, and the parts to take from it."""

    pack: Pack
    parts: tuple[Part, ...]


def plan_restore(manifest: Manifest) -> tuple[list[Fetch], list[Fetch]]:
    """Return what to fetch: first all patches, then all bases. The order within each is free.

    Each of the two lists names a pack at most once.
    """
    patches, bases = dict[int, list[Part]](), dict[int, list[Part]]()
    for file in manifest.files:
        offset = 0
        for piece in file.base:
            bases.setdefault(piece.pack, []).append(Part(file, piece, 0, offset))
            offset += piece.size_bytes
        for number, patch in enumerate(file.patches, 1):
            for piece in patch:
                patches.setdefault(piece.pack, []).append(Part(file, piece, number, 0))

    def fetches(parts: dict[int, list[Part]]) -> list[Fetch]:
        return [Fetch(manifest.packs[pack], tuple(some)) for pack, some in sorted(parts.items())]

    return fetches(patches), fetches(bases)
