"""Embedding sets: which embeddings can be compared with each other."""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from chroma.errors import InvalidRecord


class EmbeddingSet:
    """What made an embedding: a dict that this client does not interpret, such as model, version and layer.

    Two sets are the same if their dicts are exactly the same: key order does not matter, types do. So 1, 1.0, "1" and
    True are four different values.
    """

    def __init__(self, described: Mapping[str, Any]) -> None:
        """Raises InvalidRecord if `described` is empty, or has values that JSON does not have."""
        if not isinstance(described, Mapping) or not described:
            raise InvalidRecord("an embedding set is a dict that is not empty, such as {'model': 'a', 'layer': 'b'}")
        self.described = _copy(described, "embedding_set")

    @cached_property
    def canonical(self) -> str:
        """The dict as JSON with sorted keys and no spaces, as Python's `json` writes numbers."""
        return json.dumps(self.described, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    @cached_property
    def id(self) -> str:
        """SHA-1 of the canonical form in UTF-8, 40 hexadecimal digits. It names the set and protects nothing."""
        return hashlib.sha1(self.canonical.encode(), usedforsecurity=False).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EmbeddingSet) and self.canonical == other.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)

    def __repr__(self) -> str:
        return f"EmbeddingSet({self.described!r})"


def _copy(value: Any, where: str) -> Any:
    """A copy of `value` in the types of JSON. A type that JSON would write as another one is refused."""
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise InvalidRecord(f"the key {key!r} in {where} is not a string")
            _check_text(key, where)
        return {key: _copy(each, f"{where}[{key!r}]") for key, each in value.items()}
    if type(value) is list:
        return [_copy(each, f"{where}[{index}]") for index, each in enumerate(value)]
    if type(value) is str:
        _check_text(value, where)
    elif type(value) is float:
        if not math.isfinite(value):
            raise InvalidRecord(f"{where} is {value}, which JSON does not have")
    elif value is not None and type(value) not in (bool, int):
        raise InvalidRecord(f"{where} is of type {type(value).__name__}; use str, int, float, bool, None, list or dict")
    return value


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRecord(f"{where} has a text that is not valid Unicode: {error}") from error
