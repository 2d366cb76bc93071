"""Decide, without doing: what to read again, what to fetch, what is left over. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from gateway.snapshot.model import Block, Manifest, Pack


class Placement(NamedTuple):
    """One block and where it belongs: at `offset` of the file at `path`."""

    block: Block
    path: str
    offset: int


class Fetch(NamedTuple):
    """One pack to get and what to do with its blocks, in the pack's order."""

    pack: Pack
    placements: tuple[Placement, ...]


def plan_restore(manifest: Manifest) -> list[Fetch]:
    """Every pack that holds something, once, with all that is to be taken from it."""
    by_pack: dict[int, list[Placement]] = defaultdict(list)
    for file in manifest.files:
        offset = 0
        for block in file.blocks:
            by_pack[block.pack].append(Placement(block, file.path, offset))
            offset += block.size_bytes
    return [
        Fetch(manifest.packs[number], tuple(sorted(placements, key=lambda placement: placement.block.offset)))
        for number, placements in sorted(by_pack.items())
    ]


def moved(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """The names whose value is new or another than before, in order."""
    return sorted(name for name, value in now.items() if before.get(name) != value)


def unreferenced(packs: Iterable[Pack], others: Iterable[Manifest]) -> list[Pack]:
    """Those of `packs` that no manifest of `others` names."""
    kept = {pack.sha256 for manifest in others for pack in manifest.packs}
    return [pack for pack in packs if pack.sha256 not in kept]
