"""Whether the sizes of one HNSW index's files fit each other. `structure` checks their contents."""

import pickletools
from pathlib import Path

from gateway.chroma.disk import HEADER, ID_MAP, LENGTH, LEVEL0, LINK_LISTS
from gateway.chroma.header import HEADER_STRUCT, VERSION

_MAX_PART_BYTES = 1 << 20
# The end of the id map as Chroma 1.x writes it (`rust/segment/src/local_hnsw.rs`, `IdMap`): the last field, which is
# always empty, and the end of the pickle.
_ID_MAP_END = b"X\x0c\x00\x00\x00id_to_seq_id}u."


def element_parts(directory: Path) -> dict[str, tuple[int, ...]]:
    """Sizes in bytes of the parts of one element, by file. Empty if the header cannot be used.

    An element of `data_level0.bin` has two parts that change independently: its links, then its vector with its label.
    """
    try:
        with (directory / HEADER).open("rb") as header:
            raw = header.read(HEADER_STRUCT.size)
    except FileNotFoundError:
        return {}
    if len(raw) < HEADER_STRUCT.size:
        return {}
    version, _, _, _, element_bytes, _, vector_offset, *_ = HEADER_STRUCT.unpack_from(raw)
    parts = (vector_offset, element_bytes - vector_offset)
    sane = version == VERSION and all(0 < part <= _MAX_PART_BYTES and part % 4 == 0 for part in parts)
    return {LEVEL0: parts} if sane else {}


def index_problems(directory: Path) -> list[str]:
    """Reasons why Chroma would not load the index in `directory`. Empty if none was found.

    An index without an id map was never synced. Chroma ignores its files and rebuilds it from the log
    (docs/chroma-internals.md, "An index without an id map is rebuilt"), so it has no problems.
    """
    id_map = directory / ID_MAP
    if not id_map.exists():
        return []
    missing = [name for name in (HEADER, LEVEL0, LENGTH, LINK_LISTS) if not (directory / name).exists()]
    if missing:
        return [f"{name} is missing" for name in missing]
    with (directory / HEADER).open("rb") as header:
        raw = header.read(HEADER_STRUCT.size)
    if len(raw) < HEADER_STRUCT.size:
        return [f"{HEADER} has {len(raw)} bytes of {HEADER_STRUCT.size}"]
    version, _, capacity, count, element_bytes, *_ = HEADER_STRUCT.unpack_from(raw)
    if version != VERSION:
        return [f"{HEADER} is of version {version}, known is {VERSION}"]
    problems = []
    if count and not element_bytes:
        problems.append(f"{HEADER} says that an element has no bytes")
    if count > capacity:
        problems.append(f"{HEADER} counts {count} elements in room for {capacity}")
    for name, needed in ((LEVEL0, count * element_bytes), (LENGTH, count * 4)):
        size = (directory / name).stat().st_size
        if size < needed:
            problems.append(f"{name} has {size} bytes, {count} elements need {needed}")
    if not _link_lists_hold(directory / LINK_LISTS, count):
        problems.append(f"{LINK_LISTS} ends before the lists of {count} elements do")
    if not _ends_with(id_map, _ID_MAP_END) and not _is_whole_pickle(id_map):
        problems.append(f"{ID_MAP} is cut off")
    return problems


def _link_lists_hold(path: Path, count: int) -> bool:
    """Whether the file holds `count` lists. A list is a uint32 with its length in bytes, then its bytes."""
    size, position = path.stat().st_size, 0
    with path.open("rb") as file:
        for _ in range(count):
            head = file.read(4)
            if len(head) < 4:
                return False
            length = int.from_bytes(head, "little")
            position += 4 + length
            if position > size:
                return False
            if length:
                file.seek(length, 1)
    return True


def _ends_with(path: Path, end: bytes) -> bool:
    with path.open("rb") as file:
        if path.stat().st_size < len(end):
            return False
        file.seek(-len(end), 2)
        return file.read() == end


def _is_whole_pickle(path: Path) -> bool:
    """Whether the file is a whole pickle, such as an older Chroma wrote. Parses its operations and executes none.

    The last byte does not tell: a pickle ends with ".", and so may a truncated one that ends within an id.
    """
    try:
        with path.open("rb") as file:
            for _ in pickletools.genops(file):
                pass
    except ValueError:
        return False
    return True
