"""The header of an HNSW index, and what follows from it for the other files.

Little-endian, as Chroma's fork of hnswlib writes it (`hnswlib/hnswalg.h`, `HEADER_FIELDS`, `persistHeader`):
version int32; offsetLevel0, max_elements, cur_element_count, size_data_per_element, label_offset, offsetData: uint64;
maxlevel int32; enterpoint uint32; maxM, maxM0, M: uint64; mult double; ef_construction uint64.

An element of `data_level0.bin` is its links (a uint32 that counts them, and room for 2 x M), its vector (float32) and
its label (uint64). A list of `link_lists.bin` is a uint32 of its bytes, and per upper level a uint32 that counts the
links and room for M.
"""

import math
import struct
from pathlib import Path
from typing import NamedTuple

from gateway.chroma.disk import HEADER, LEVEL0

HEADER_STRUCT = struct.Struct("<i6QiI3QdQ")
VERSION = 1
_MAX_NEIGHBORS = 1 << 14  # a count of links has 16 bits, and the lowest level has twice as many
_MAX_DIMENSION = 1 << 20


class Layout(NamedTuple):
    """How elements are laid out: it follows from M (`neighbors`) and the dimension alone. Offsets are in bytes."""

    neighbors: int
    dimension: int

    @property
    def vector_offset(self) -> int:
        return 4 + 2 * self.neighbors * 4

    @property
    def label_offset(self) -> int:
        return self.vector_offset + 4 * self.dimension

    @property
    def element_bytes(self) -> int:
        return self.label_offset + 8

    @property
    def list_words(self) -> int:
        """uint32 words of one upper level of one element."""
        return 1 + self.neighbors


class Header(NamedTuple):
    """The fields of `header.bin` under names that say what they are. `max_level` is -1 while there is no element."""

    version: int
    level0_offset: int
    capacity: int
    elements: int
    element_bytes: int
    label_offset: int
    vector_offset: int
    max_level: int
    entry: int
    neighbors_upper: int
    neighbors_level0: int
    neighbors: int
    level_factor: float
    ef_construction: int

    @property
    def layout(self) -> Layout:
        return Layout(self.neighbors, (self.label_offset - self.vector_offset) // 4)

    def problems(self) -> list[str]:
        """What the fields contradict each other in; empty if the layout can be trusted."""
        if self.version != VERSION:
            return [f"{HEADER} is of version {self.version}, known is {VERSION}"]
        found = []
        if not 1 <= self.neighbors <= _MAX_NEIGHBORS:
            return [f"{HEADER} says {self.neighbors} neighbors for each element"]
        if (self.neighbors_upper, self.neighbors_level0) != (self.neighbors, 2 * self.neighbors):
            found.append(
                f"{HEADER} says {self.neighbors} neighbors, by level {self.neighbors_upper} and {self.neighbors_level0}"
            )
        layout = self.layout
        if not 1 <= layout.dimension <= _MAX_DIMENSION:
            found.append(f"{HEADER} says {layout.dimension} dimensions")
        told = (self.level0_offset, self.vector_offset, self.label_offset, self.element_bytes)
        if told != (0, layout.vector_offset, layout.label_offset, layout.element_bytes):
            found.append(f"{HEADER} says that parts of an element begin at {told[:3]} and that it has {told[3]} bytes")
        if self.neighbors > 1 and not math.isclose(self.level_factor, 1 / math.log(self.neighbors), rel_tol=1e-6):
            found.append(f"{HEADER} says a level factor of {self.level_factor:g} for {self.neighbors} neighbors")
        if self.elements > self.capacity:
            found.append(f"{HEADER} counts {self.elements} elements in room for {self.capacity}")
        if self.elements and self.entry >= self.elements:
            found.append(f"{HEADER} begins searches at element {self.entry} of {self.elements}")
        return found


def read_header(directory: Path) -> Header | None:
    """The header of the index in `directory`, None if the file is too short. Raises OSError."""
    with (directory / HEADER).open("rb") as file:
        raw = file.read(HEADER_STRUCT.size)
    return Header(*HEADER_STRUCT.unpack(raw)) if len(raw) == HEADER_STRUCT.size else None


def element_parts(directory: Path) -> dict[str, tuple[int, ...]]:
    """Sizes in bytes of the parts of one element, by file. Empty if the header cannot be used.

    An element of `data_level0.bin` has two parts that change independently: its links, then its vector with its label.
    """
    try:
        header = read_header(directory)
    except FileNotFoundError:
        return {}
    if header is None or header.problems():
        return {}
    layout = header.layout
    return {LEVEL0: (layout.vector_offset, layout.element_bytes - layout.vector_offset)}
