"""Records: one embedding of one input, as a line of a buffer file and as a record of Chroma."""

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from chroma.arrays import Float32Array, to_float32
from chroma.embedding_set import EmbeddingSet
from chroma.errors import InvalidRecord

FORMAT = 1
_LARGEST_INT = 2**63 - 1

Label = str | int | bool


class Mode(str, Enum):
    """What a record was logged by. In Chroma it is the record's metadata `mode`."""

    TRAINING = "training"
    PRODUCTION = "production"


@dataclass(frozen=True)
class Record:
    """One embedding of one input."""

    embedding_set: EmbeddingSet
    mode: Mode
    input_uri: str
    embedding: bytes
    """float32, little-endian, (dim,)."""
    inferences: Mapping[str, Any] | None
    logged_at_us: int
    """Microseconds since 1970. Chroma gives some numbers with a fraction back a little different."""

    @property
    def id(self) -> str:
        """SHA-1 of mode, URI and embedding: the same input with the same embedding is the same record."""
        content = b"\0".join((self.mode.value.encode(), self.input_uri.encode(), self.embedding))
        return hashlib.sha1(content, usedforsecurity=False).hexdigest()

    @property
    def dimension(self) -> int:
        return len(self.embedding) // 4

    @property
    def label(self) -> Label | None:
        """What the inferences say it is: their key `label`, if that is a text, an integer or a boolean."""
        label = (self.inferences or {}).get("label")
        return label if isinstance(label, (str, int)) else None

    @property
    def base64(self) -> str:
        """The embedding as Chroma takes it: half as long as the same numbers as text."""
        return base64.b64encode(self.embedding).decode("ascii")

    @property
    def vector(self) -> Float32Array:
        return np.frombuffer(self.embedding, "<f4")

    def metadata(self) -> dict[str, Any]:
        """What Chroma stores with it. None removes a key that an earlier version of the record has."""
        return {
            "mode": self.mode.value,
            "label": self.label,
            "inferences": None if self.inferences is None else _to_json(self.inferences),
            "logged_at_us": self.logged_at_us,
        }

    def line(self) -> bytes:
        """Everything about it as a line of JSON, with the line's end."""
        content = {
            "format": FORMAT,
            "mode": self.mode.value,
            "embedding_set": self.embedding_set.described,
            "input_uri": self.input_uri,
            "inferences": self.inferences,
            "logged_at_us": self.logged_at_us,
            "embedding": self.base64,
        }
        return _to_json(content).encode() + b"\n"


def parse_line(line: bytes) -> Record | None:
    """The record of a line; None if it is not whole. Raises InvalidRecord if it is whole and has no record."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    try:
        if content["format"] != FORMAT:
            raise InvalidRecord(f"its format is {content['format']!r}, and this client reads {FORMAT}")
        embedding = base64.b64decode(content["embedding"], validate=True)
        if not isinstance(content["inferences"], (dict, type(None))):
            raise InvalidRecord("its inferences are no dict")
        record = Record(
            EmbeddingSet(content["embedding_set"]),
            Mode(content["mode"]),
            _checked_uri(content["input_uri"]),
            embedding,
            content["inferences"],
            int(content["logged_at_us"]),
        )
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise InvalidRecord(f"it is not a record of this client: {error!r}") from error
    if not embedding or len(embedding) % 4 or not np.isfinite(record.vector).all():
        raise InvalidRecord("its embedding is not finite numbers of float32")
    return record


def make_records(
    embedding_set: EmbeddingSet,
    mode: Mode,
    input_uri: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    embedding: Any,
    inferences: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None,
    logged_at_us: int,
) -> list[Record]:
    """The records of one call: one for an embedding of shape (dim,), n for (n, dim) with n URIs.

    `inferences` is one dict for one record, or n of them. Raises InvalidRecord.
    """
    array = to_float32(embedding)
    if is_one(input_uri):
        if array.ndim == 2 and len(array) > 1:
            raise InvalidRecord(f"{len(array)} embeddings, and one input_uri: give a list of {len(array)}")
        uris: list[Any] = [input_uri]
    else:
        uris = _listed(input_uri, "input_uri")
        if array.ndim == 1:
            raise InvalidRecord(f"{len(uris)} URIs in a list, and one embedding of shape {array.shape}: give (n, dim)")
        if isinstance(inferences, Mapping):
            raise InvalidRecord(f"one dict of inferences for {len(uris)} URIs in a list: give a list of {len(uris)}")
    if inferences is None:
        each_inferences: list[Any] = [None] * len(uris)
    else:
        each_inferences = [inferences] if isinstance(inferences, Mapping) else _listed(inferences, "inferences")
    rows = array.reshape(-1, array.shape[-1])
    if not len(rows) == len(uris) == len(each_inferences):
        raise InvalidRecord(f"{len(rows)} embeddings, {len(uris)} URIs and {len(each_inferences)} inferences")
    return [
        Record(embedding_set, mode, _checked_uri(uri), row.tobytes(), _plain(inferred), logged_at_us)
        for uri, row, inferred in zip(uris, rows, each_inferences, strict=True)
    ]


def is_one(input_uri: object) -> bool:
    """Whether it is one URI, not a sequence of them."""
    return isinstance(input_uri, (str, os.PathLike))


def _listed(value: Any, name: str) -> list[Any]:
    try:
        return list(value)
    except TypeError as error:
        raise InvalidRecord(f"{name} cannot be {value!r}") from error


def _checked_uri(uri: Any) -> str:
    text = os.fspath(uri) if isinstance(uri, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text:
        raise InvalidRecord(f"an input_uri is a text that is not empty, not {uri!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRecord(f"the input_uri {uri!r} is not valid Unicode") from error
    return text


def _plain(inferences: Any) -> Mapping[str, Any] | None:
    """A copy in the types of JSON: numbers of numpy and tensors become numbers and lists. Raises InvalidRecord."""
    if inferences is None:
        return None
    if not isinstance(inferences, Mapping):
        raise InvalidRecord(f"inferences are a dict, not a {type(inferences).__name__}")
    try:
        text = _to_json(dict(inferences))
        text.encode()
    except (TypeError, ValueError) as error:
        raise InvalidRecord(f"the inferences cannot be written as JSON: {error}") from error
    plain: dict[str, Any] = json.loads(text)
    label = plain.get("label")
    if isinstance(label, int) and abs(label) > _LARGEST_INT:
        raise InvalidRecord(f"the label {label} does not fit into 64 bits")
    return plain


def _to_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_of_array)


def _of_array(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is in it")
