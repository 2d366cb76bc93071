"""Make one cut of a running Chroma, and pack what the store does not have of it.

A cut is the database at one moment. A reader holds that moment while writes go on. An index need not be of the same
moment: the database keeps Chroma's log, so an older index and the rows after it give the same records
(`gateway.chroma.log`). So indexes are read after the cut, without holding writes. What was read of an index is used if
none of its files changed meanwhile. If one did, the older index in the store may serve instead. This module does not
open or close the gate: `gateway.snapshot.create` does.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gateway.aio import run_in_thread_uninterrupted
from gateway.chroma import log
from gateway.chroma.disk import DATABASE, Signature, index_signatures
from gateway.chroma.header import element_parts
from gateway.chroma.pages import DatabaseCut, PageTracker
from gateway.snapshot.baseline import Baseline, StoredFile, merge_origins
from gateway.snapshot.blocks import (
    Fingerprints,
    Layout,
    Numbers,
    changed_blocks,
    digest_of_pages,
    encode_patches,
    page_digests,
)
from gateway.snapshot.packing import PIECE_BYTES, TIGHT, PackedPiece, PackWriter
from gateway.snapshot.plan import FileAction, IndexPlan, is_reading_cheaper, plan_file, plan_indexes

_READ_BYTES = 4 << 20
_DEFAULT_BLOCK_BYTES = 4096


@dataclass(slots=True)
class Cut:
    """One moment of the data directory: the database, and the indexes that Chroma synced since the baseline."""

    database: DatabaseCut
    segments: dict[str, int] = field(default_factory=dict)
    """max_seq_id by live vector segment"""
    signatures: dict[str, Signature] = field(default_factory=dict)
    """by path, for the files of indexes that differ from the baseline's"""
    journal: int | None = None
    """The number of the journal's newest cut before this one; see `Manifest.journal`"""

    def signatures_of(self, segment_id: str) -> dict[str, Signature]:
        """The signatures of one index's files."""
        return {path: self.signatures[path] for path in sorted(self.signatures) if path.startswith(f"{segment_id}/")}

    @property
    def size_bytes(self) -> int:
        """Size of the database and of the indexes that differ from the baseline's."""
        return self.database.size_bytes + sum(each.size_bytes for each in self.signatures.values())

    def close(self) -> None:
        self.database.close()


def freeze(
    data_dir: Path, tracker: PageTracker, baseline: Baseline, journal: Callable[[], int | None] = lambda: None
) -> Cut:
    """Lock SQLite, open a reader at this moment, note the signatures of the indexes, unlock.

    `journal` returns the number of the journal's newest cut. Blocks, for milliseconds. The gate must be closed and
    drained. Raises QuiesceTimeout.
    """
    segments: dict[str, int] = {}
    signatures: dict[str, Signature] = {}
    number: int | None = None

    def note_indexes(database: DatabaseCut) -> None:
        nonlocal number
        number = journal()
        segments.update(database.segments())
        synced = [each for each, seq_id in segments.items() if seq_id and seq_id != baseline.positions.get(each)]
        signatures.update(index_signatures(data_dir, synced))

    return Cut(tracker.cut(note_indexes), segments, signatures, number)


def plan_cut(cut: Cut, baseline: Baseline) -> IndexPlan:
    """Decide which indexes of the cut to read. Blocks."""
    # This asks the log itself. The baseline may be older than the last trim of the log.
    replayable = log.whole_after(cut.database, baseline.positions) if cut.database.keeps_log else set()
    plan = plan_indexes(cut.segments, baseline.positions, replayable)
    lagging = {each: position for each, position in plan.positions.items() if position != cut.segments[each]}
    if lagging:
        rows = log.rows_after(cut.database, lagging)
        for segment_id in lagging:
            size_bytes = sum(each.size_bytes for each in cut.signatures_of(segment_id).values())
            if is_reading_cheaper(rows[segment_id], size_bytes):
                plan.optional.append(segment_id)
    return plan


# ---------------------------------------------------------------------- packing what the store does not have


async def read_index(
    data_dir: Path, cut: Cut, segment_id: str, baseline: Baseline, packs: PackWriter
) -> list[StoredFile] | None:
    """Pack what the store does not have of an index. Return its files, as the store has them then.

    Returns None if a file of it changed since the cut, or if it has no files.
    """
    files = []
    before = cut.signatures_of(segment_id)
    try:
        parts = await asyncio.to_thread(element_parts, data_dir / segment_id)
        for path in before:
            layout = Layout(parts.get(path.rpartition("/")[2], (_DEFAULT_BLOCK_BYTES,)))
            source = _IndexFileReader(data_dir / path, layout, baseline)
            files.append(await _store_file(path, source, layout, baseline.files.get(path), packs))
    except (FileNotFoundError, _FileChanged):
        return None
    await packs.seal()
    after = await asyncio.to_thread(index_signatures, data_dir, [segment_id])
    # Time stamps alone do not show a change within one tick of the kernel's clock.
    synced = await run_in_thread_uninterrupted(log.synced_to, data_dir)
    unchanged = after == before and synced.get(segment_id) == cut.segments[segment_id]
    return files if before and unchanged else None


async def read_database(cut: DatabaseCut, baseline: Baseline, packs: PackWriter) -> StoredFile:
    """Pack what the store does not have of the database. Return it as the store has it then."""
    layout = Layout((cut.page_bytes,))
    stored = await _store_file(DATABASE, _DatabaseReader(cut), layout, baseline.files.get(DATABASE), packs)
    await packs.seal()
    return stored


async def _store_file(
    path: str,
    source: "_IndexFileReader | _DatabaseReader",
    layout: Layout,
    stored: StoredFile | None,
    packs: PackWriter,
) -> StoredFile:
    """Pack what differs from `stored`, which is the file as the store has it."""
    if stored is not None and stored.layout != layout:
        stored = None  # its blocks cannot be compared
    # Uninterrupted: the caller may close what a thread still reads from.
    scan = await run_in_thread_uninterrupted(source.scan, stored)
    _, lengths = layout.spans(scan.changed, scan.size_bytes)
    plan = plan_file(
        scan.size_bytes,
        stored.patch_bytes if stored else None,
        int(lengths.sum()),
        resized=stored is None or scan.size_bytes != stored.size_bytes,
    )
    count = len(scan.fingerprints)
    held: tuple[tuple[PackedPiece, ...], ...] = ()
    if plan.action is FileAction.REBASE or stored is None:  # the second for the type checker: the plan has it
        base = tuple(await packs.add(source.read_all()))
        origins = np.zeros(count, np.uint8)
    elif plan.action is FileAction.PATCH:
        numbers = scan.changed
        if plan.replaced:
            older = stored.blocks_of_last(plan.replaced)
            numbers = np.union1d(numbers, older[older < count])
        blocks = zip(numbers.tolist(), source.read_blocks(numbers), strict=True)
        added = await packs.add(encode_patches(blocks, PIECE_BYTES), TIGHT)
        base, held = stored.base, (*stored.patches[: len(stored.patches) - plan.replaced], tuple(added))
        origins = merge_origins(stored.origins, count, numbers, len(held))
    else:
        base, held, origins = stored.base, stored.patches, stored.origins[:count]
    return StoredFile(
        path, scan.size_bytes, scan.sha256, source.page_bytes, layout, base, held, scan.fingerprints, origins
    )


# ---------------------------------------------------------------------- reading


def scan_database(cut: DatabaseCut, known: Fingerprints | None) -> Fingerprints:
    """Return the digest of every page of the cut: uint64, (n_pages, 2). Blocks.

    `known`: the digests at the mark's last kept cut. Without them, or where it is not known what changed since, every
    page is read.
    """
    if known is None or cut.changed is None:
        return np.concatenate([page_digests(data, cut.page_bytes) for data in cut.read_all()])
    digests = np.zeros((cut.pages, 2), np.uint64)
    common = min(cut.pages, len(known))
    digests[:common] = known[:common]
    # New pages were written, so SQLite's log lists them. It does not list new pages that nothing uses.
    listed = {*cut.changed, *range(common + 1, cut.pages + 1)}
    numbers = sorted(number for number in listed if number <= cut.pages)
    at_once = max(1, PIECE_BYTES // cut.page_bytes)
    for first in range(0, len(numbers), at_once):
        some = numbers[first : first + at_once]
        digests[np.array(some) - 1] = page_digests(b"".join(cut.read(some)), cut.page_bytes)
    return digests


class _Scan(NamedTuple):
    """A file as it is now. `changed`: the blocks that differ from what the store has."""

    size_bytes: int
    sha256: str
    fingerprints: Fingerprints
    changed: Numbers


class _FileChanged(Exception):
    """A file became shorter while it was read."""


class _IndexFileReader:
    """Reads one file of an index. Blocks."""

    page_bytes = None

    def __init__(self, path: Path, layout: Layout, baseline: Baseline) -> None:
        self._path, self._layout, self._fingerprinter = path, layout, baseline.fingerprinter

    def scan(self, stored: StoredFile | None) -> _Scan:
        """Read all of the file and compare it with `stored`."""
        digest, found, size = hashlib.sha256(), [np.empty((0, 2), np.uint64)], 0
        at_once = max(1, _READ_BYTES // self._layout.period_bytes) * self._layout.period_bytes
        with self._path.open("rb", 0) as file:
            while data := _read(file.fileno(), at_once, size):
                digest.update(data)
                found.append(self._fingerprinter.fingerprint(data, self._layout))
                size += len(data)
        fingerprints = np.concatenate(found)
        changed = changed_blocks(stored.fingerprints if stored else found[0], fingerprints)
        return _Scan(size, digest.hexdigest(), fingerprints, changed)

    def read_all(self) -> Iterator[bytes]:
        """The file in pieces."""
        offset = 0
        with self._path.open("rb", 0) as file:
            while data := _read(file.fileno(), PIECE_BYTES, offset):
                offset += len(data)
                yield data

    def read_blocks(self, numbers: Numbers) -> Iterator[bytes]:
        """The blocks `numbers`. Raises _FileChanged."""
        with self._path.open("rb", 0) as file:
            size = os.fstat(file.fileno()).st_size
            offsets, lengths = self._layout.spans(numbers, size)
            for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
                block = os.pread(file.fileno(), length, offset)
                if not block or len(block) != length:
                    raise _FileChanged
                yield block


class _DatabaseReader:
    """Reads the database of a cut. Blocks."""

    def __init__(self, cut: DatabaseCut) -> None:
        self._cut = cut
        self.page_bytes = cut.page_bytes

    def scan(self, stored: StoredFile | None) -> _Scan:
        """Read the pages that changed, or all pages if that is not known, and compare them with `stored`."""
        digests = scan_database(self._cut, stored.fingerprints if stored else None)
        changed = changed_blocks(stored.fingerprints if stored else digests[:0], digests)
        return _Scan(self._cut.size_bytes, digest_of_pages(digests), digests, changed)

    def read_all(self) -> Iterator[bytes]:
        """The database in pieces."""
        return self._cut.read_all()

    def read_blocks(self, numbers: Numbers) -> Iterator[bytes]:
        """The pages `numbers`, from 0."""
        return self._cut.read((numbers + 1).tolist())


def _read(descriptor: int, size: int, offset: int) -> bytes:
    """Read `size` bytes, fewer only at the end of the file. A short read elsewhere would shift the blocks after it."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data
