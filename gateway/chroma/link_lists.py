"""`link_lists.bin`: the links of the upper levels, one list for each element, most of them empty."""

import bisect
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gateway.chroma.disk import LINK_LISTS
from gateway.chroma.header import Header

# Levels are drawn so that one element in M has more than the lowest (`hnswalg.h`, `getRandomLevel`).
_MAX_LEVELS = 64
_MAX_LEVELS_ON_AVERAGE = 4


_Ints = npt.NDArray[np.int64]


class BrokenLists(Exception):
    """The lists cannot be followed to their end."""


def check_link_lists(directory: Path, header: Header) -> tuple[list[tuple[str, str]], int]:
    """What is wrong with the upper levels, as (code, message), and how many bytes were read. Raises OSError.

    Memory: about three times the file, which is a hundredth of the index. A file larger than its elements allow is
    not read.
    """
    path, row_words = directory / LINK_LISTS, header.layout.list_words
    size = path.stat().st_size
    most = 4 * header.elements + 4 * row_words * (_MAX_LEVELS + _MAX_LEVELS_ON_AVERAGE * header.elements)
    if size > most:
        return [
            (
                "link-lists-size",
                f"{LINK_LISTS} has {size} bytes ({path.stat().st_blocks * 512} on the disk), "
                f"the lists of {header.elements} elements need less than {most}",
            )
        ], 0
    words = np.fromfile(path, "<u4")
    try:
        owners, starts, levels, end = _walk(words, header.elements, row_words)
    except BrokenLists as broken:
        return [("link-lists-broken", str(broken))], size
    problems = []
    if size != end * 4:
        problems.append(("link-lists-end", f"{LINK_LISTS} has {size} bytes, its lists end at {end * 4}"))
    level_of = np.zeros(header.elements, np.int64)
    level_of[owners] = levels
    bad = sum(
        _bad_rows(words, starts[levels > level], level, level_of, header) for level in range(levels.max(initial=0))
    )
    if bad:
        problems.append(("upper-links", f"{bad} lists of the upper levels link to elements that do not exist there"))
    top = int(levels.max(initial=0))
    if header.elements and (header.max_level != top or level_of[header.entry] != top):
        problems.append(
            (
                "entry-point",
                f"searches begin at element {header.entry} on level {header.max_level}, "
                f"which has {level_of[header.entry]} levels of {top}",
            )
        )
    return problems, size


def _walk(words: npt.NDArray[np.uint32], count: int, row_words: int) -> tuple[_Ints, _Ints, _Ints, int]:
    """Elements with upper levels, where their rows begin, how many they have; and where the lists end, in words."""
    heads = np.flatnonzero(words).tolist()  # an empty list is one word of zeros
    owners, starts, levels = [], [], []
    element = at = nearest = 0
    while element < count:
        nearest = bisect.bisect_left(heads, at, nearest)
        empty = min((heads[nearest] if nearest < len(heads) else len(words)) - at, count - element)
        element, at = element + empty, at + empty
        if element == count:
            break
        if at >= len(words):
            raise BrokenLists(f"{LINK_LISTS} ends at byte {at * 4}, before the list of element {element} of {count}")
        found, rest = divmod(int(words[at]), row_words * 4)
        if rest or found > _MAX_LEVELS:
            raise BrokenLists(f"{LINK_LISTS} has a list of {words[at]} bytes at byte {at * 4}, which cannot be")
        if at + 1 + found * row_words > len(words):
            raise BrokenLists(f"{LINK_LISTS} ends within the list of element {element} of {count}")
        owners.append(element)
        starts.append(at + 1)
        levels.append(found)
        element, at = element + 1, at + 1 + found * row_words
    return np.array(owners, np.int64), np.array(starts, np.int64), np.array(levels, np.int64), at


def _bad_rows(words: npt.NDArray[np.uint32], starts: _Ints, level: int, level_of: _Ints, header: Header) -> int:
    """How many rows of one upper level link to what is not there, or is not on that level."""
    row_words = header.layout.list_words
    rows = words[starts[:, None] + level * row_words + np.arange(row_words)]
    used, targets = rows[:, 0], rows[:, 1:]
    in_use = np.arange(row_words - 1) < used[:, None]
    exists = targets < header.elements
    # hnswlib follows a link to the target's list of the same level without asking whether it has one.
    is_there = exists & (level_of[np.where(exists, targets, 0)] > level)
    return int(((used > header.neighbors) | (in_use & ~is_there).any(axis=1)).sum())
