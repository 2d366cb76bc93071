"""Whether the sizes of one HNSW index's files fit each other. `structure` looks at what is in them."""

import pickletools
from pathlib import Path

from gateway.chroma.disk import HEADER, ID_MAP, LENGTH, LEVEL0, LINK_LISTS
from gateway.chroma.header import HEADER_STRUCT, VERSION

_MAX_PART_BYTES = 1 << 20
# The last entry of the id map as this Chroma writes it, empty (`rust/segment/src/local_hnsw.rs`, `persist`),
# and the pickle's end.
_ID_MAP_END = b"X\x0c\x00\x00\x00id_to_seq_id}u."


def element_parts(directory: Path) -> dict[str, tuple[int, ...]]:
    """Sizes in bytes of what the elements of an index's files are made of, by file; those that have none are left out.

    An element of the lowest level has its links, and then its vector and its label, which change apart.
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
    """Why Chroma would not load the index in `directory`; empty if nothing speaks against it.

    An index that was never synced has no id map, and Chroma builds it anew from the log
    (`rust/segment/src/local_hnsw.rs`, `from_segment`): nothing can be wrong with that one.
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
    """Walk `count` lists, each a uint32 of its bytes and then those."""
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
    """Walk it from operation to operation, executing none: an older Chroma's, or a part of one.

    A pickle ends with ".", but so may any piece of it that ends within an id.
    """
    try:
        with path.open("rb") as file:
            for _ in pickletools.genops(file):
                pass
    except ValueError:
        return False
    return True
