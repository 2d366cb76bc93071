"""Files as blocks: where each one lies, what changed, and how a patch is written. Pure.

A file's *layout* is a pattern of block sizes that repeats until its end: SQLite's page; of an HNSW
element its links and its vector, which change apart from each other; 4 KiB of anything else. Blocks
are numbered from 0. A *patch* holds some blocks of a file:

    count: uint32, numbers: count uint32 (each less the one before), then the blocks' bytes in that order

all little-endian.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.errors import CorruptSnapshot

Numbers = npt.NDArray[np.int64]
Fingerprints = npt.NDArray[np.uint64]
"""(n_blocks, 2)"""

_WORD_BYTES = 4
_COUNT_BYTES = 4
# Past the end of every file, and what is computed of it fits into 64 bits.
_FAR = 1 << 62


class Layout(NamedTuple):
    """Block sizes in bytes, repeating."""

    parts: tuple[int, ...]

    @property
    def period_bytes(self) -> int:
        return sum(self.parts)

    def count(self, size_bytes: int) -> int:
        """How many blocks a file of `size_bytes` has; the last one may be cut short."""
        whole, rest = divmod(size_bytes, self.period_bytes)
        count = whole * len(self.parts)
        for part in self.parts:
            if rest <= 0:
                break
            count, rest = count + 1, rest - part
        return count

    def span(self, number: int, size_bytes: int) -> tuple[int, int]:
        """Offset and length of block `number` in a file of `size_bytes`; no length past its end."""
        period, part = divmod(number, len(self.parts))
        offset = period * self.period_bytes + sum(self.parts[:part])
        return offset, max(0, min(self.parts[part], size_bytes - offset))

    def spans(self, numbers: Numbers, size_bytes: int) -> tuple[Numbers, Numbers]:
        """Offsets and lengths of the blocks `numbers`."""
        period, part = np.divmod(numbers, len(self.parts))
        sizes = np.array(self.parts, np.int64)
        starts = np.cumsum(sizes) - sizes
        offsets = period * self.period_bytes + starts[part]
        return offsets, np.clip(size_bytes - offsets, 0, sizes[part])


class Fingerprinter:
    """Fingerprints for telling which blocks of a file changed.

    Two sums of products with secret random factors, modulo 2⁶⁴: two different blocks of the same size
    have the same pair with a probability below 2⁻⁶⁴, whoever chose them without knowing the factors.
    Three times as fast as SHA-256 where blocks are small. Not a digest to be kept or shown.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._factors: dict[int, npt.NDArray[np.uint64]] = {}

    def of(self, data: bytes | memoryview, layout: Layout) -> Fingerprints:
        """Of every block in `data`, which begins with a whole period; the last block may be cut short."""
        period = layout.period_bytes
        whole, rest = divmod(len(data), period)
        if rest:
            count = layout.count(len(data))
            _, last = layout.span(count - 1, len(data))
            fingerprints = self.of(bytes(data) + bytes(period - rest), layout)[:count]
            if last < layout.parts[(count - 1) % len(layout.parts)]:
                # A block that is cut short is not the one that goes on with zeros.
                fingerprints[-1] ^= np.uint64(last)
            return fingerprints
        words = np.frombuffer(data, "<u4").reshape(whole, period // _WORD_BYTES).astype(np.uint64)
        result = np.empty((whole, len(layout.parts), 2), np.uint64)
        first = 0
        for index, part in enumerate(layout.parts):
            last = first + part // _WORD_BYTES
            for which, factors in enumerate(self._factors_for(period)):
                result[:, index, which] = np.einsum("ij,j->i", words[:, first:last], factors[first:last])
            first = last
        return result.reshape(-1, 2)

    def _factors_for(self, period: int) -> npt.NDArray[np.uint64]:
        if period not in self._factors:
            generator = np.random.default_rng([self.seed, period])
            self._factors[period] = generator.integers(0, 1 << 64, (2, period // _WORD_BYTES), np.uint64)
        return self._factors[period]


def page_digests(data: bytes | memoryview, page_bytes: int) -> Fingerprints:
    """The first 16 bytes of the SHA-256 of every page in `data`, (n_pages, 2) uint64."""
    view = memoryview(data)
    digests = b"".join(
        hashlib.sha256(view[offset : offset + page_bytes]).digest()[:16] for offset in range(0, len(view), page_bytes)
    )
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


def digest_of_pages(digests: Fingerprints) -> str:
    """The digest of a file by pages: the SHA-256 of its pages' digests in order."""
    return hashlib.sha256(np.ascontiguousarray(digests).tobytes()).hexdigest()


def changed_blocks(before: Fingerprints, now: Fingerprints) -> Numbers:
    """Numbers of the blocks that are new, or other than before."""
    common = min(len(before), len(now))
    changed = np.flatnonzero((before[:common] != now[:common]).any(axis=1))
    return np.concatenate((changed, np.arange(common, len(now))))


# ---------------------------------------------------------------------- patches


def patches(blocks: Iterable[tuple[int, bytes]], limit_bytes: int) -> Iterator[bytes]:
    """Patches of `blocks`, given with their numbers in order, each with about `limit_bytes` of them."""
    numbers: list[int] = []
    data = bytearray()
    for number, block in blocks:
        numbers.append(number)
        data += block
        if len(data) >= limit_bytes:
            yield _patch(numbers, data)
            numbers, data = [], bytearray()
    if numbers:
        yield _patch(numbers, data)


def _patch(numbers: list[int], data: bytearray) -> bytes:
    steps = np.diff(np.array(numbers, np.int64), prepend=0).astype("<u4")
    return len(numbers).to_bytes(_COUNT_BYTES, "little") + steps.tobytes() + bytes(data)


def parse_patch(
    patch: bytes | memoryview, layout: Layout, size_bytes: int, written: npt.NDArray[np.bool_] | None = None
) -> tuple[Numbers, Iterator[tuple[int, memoryview]]]:
    """The numbers of the blocks in `patch`, and what to write where: (offset, bytes).

    The file is `size_bytes` long by now, and may have been longer when the patch was made: what lies past its end
    is left out. So are blocks that are `written`, one bool per block of the file. Raises CorruptSnapshot.
    """
    count = int.from_bytes(patch[:_COUNT_BYTES], "little")
    first = _COUNT_BYTES + count * _WORD_BYTES
    if len(patch) < first:
        raise CorruptSnapshot("a patch is cut off")
    numbers = np.cumsum(np.frombuffer(patch[_COUNT_BYTES:first], "<u4").astype(np.int64))
    if count and int(numbers[-1]) * layout.period_bytes >= _FAR:
        raise CorruptSnapshot("a patch names blocks of no file")
    # What was stored of each: all of it, save for a last block that was cut short by the file's end then.
    offsets, lengths = layout.spans(numbers, _FAR)
    if count:
        lengths[-1] += len(patch) - first - int(lengths.sum())
        if lengths[-1] <= 0 or lengths[-1] > max(layout.parts):
            raise CorruptSnapshot("a patch does not hold the blocks it names")
    starts = np.cumsum(lengths) - lengths
    if written is not None:
        wanted = numbers >= len(written)
        wanted[~wanted] = ~written[numbers[~wanted]]
        numbers, starts, offsets, lengths = (each[wanted] for each in (numbers, starts, offsets, lengths))
    return numbers, _writes(memoryview(patch)[first:], starts, offsets, lengths, size_bytes)


def parse_base(
    base: bytes | memoryview, layout: Layout, size_bytes: int, offset: int, written: npt.NDArray[np.bool_]
) -> Iterator[tuple[int, memoryview]]:
    """What to write where of `base`, which lies at `offset` of the file: (offset, bytes).

    Left out is what lies past `size_bytes`, and every block that is `written`, one bool per block of the file.
    """
    view, end = memoryview(base), min(offset + len(base), size_bytes)
    first, last = (byte // layout.period_bytes * len(layout.parts) for byte in (offset, end + layout.period_bytes))
    starts, lengths = layout.spans(np.flatnonzero(written[first:last]) + first, _FAR)
    position = offset
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        if position < min(start, end):
            yield position, view[position - offset : min(start, end) - offset]
        position = max(position, start + length)
    if position < end:
        yield position, view[position - offset : end - offset]


def _writes(
    data: memoryview, starts: Numbers, offsets: Numbers, lengths: Numbers, size_bytes: int
) -> Iterator[tuple[int, memoryview]]:
    """Blocks that follow each other, in the data and in the file, are written at once."""
    ends = offsets + lengths
    breaks = np.flatnonzero((offsets[1:] != ends[:-1]) | (np.diff(starts) != lengths[:-1])) + 1
    for run in np.split(np.arange(len(offsets)), breaks):
        if not len(run):
            continue
        offset, start = int(offsets[run[0]]), int(starts[run[0]])
        length = min(int(ends[run[-1]]), size_bytes) - offset
        if length > 0:
            yield offset, data[start : start + length]
