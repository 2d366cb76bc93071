"""The id map of an index, `index_metadata.pickle`: which label of the HNSW index belongs to which record id.

chromadb 1.x writes a dict with `serde_pickle`, protocol 3 (`rust/segment/src/local_hnsw.rs`, `IdMap`).
0.4 to 0.6 write an object of the class `PersistentData`, in Python's newest protocol
(`chromadb/segment/impl/vector/local_persistent_hnsw.py`). Both have the fields `dimensionality`,
`total_elements_added`, `max_seq_id`, `id_to_label`, `label_to_id` and `id_to_seq_id`.

A pickle is a program, and Python's unpickler runs it. This reader knows the few operations that build strings, numbers
and dicts, and stops at any other. It also returns what a damaged file holds up to the damage.
"""

import os
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# Longer than any id that Chroma's body limit lets in; random bytes may claim gigabytes.
_MAX_STRING_BYTES = 1 << 22
_CLASS: Final = ("chromadb.segment.impl.vector.local_persistent_hnsw", "PersistentData")
_INT32, _UINT32 = struct.Struct("<i"), struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class IdMap:
    """What was read. `is_whole`: the file is one complete id map; else the entries are those before the damage.

    `is_object`: as chromadb 0.4 to 0.6 write it.
    """

    id_to_label: Mapping[str, int]
    label_to_id: Mapping[int, str]
    total_elements_added: int | None
    max_seq_id: int | None
    dimensionality: int | None
    is_whole: bool
    is_object: bool


def read_id_map(path: Path) -> IdMap:
    """Read an id map of any chromadb from 0.4 on. Raises OSError if the file cannot be read.

    Memory: the file and its two dicts. A hole in the file is where reading ends.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            data_end = min(size, os.lseek(file.fileno(), 0, os.SEEK_HOLE)) if size else 0
        except OSError:
            data_end = size
        # One byte of the hole is enough to know that the file does not end here.
        data = os.pread(file.fileno(), min(size, data_end + 1), 0)
        while len(data) < min(size, data_end + 1):  # a read returns at most 2 GiB
            more = os.pread(file.fileno(), min(size, data_end + 1) - len(data), len(data))
            if not more:
                break
            data += more
    return parse_id_map(data)


def parse_id_map(data: bytes) -> IdMap:
    """As `read_id_map`, of bytes."""
    reader = _Reader(data)
    ended = reader.run()
    fields = reader.fields(ended)
    id_to_label = _entries(fields, "id_to_label", str, int)
    label_to_id = _entries(fields, "label_to_id", int, str)
    is_whole = ended and isinstance(fields.get("id_to_label"), dict) and isinstance(fields.get("label_to_id"), dict)
    return IdMap(
        id_to_label,
        label_to_id,
        _int(fields, "total_elements_added"),
        _int(fields, "max_seq_id"),
        _int(fields, "dimensionality"),
        is_whole,
        reader.is_object,
    )


def new_id_map(id_to_label: Mapping[str, int], total_elements_added: int) -> bytes:
    """The bytes of an id map as chromadb 1.x reads it."""
    fields = {
        "dimensionality": None,
        "total_elements_added": total_elements_added,
        "max_seq_id": None,
        "id_to_label": dict(id_to_label),
        "label_to_id": {label: each for each, label in id_to_label.items()},
        "id_to_seq_id": {},
    }
    return pickle.dumps(fields, protocol=3)


def old_id_map(
    id_to_label: Mapping[str, int],
    seq_ids: Mapping[str, int],
    dimensionality: int,
    max_seq_id: int,
    total_elements_added: int = 0,
) -> bytes:
    """The bytes of an id map as chromadb 0.4 to 0.6 read it; 1.x reads it too."""
    fields = {
        "dimensionality": dimensionality,
        "total_elements_added": max(total_elements_added, *id_to_label.values()),
        "max_seq_id": max_seq_id,
        "id_to_label": dict(id_to_label),
        "label_to_id": {label: each for each, label in id_to_label.items()},
        "id_to_seq_id": {each: seq_ids.get(each, max_seq_id) for each in id_to_label},
    }
    state = pickle.dumps(fields, protocol=3)
    module, name = _CLASS
    # PROTO 3, GLOBAL, EMPTY_TUPLE, NEWOBJ, the state without its own PROTO and STOP, BUILD, STOP.
    return b"\x80\x03c" + f"{module}\n{name}\n".encode() + b")\x81" + state[2:-1] + b"b."


def _entries(fields: Mapping[str, Any], name: str, key_type: type, value_type: type) -> dict[Any, Any]:
    """The entries of the dict `name` that have these types."""
    found = fields.get(name)
    if not isinstance(found, dict):
        return {}
    if {key_type}.issuperset(map(type, found)) and {value_type}.issuperset(map(type, found.values())):
        return found  # as they nearly always are
    return {key: value for key, value in found.items() if type(key) is key_type and type(value) is value_type}


def _int(fields: Mapping[str, Any], name: str) -> int | None:
    found = fields.get(name)
    return found if type(found) is int else None


class _Reader:
    """A stack machine for the operations that an id map is made of (Python's `Lib/pickletools.py` describes each)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._top: dict[Any, Any] | None = None
        self.is_object = False

    def fields(self, ended: bool) -> dict[Any, Any]:
        """The outermost dict, with the entries that were read of it and of the dicts in it.

        Unless the reading `ended` well, without the last entry: the damage may begin within its number.
        """
        is_last = not ended
        while self._marks:
            pairs = self._stack[self._marks[-1] :]
            if len(pairs) % 2:
                self._stack.pop()
            elif is_last:
                del self._stack[-2:]
            is_last = False
            try:
                self._set_items()
            except (IndexError, TypeError):
                break
        return self._top or {}

    def run(self) -> bool:
        """Run to the end; return whether it is one, with nothing after it."""
        try:
            end = self._run()
        except (IndexError, KeyError, TypeError, ValueError, struct.error):  # UnicodeDecodeError is a ValueError
            return False
        return end == len(self._data) and not self._marks

    def _run(self) -> int:  # noqa: PLR0912, PLR0915  # one case an operation, the most frequent first
        data, stack, at, size = self._data, self._stack, 0, len(self._data)
        length_at, int_at = _UINT32.unpack_from, _INT32.unpack_from
        while True:
            operation = data[at]
            at += 1
            if operation == 0x58:  # BINUNICODE, written out: there are two to an id
                start = at + 4
                at = start + length_at(data, at)[0]
                if at > size or at - start > _MAX_STRING_BYTES:
                    raise ValueError
                stack.append(data[start:at].decode())
            elif operation == 0x4A:  # BININT
                stack.append(int_at(data, at)[0])
                at += 4
            elif operation == 0x8C:  # SHORT_BINUNICODE
                text, at = self._string(at, 1)
                stack.append(text)
            elif operation == 0x94:  # MEMOIZE
                self._memo[len(self._memo)] = stack[-1]
            elif operation == 0x4B:  # BININT1
                stack.append(data[at])
                at += 1
            elif operation == 0x4D:  # BININT2
                stack.append(int.from_bytes(data[at : at + 2], "little"))
                at += 2
            elif operation == 0x68:  # BINGET
                stack.append(self._memo[data[at]])
                at += 1
            elif operation == 0x6A:  # LONG_BINGET
                stack.append(self._memo[int.from_bytes(data[at : at + 4], "little")])
                at += 4
            elif operation == 0x71:  # BINPUT
                self._memo[data[at]] = stack[-1]
                at += 1
            elif operation == 0x72:  # LONG_BINPUT
                self._memo[int.from_bytes(data[at : at + 4], "little")] = stack[-1]
                at += 4
            elif operation == 0x28:  # MARK
                self._marks.append(len(stack))
            elif operation == 0x75:  # SETITEMS
                self._set_items()
            elif operation == 0x73:  # SETITEM
                value, key = stack.pop(), stack.pop()
                self._target()[key] = value
            elif operation == 0x7D:  # EMPTY_DICT
                made: dict[Any, Any] = {}
                self._top = made if self._top is None else self._top
                stack.append(made)
            elif operation == 0x4E:  # NONE
                stack.append(None)
            elif operation == 0x8A:  # LONG1
                length = data[at]
                stack.append(int.from_bytes(data[at + 1 : at + 1 + length], "little", signed=True))
                at += 1 + length
            elif operation == 0x95:  # FRAME
                at += 8
            elif operation == 0x80:  # PROTO
                at += 1
            elif operation == 0x8D:  # BINUNICODE8
                text, at = self._string(at, 8)
                stack.append(text)
            elif operation == 0x63:  # GLOBAL
                module_end = data.index(b"\n", at)
                name_end = data.index(b"\n", module_end + 1)
                stack.append(self._known(data[at:module_end].decode(), data[module_end + 1 : name_end].decode()))
                at = name_end + 1
            elif operation == 0x93:  # STACK_GLOBAL
                name, module = stack.pop(), stack.pop()
                stack.append(self._known(module, name))
            elif operation == 0x29:  # EMPTY_TUPLE
                stack.append(())
            elif operation == 0x81:  # NEWOBJ: of the one known class, without arguments
                if stack.pop() != () or stack.pop() != _CLASS:
                    raise ValueError
                self.is_object = True
                stack.append(_CLASS)
            elif operation == 0x62:  # BUILD
                if stack.pop() is not self._top or stack[-1] != _CLASS:
                    raise ValueError
            elif operation == 0x2E:  # STOP
                if len(stack) != 1 or self._top is None:
                    raise ValueError
                return at
            else:
                raise ValueError

    def _string(self, at: int, size_bytes: int) -> tuple[str, int]:
        start = at + size_bytes
        length = int.from_bytes(self._data[at:start], "little")
        if length > _MAX_STRING_BYTES or start + length > len(self._data):
            raise ValueError
        return self._data[start : start + length].decode(), start + length

    def _target(self) -> dict[Any, Any]:
        target = self._stack[-1]
        if type(target) is not dict:
            raise TypeError
        return target

    def _set_items(self) -> None:
        mark = self._marks.pop()
        pairs = self._stack[mark:]
        del self._stack[mark:]
        if len(pairs) % 2:
            raise ValueError
        self._target().update(zip(pairs[::2], pairs[1::2], strict=True))

    def _known(self, module: Any, name: Any) -> tuple[str, str]:
        if (module, name) != _CLASS:
            raise ValueError
        return _CLASS
