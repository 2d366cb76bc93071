"""Decide, without doing: how to store a file, what to fetch in which order, what is left over. Pure."""

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from gateway.snapshot.model import File, Manifest, Pack, Piece

# Each is bytes that a restore fetches beside those it ends up with, and lines in the manifest.
MAX_PATCHES = 8
# Patches together may have this part of the file's bytes. Then the file is stored anew.
_MAX_PATCHED = 0.5


class How(Enum):
    KEEP = "keep"
    PATCH = "patch"
    REBASE = "rebase"


class FilePlan(NamedTuple):
    """How a file is stored: as it is there, by one more patch, or anew.

    A patch takes the place of the last `replaced` ones, and so has to hold their blocks too.
    """

    how: How
    replaced: int = 0


def plan_file(size_bytes: int, patches: Sequence[int], changed_bytes: int, *, resized: bool) -> FilePlan:
    """How to store a file of `size_bytes`, of which `changed_bytes` are other than in the store.

    `patches`: size in bytes of each patch there is, oldest first. What is merged is at most twice as much as what
    changed, each time doubled, so that a byte is stored again as often as the logarithm of how often the file changed.
    """
    if not changed_bytes and not resized:
        return FilePlan(How.KEEP)
    if changed_bytes + sum(patches) > size_bytes * _MAX_PATCHED:
        return FilePlan(How.REBASE)
    if not changed_bytes:
        return FilePlan(How.KEEP)  # it was only cut
    if len(patches) < MAX_PATCHES:
        return FilePlan(How.PATCH)
    replaced, merged = 0, changed_bytes
    for patch in reversed(patches):
        if patch > 2 * merged and replaced >= MAX_PATCHES // 2:
            break
        replaced, merged = replaced + 1, merged + patch
    return FilePlan(How.PATCH, replaced)


class Part(NamedTuple):
    """A piece of a file: of its patch `number`, which says where its blocks go, or, 0, of its base at `offset`."""

    file: File
    piece: Piece
    number: int
    offset: int


class Fetch(NamedTuple):
    """One pack to get, and the parts to take from it."""

    pack: Pack
    parts: tuple[Part, ...]


def plan_restore(manifest: Manifest) -> tuple[list[Fetch], list[Fetch]]:
    """What to fetch: all patches, then all bases. The order within each is free; each names a pack once."""
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


def unreferenced(names: Iterable[str], manifests: Iterable[Manifest]) -> list[str]:
    """Those packs of `names` that none of `manifests` names."""
    kept = {pack.sha256 for manifest in manifests for pack in manifest.packs}
    return [name for name in names if name not in kept]
