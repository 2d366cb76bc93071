"""Catch one cut of a running Chroma, and read of it what the store does not have.

The cut itself is the database at one moment, held fast by a reader while writes go on. An index need not
be of that moment: with the log that the database keeps, an older one does (`gateway.chroma.log`). So an
index is read after the cut, at leisure, and counts if nothing moved in it meanwhile; if something did, the
one that the store has already serves. Nothing here opens or closes the gate: `create` does.
"""

import asyncio
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gateway.aio import run_in_thread_uninterrupted
from gateway.chroma import log
from gateway.chroma.disk import DATABASE, Signature, index_signatures
from gateway.chroma.hnsw import element_parts
from gateway.chroma.pages import DatabaseCut, PageTracker
from gateway.snapshot.baseline import Baseline, Stored, merge
from gateway.snapshot.blocks import (
    Fingerprints,
    Layout,
    Numbers,
    changed_blocks,
    digest_of_pages,
    page_digests,
    patches,
)
from gateway.snapshot.packing import PIECE_BYTES, TIGHT, PackWriter
from gateway.snapshot.plan import FilePlan, How, plan_file

_READ_BYTES = 4 << 20

# What a restore costs where an index is older than the database, and what reading the index costs a
# snapshot; of the two the cheaper is done. Measured on one core with 384 dimensions (scripts/bench-snapshot).
_REPLAYED_ROWS_PER_S = 600
_READ_BYTES_PER_S = 500e6


@dataclass(slots=True)
class Cut:
    """One moment: the database, and the indexes that were synced since the baseline's."""

    database: DatabaseCut
    segments: dict[str, int] = field(default_factory=dict)
    """max_seq_id by live vector segment"""
    signatures: dict[str, Signature] = field(default_factory=dict)
    """of the files of indexes that the baseline does not have as they are now"""

    def close(self) -> None:
        self.database.close()


def freeze(data_dir: Path, tracker: PageTracker, baseline: Baseline) -> Cut:
    """Lock SQLite, hold this moment fast, look at the indexes, unlock. Blocks, for milliseconds.

    The gate must be closed and drained. Raises QuiesceTimeout.
    """
    segments: dict[str, int] = {}
    signatures: dict[str, Signature] = {}

    def look(database: DatabaseCut) -> None:
        segments.update(database.segments())
        synced = [each for each, seq_id in segments.items() if seq_id and seq_id != baseline.positions.get(each)]
        signatures.update(index_signatures(data_dir, synced))

    return Cut(tracker.cut(look), segments, signatures)


class Choice(NamedTuple):
    """Which indexes must be read, which are worth reading, and the positions of those that the store has."""

    must: list[str]
    may: list[str]
    positions: dict[str, int]


def choose(cut: Cut, baseline: Baseline) -> Choice:
    """Decide which indexes of the cut to read. Blocks."""
    choice = Choice([], [], {})
    behind: dict[str, int] = {}
    # Asked of the log itself: what is remembered of it may be older than its last trim.
    whole = log.whole_after(cut.database, baseline.positions) if cut.database.keeps_log else set()
    for segment_id, seq_id in cut.segments.items():
        have = baseline.positions.get(segment_id)
        if have == seq_id or not seq_id:
            choice.positions[segment_id] = seq_id
        elif have is None or have > seq_id or segment_id not in whole:
            choice.must.append(segment_id)
        else:
            choice.positions[segment_id] = behind[segment_id] = have
    if behind:
        rows = log.rows_after(cut.database, behind)
        for segment_id in behind:
            size = sum(each.size_bytes for path, each in cut.signatures.items() if path.startswith(segment_id))
            if rows[segment_id] / _REPLAYED_ROWS_PER_S > size / _READ_BYTES_PER_S:
                choice.may.append(segment_id)
    return choice


# ---------------------------------------------------------------------- reading


async def read_index(
    data_dir: Path, cut: Cut, segment_id: str, baseline: Baseline, packs: PackWriter
) -> list[Stored] | None:
    """Pack what the store does not have of an index; None if it moved since the cut.

    Returns its files as they are in the store then.
    """
    files = []
    mine = [path for path in sorted(cut.signatures) if path.startswith(f"{segment_id}/")]
    before = {path: cut.signatures[path] for path in mine}
    try:
        parts = await asyncio.to_thread(element_parts, data_dir / segment_id)
        for path in mine:
            layout = Layout(parts.get(path.rpartition("/")[2], (4096,)))
            source = _FileSource(data_dir / path, layout, baseline)
            files.append(await _store(path, source, layout, baseline.files.get(path), packs))
    except (FileNotFoundError, _Moved):
        return None
    await packs.seal()
    now = await asyncio.to_thread(index_signatures, data_dir, [segment_id])
    # Times alone do not tell what happened within a tick of the kernel's clock.
    synced = await run_in_thread_uninterrupted(log.synced_to, data_dir)
    return files if mine and now == before and synced.get(segment_id) == cut.segments[segment_id] else None


async def read_database(cut: DatabaseCut, baseline: Baseline, packs: PackWriter) -> Stored:
    """Pack what the store does not have of the database; return it as it is in the store then."""
    layout = Layout((cut.page_bytes,))
    stored = await _store(DATABASE, _DatabaseSource(cut), layout, baseline.files.get(DATABASE), packs)
    await packs.seal()
    return stored


async def _store(
    path: str, source: "_FileSource | _DatabaseSource", layout: Layout, have: Stored | None, packs: PackWriter
) -> Stored:
    if have is not None and have.layout != layout:
        have = None
    # To its end: what is read from must not be closed under a thread that reads.
    look = await run_in_thread_uninterrupted(source.look, have)
    base, held, origins = have.base if have else (), have.patches if have else (), have.origins if have else None
    if have is None or origins is None:
        plan = FilePlan(How.REBASE)
    else:
        _, lengths = layout.spans(look.changed, look.size_bytes)
        resized = look.size_bytes != have.size_bytes
        plan = plan_file(look.size_bytes, have.patch_bytes, int(lengths.sum()), resized=resized)
    count = len(look.fingerprints)
    if plan.how is How.REBASE or have is None or origins is None:
        base, held = tuple(await packs.add(source.whole())), ()
        origins = np.zeros(count, np.uint8)
    elif plan.how is How.PATCH:
        numbers = look.changed
        if plan.replaced:
            older = have.blocks_of_last(plan.replaced)
            numbers = np.union1d(numbers, older[older < count])
            held = held[: -plan.replaced]
        blocks = zip(numbers.tolist(), source.blocks(numbers), strict=True)
        added = await packs.add(patches(blocks, PIECE_BYTES), TIGHT)
        held = (*held, tuple(added))
        origins = merge(origins, count, numbers, len(held))
    else:
        origins = origins[:count]
    return Stored(path, look.size_bytes, look.sha256, source.page_bytes, layout, base, held, look.fingerprints, origins)


class _Look(NamedTuple):
    """What a file is like now, and which of its blocks are other than in the store."""

    size_bytes: int
    sha256: str
    fingerprints: Fingerprints
    changed: Numbers


class _Moved(Exception):
    """A file became shorter while it was read."""


class _FileSource:
    """A file of an index. Blocks."""

    page_bytes = None

    def __init__(self, path: Path, layout: Layout, baseline: Baseline) -> None:
        self._path, self._layout, self._sketch = path, layout, baseline.sketch

    def look(self, have: Stored | None) -> _Look:
        digest, found, size = hashlib.sha256(), [np.empty((0, 2), np.uint64)], 0
        at_once = max(1, _READ_BYTES // self._layout.period_bytes) * self._layout.period_bytes
        with self._path.open("rb", 0) as file:
            while data := _read(file.fileno(), at_once, size):
                digest.update(data)
                found.append(self._sketch.of(data, self._layout))
                size += len(data)
        fingerprints = np.concatenate(found)
        changed = changed_blocks(have.fingerprints if have else found[0], fingerprints)
        return _Look(size, digest.hexdigest(), fingerprints, changed)

    def whole(self) -> Iterator[bytes]:
        offset = 0
        with self._path.open("rb", 0) as file:
            while data := _read(file.fileno(), PIECE_BYTES, offset):
                offset += len(data)
                yield data

    def blocks(self, numbers: Numbers) -> Iterator[bytes]:
        with self._path.open("rb", 0) as file:
            size = os.fstat(file.fileno()).st_size
            offsets, lengths = self._layout.spans(numbers, size)
            for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
                block = os.pread(file.fileno(), length, offset)
                if not block or len(block) != length:
                    raise _Moved
                yield block


class _DatabaseSource:
    """The pages of a cut. Blocks."""

    def __init__(self, cut: DatabaseCut) -> None:
        self._cut = cut
        self.page_bytes = cut.page_bytes

    def look(self, have: Stored | None) -> _Look:
        cut = self._cut
        if have is None or cut.changed is None:
            digests = np.concatenate([page_digests(data, cut.page_bytes) for data in cut.read_all()])
            changed = changed_blocks(have.fingerprints if have else digests[:0], digests)
        else:
            digests = np.zeros((cut.pages, 2), np.uint64)
            common = min(cut.pages, len(have.fingerprints))
            digests[:common] = have.fingerprints[:common]
            # All that is new was written, so it is in the log; but for pages that nothing uses.
            listed = {*cut.changed, *range(common + 1, cut.pages + 1)}
            changed = np.array(sorted(number - 1 for number in listed if number <= cut.pages), np.int64)
            for number, page in zip(changed.tolist(), self.blocks(changed), strict=True):
                digests[number] = page_digests(page, cut.page_bytes)[0]
            same = (digests[changed[changed < common]] == have.fingerprints[changed[changed < common]]).all(axis=1)
            changed = np.concatenate((changed[changed < common][~same], changed[changed >= common]))
        return _Look(cut.size_bytes, digest_of_pages(digests), digests, changed)

    def whole(self) -> Iterator[bytes]:
        return self._cut.read_all()

    def blocks(self, numbers: Numbers) -> Iterator[bytes]:
        return self._cut.read((numbers + 1).tolist())


def _read(descriptor: int, size: int, offset: int) -> bytes:
    """`size` bytes, less only at the end of the file: blocks are told by where they begin."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data
