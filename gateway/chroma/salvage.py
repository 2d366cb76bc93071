"""The vectors of a torn index, by record id: out of `data_level0.bin`, where each lies beside its label.

The id map tells the label of an id. Where it is lost too, the order may tell it: chromadb 1.x gives out labels in the
order of its log, and rows of `embeddings` in the same order (`rust/segment/src/local_hnsw.rs`, `apply_log_chunk`;
`rust/segment/src/sqlite_metadata.rs`). That is believed only where the numbers of both agree and vectors that are known
from elsewhere lie where the order says. Blocking; nothing is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gateway.chroma.disk import ID_MAP, LENGTH, LEVEL0
from gateway.chroma.header import Header, Layout, read_header
from gateway.chroma.id_map import IdMap, read_id_map
from gateway.chroma.lengths import read_lengths
from gateway.chroma.level0 import Level0, read_vectors, scan_level0
from gateway.chroma.segments import COSINE, Segment

_TOLERANCE = 1e-5
# If more lengths than this part of them cannot be, none of the file is believed.
_LENGTHS_LOST = 0.05


@dataclass(frozen=True, slots=True)
class Order:
    """A moment at which the files may have been written, so that the order of records tells their labels.

    `vectors`: what the index had then, of some records, from rows of its log: float32 by id. `is_complete`: it had all
    records that there are; else it may lack the last ones.
    """

    vectors: Mapping[str, npt.NDArray[np.float32]]
    is_complete: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the records of a collection without its index.

    `live`: the sequence id that last changed each record, in the order in which records were first added. `orders`: the
    likeliest first; none where labels are in another order (chromadb before 1.0).
    """

    live: Mapping[str, int]
    orders: Sequence[Order] = ()


@dataclass(frozen=True, slots=True)
class Salvage:
    """What can be read out of the files of one index.

    `numbers` (int64), `labels` (uint64) and `lengths` (float32, for cosine, else None) go with `ids`, which are in the
    order in which the records were added. `highest_label` is that of all elements. `doubtful`: their vector may be an
    earlier one, since the file is older than the database says. `unscaled`: of cosine, their direction is known and
    their length lost; it is given as 1. `by_order`: ids of which the order alone told the label.
    """

    directory: Path
    layout: Layout
    ids: list[str]
    numbers: npt.NDArray[np.int64]
    labels: npt.NDArray[np.uint64]
    highest_label: int
    lengths: npt.NDArray[np.float32] | None
    doubtful: frozenset[str]
    unscaled: frozenset[str]
    by_order: frozenset[str]

    def vectors(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """The vectors of `ids[start:stop]` as they are stored, normalized for cosine: float32, (n, dimension)."""
        numbers = self.numbers[start:stop]
        order = np.argsort(numbers)
        found = read_vectors(self.directory / LEVEL0, self.layout, numbers[order])
        placed = np.empty_like(found)
        placed[order] = found
        return placed


def salvage_index(directory: Path, segment: Segment, evidence: Evidence) -> Salvage | None:
    """Read what can be read of the index of `segment` in `directory`; None if nothing can.

    Reads the file of vectors once. Memory: as `check_index`. Raises nothing for damage.
    """
    header = _trusted_header(directory, segment)
    if header is None and segment.dimension is None:
        return None
    layout = header.layout if header else Layout(segment.neighbors, segment.dimension or 0)
    try:
        count = (directory / LEVEL0).stat().st_size // layout.element_bytes
        id_map = _id_map(directory)
        bound = max(count, header.elements if header else 0, *id_map.id_to_label.values(), 0)
        normalized = segment.space == COSINE
        level0 = scan_level0(directory / LEVEL0, layout, count, link_bound=bound, normalized=normalized)
    except OSError:
        return None
    labels = {each: label for each, label in id_map.id_to_label.items() if each in evidence.live}
    end = _end_of_older(level0, id_map)
    place = _places(level0, header, end, id_map)
    by_order: frozenset[str] = frozenset()
    if len(labels) < len(evidence.live) and not level0.missing:
        ordered = (
            _labels_by_order(directory, segment, layout, level0, header, labels, evidence.live, order)
            for order in evidence.orders
        )
        found = next(filter(None, ordered), {})
        by_order = frozenset(found.keys() - labels.keys())
        labels = found | labels
    ids = [each for each in evidence.live if labels.get(each) in place]
    places = np.array([place[labels[each]] for each in ids], np.int64)
    numbers = level0.number[places] if ids else np.empty(0, np.int64)
    lengths, unscaled = None, frozenset[str]()
    if segment.space == COSINE:
        lengths, unscaled = _lengths(directory, ids, numbers, level0.is_null[places] if ids else np.empty(0, bool))
    doubtful = frozenset[str]()
    if end is not None:
        # The newest label that the file has says how many rows of the log it had at least.
        newest = int(level0.label[list(place.values())].max(initial=0))
        doubtful = frozenset(each for each, seq_id in evidence.live.items() if seq_id > newest)
    believed = ~level0.is_zeroed & (level0.label <= _highest_label(level0))
    if header:
        believed &= level0.number < header.elements
    return Salvage(
        directory,
        layout,
        ids,
        numbers,
        level0.label[places] if ids else np.empty(0, np.uint64),
        int(level0.label[believed].max(initial=0)),
        lengths,
        doubtful,
        unscaled,
        by_order,
    )


def _trusted_header(directory: Path, segment: Segment) -> Header | None:
    try:
        header = read_header(directory)
    except OSError:
        return None
    fits = header and not header.problems() and segment.dimension in (None, header.layout.dimension)
    return header if fits else None


def _id_map(directory: Path) -> IdMap:
    try:
        return read_id_map(directory / ID_MAP)
    except OSError:
        return IdMap({}, {}, None, None, None, is_whole=False, is_object=False)


def _places(level0: Level0, header: Header | None, end: int | None, id_map: IdMap) -> dict[int, int]:
    """Where the element of each label lies in `level0`, of elements before `end` whose vector can be believed."""
    # The mark of a deleted element is a bit of its links. Where those are nonsense, a whole id map knows better.
    is_deleted = level0.is_deleted & ~(level0.bad_links & id_map.is_whole)
    usable = ~(is_deleted | level0.is_zeroed | level0.implausible)
    # Where one element's label and the next one's links are both nonsense, something wrote across them: what lies
    # between may be of it. Links alone may be nonsense: their vectors are whole.
    nonsense = level0.label > _highest_label(level0)
    usable[1:] &= ~(level0.bad_links[1:] & nonsense[:-1])
    usable &= ~nonsense
    if end is not None:
        usable &= level0.number < end
    places = np.flatnonzero(usable)
    # Beyond the elements lies what was in memory, perhaps with the same labels. Elements and labels are counted alike,
    # so that a label of the id map belongs to one of as many elements as it counts. What goes last wins.
    added = id_map.total_elements_added or 0
    counted = (level0.number[places] < added).astype(np.int8)
    if header:
        counted += level0.number[places] < header.elements
    places = places[np.argsort(counted, kind="stable")]
    return dict(zip(level0.label[places].tolist(), places.tolist(), strict=True))


def _highest_label(level0: Level0) -> int:
    """No sound file has a label higher than that: labels are given out one by one, at most a few are skipped."""
    return 4 * len(level0.label) + 1000 if len(level0.label) else 0


def _labels_by_order(
    directory: Path,
    segment: Segment,
    layout: Layout,
    level0: Level0,
    header: Header | None,
    known: Mapping[str, int],
    live: Mapping[str, int],
    order: Order,
) -> dict[str, int]:
    """The label of each id by the order of both; empty where anything speaks against it, or nothing for it."""
    counted = level0.number < (header.elements if header else len(level0.number))
    if (level0.is_zeroed & counted).any():
        return {}
    at = np.flatnonzero(counted & ~level0.is_deleted)
    at = at[np.argsort(level0.label[at])]
    labels = level0.label[at].tolist()
    there = set(labels)
    if len(there) != len(labels) or len(labels) > len(live) or (order.is_complete and len(labels) < len(live)):
        return {}
    # Those that the index does not have yet come last, and the log has them.
    found = dict(zip(live, labels, strict=False))
    if any(found.get(each) != label for each, label in known.items() if label in there):
        return {}
    numbers = dict(zip(labels, level0.number[at].tolist(), strict=True))
    witnesses = sorted((numbers[found[each]], each) for each in order.vectors if each in found)
    vectors = read_vectors(directory / LEVEL0, layout, np.array([number for number, _ in witnesses], np.int64))
    for vector, (_, each) in zip(vectors, witnesses, strict=True):
        if not is_same_vector(vector, order.vectors[each], segment.space):
            return {}
    return found if known or witnesses else {}


def is_same_vector(stored: npt.NDArray[np.float32], given: npt.NDArray[np.float32], space: str) -> bool:
    if space != COSINE:
        return bool(np.array_equal(stored, given))
    length = float(np.linalg.norm(given))
    return bool(np.allclose(stored, given / length if length else given, atol=_TOLERANCE))


def _end_of_older(level0: Level0, id_map: IdMap) -> int | None:
    """How many elements the file had when it was written, if it is older than the id map; None if it is not.

    It lacks the newest labels then, and elements link to those before the end alone. Where the end of a file is lost,
    elements that are left link to those that are not. What lies beyond the end of a small older file is what was in
    memory, perhaps elements of another index (`hnswalg.h`, `initPersistentIndex`).
    """
    believed = np.flatnonzero(~level0.is_zeroed & ~level0.bad_links & (level0.label <= _highest_label(level0)))
    if not len(believed) or not id_map.id_to_label:
        return None
    numbers = level0.number[believed]
    reached = np.maximum.accumulate(np.maximum(level0.reach[believed], numbers[0]))
    end = 0
    while (further := int(reached[max(0, int(np.searchsorted(numbers, end)) - 1)]) + 1) > end:
        end = further
    if end > numbers[-1] + 1:
        return None
    newest = int(level0.label[believed[numbers < end]].max(initial=0))
    return end if newest < max(id_map.id_to_label.values()) else None


def _lengths(
    directory: Path, ids: list[str], numbers: npt.NDArray[np.int64], is_null: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float32], frozenset[str]]:
    try:
        lengths, possible = read_lengths(directory / LENGTH, numbers)
    except OSError:
        lengths, possible = np.ones(len(ids), np.float32), np.zeros(len(ids), bool)
    possible |= is_null
    if (~possible).sum() > _LENGTHS_LOST * len(ids) and _is_damaged(directory, numbers):
        possible = is_null.copy()
    lengths = np.where(possible, lengths, np.float32(1))
    return lengths, frozenset(each for each, known in zip(ids, possible.tolist(), strict=True) if not known)


def _is_damaged(directory: Path, numbers: npt.NDArray[np.int64]) -> bool:
    """Whether lengths are nonsense among those that are there: else the file is only cut off."""
    try:
        size = (directory / LENGTH).stat().st_size // 4
        _, possible = read_lengths(directory / LENGTH, numbers[numbers < size])
    except OSError:
        return True
    return bool((~possible).sum() > _LENGTHS_LOST * max(1, len(possible)))
