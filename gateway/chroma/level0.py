"""`data_level0.bin`: every element of an index with its links, its vector and its label. One read, in chunks.

Holes are never read: after a torn sync or a full disk these files can be hundreds of gigabytes of nothing.
"""

import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gateway.chroma.header import Layout

_CHUNK_BYTES = 8 << 20
_PAGE = 4096
# The absolute value of a float32 as an integer from which on its square overflows. No embedding has such a value;
# of random bytes every second one does.
_IMPLAUSIBLE = 0x5F800000
_LENGTH_TOLERANCE = 1e-3

_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Level0:
    """What was found of each element that lies in data, all arrays of one length, by position in the file.

    number       int64, the element's number, by which links name it
    label        uint64
    is_deleted   marked as deleted: its label is in no id map
    bad_links    it counts more links than there is room for, or links to elements that do not exist
    is_zeroed    a page of zeros lies over it, or a part of it was never written
    implausible  its vector has values that are no numbers, or too large to be squared
    reach        int64, the highest number that it links to
    is_null      its vector has nothing but zeros (looked at where `normalized` alone)

    `missing`: elements of which no byte is there. `read_bytes`: how much was read.
    """

    number: npt.NDArray[np.int64]
    label: npt.NDArray[np.uint64]
    is_deleted: _Flags
    bad_links: _Flags
    is_zeroed: _Flags
    implausible: _Flags
    is_null: _Flags
    reach: npt.NDArray[np.int64]
    missing: int
    read_bytes: int


def data_extents(descriptor: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the file has data, as (start, stop), before `end`. A file system that cannot tell has it everywhere."""
    at, size = 0, min(end, os.fstat(descriptor).st_size)
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # which says that only a hole follows
                yield at, size
            return
        if start >= size:
            return
        at = min(size, os.lseek(descriptor, start, os.SEEK_HOLE))
        yield start, at


def scan_level0(
    path: Path, layout: Layout, count: int, *, link_bound: int | None = None, normalized: bool = False
) -> Level0:
    """Look at `count` elements. Their links must stay below `link_bound`, by default `count`. Raises OSError.

    `normalized`: vectors have the length 1 or 0, as hnswlib stores them for cosine; others are implausible.

    Memory: a chunk of 8 MiB, and about 20 bytes for each element that lies in data.
    """
    size, parts, read_bytes = layout.element_bytes, [], 0
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        file_bytes = os.fstat(descriptor).st_size
        count_there = min(count, file_bytes // size)
        for first, last in _element_ranges(data_extents(descriptor, count_there * size), size, count_there):
            step = max(1, _CHUNK_BYTES // size)
            for start in range(first, last, step):
                stop = min(start + step, last)
                part, read = _scan_chunk(
                    descriptor, layout, start, stop, count if link_bound is None else link_bound, normalized=normalized
                )
                parts.append(part)
                read_bytes += read
    number, label, is_deleted, bad_links, is_zeroed, implausible, is_null, inside, reach = (
        np.concatenate([part[place] for part in parts] or [np.empty(0, kind)])
        for place, kind in enumerate((np.int64, np.uint64, *[bool] * 6, np.int64))
    )
    # Where most vectors have a page of zeros, that is how these vectors are; where few have, they lost it.
    if inside.sum() * 2 < len(inside):
        is_zeroed |= inside
    missing = count - len(number)
    return Level0(number, label, is_deleted, bad_links, is_zeroed, implausible, is_null, reach, missing, read_bytes)


def read_vectors(path: Path, layout: Layout, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The vectors of these elements, which ascend: float32, (len(numbers), dimension). Raises OSError."""
    size = layout.element_bytes
    vectors = np.empty((len(numbers), layout.dimension), np.float32)
    step = max(1, _CHUNK_BYTES // size)
    with path.open("rb", buffering=0) as file:
        done = 0
        while done < len(numbers):
            first = int(numbers[done])
            stop = int(np.searchsorted(numbers, first + step))
            wanted = numbers[done:stop]
            raw = _read(file.fileno(), first * size, (int(wanted[-1]) + 1 - first) * size)
            elements = np.frombuffer(raw, "<f4").reshape(-1, size // 4)
            columns = slice(layout.vector_offset // 4, layout.label_offset // 4)
            vectors[done:stop] = elements[wanted - first, columns]
            done = stop
    return vectors


def _element_ranges(extents: Iterable[tuple[int, int]], size: int, count: int) -> Iterator[tuple[int, int]]:
    """The elements that have data, as ranges that do not overlap."""
    done = 0
    for start, stop in extents:
        first, last = max(done, start // size), min(count, -(-stop // size))
        if first < last:
            yield first, last
            done = last


def _scan_chunk(
    descriptor: int, layout: Layout, start: int, stop: int, link_bound: int, *, normalized: bool
) -> tuple[tuple[npt.NDArray[np.generic], ...], int]:
    size, rows = layout.element_bytes, stop - start
    # From page to page, so that a page of zeros is seen also where it begins in one chunk and ends in the next.
    begin, end = start * size // _PAGE * _PAGE, -(-stop * size // _PAGE) * _PAGE
    raw = _read(descriptor, begin, end - begin)
    body = raw[start * size - begin : stop * size - begin]
    words = np.frombuffer(body, "<u4").reshape(rows, size // 4)
    counts, slots = words[:, 0], 2 * layout.neighbors
    used = counts & 0xFFFF
    # The third byte's lowest bit marks a deleted element (`hnswalg.h`, `markDeletedInternal`).
    bad_links = (used > slots) | (counts & 0xFFFE0000 != 0)
    # Beyond the links in use anything may lie.
    reach = np.where(np.arange(slots) < used[:, None], words[:, 1 : 1 + slots], 0).max(axis=1)
    bad_links |= (used > 0) & (reach >= link_bound)
    vectors = words[:, layout.vector_offset // 4 : layout.label_offset // 4]
    implausible = (vectors & 0x7FFFFFFF).max(axis=1) >= _IMPLAUSIBLE
    is_null = np.zeros(rows, bool)
    if normalized:
        floats = vectors.view("<f4")
        with np.errstate(all="ignore"):
            squares = np.einsum("ij,ij->i", floats, floats)
        is_null = squares == 0
        implausible |= ~(np.abs(squares - 1) <= _LENGTH_TOLERANCE) & ~is_null
    label = words[:, -2].astype(np.uint64) | words[:, -1].astype(np.uint64) << np.uint64(32)
    zeroed, no_links, inside = _zeroed(raw, begin, layout, start, stop)
    bad_links |= no_links
    number, is_deleted, is_zeroed = np.arange(start, stop, dtype=np.int64), counts & 0x10000 != 0, zeroed | (label == 0)
    arrays = (number, label, is_deleted, bad_links, is_zeroed, implausible, is_null, inside, reach.astype(np.int64))
    return arrays, len(raw)


def _zeroed(raw: bytes, begin: int, layout: Layout, start: int, stop: int) -> tuple[_Flags, _Flags, _Flags]:
    """Over which elements a page of zeros lies: over vector and more, over links alone, and within the vector alone.

    No sound element is of the first two kinds.
    """
    zeroed, links, inside = (np.zeros(stop - start, bool) for _ in range(3))
    pages = np.frombuffer(raw, "<u8", count=len(raw) // _PAGE * (_PAGE // 8)).reshape(-1, _PAGE // 8)
    empty = np.flatnonzero(~pages.any(axis=1))
    for page in (begin + empty * _PAGE).tolist():
        first, last = page // layout.element_bytes, (page + _PAGE - 1) // layout.element_bytes
        place, end = page - first * layout.element_bytes, page + _PAGE - last * layout.element_bytes
        if first == last and place >= 4 and place + _PAGE <= layout.label_offset:
            inside[max(0, first - start) : max(0, last + 1 - start)] = True
            continue
        if end <= layout.vector_offset:
            links[max(0, last - start) : max(0, last + 1 - start)] = True
            last -= 1
        zeroed[max(0, first - start) : max(0, last + 1 - start)] = True
    return zeroed, links, inside


def _read(descriptor: int, offset: int, size: int) -> bytes:
    parts: list[bytes] = []
    while size and (part := os.pread(descriptor, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
