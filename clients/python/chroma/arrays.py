"""Embeddings from torch, jax, numpy and lists, without importing any of them but numpy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chroma.errors import InvalidRecord

Float32Array = NDArray[np.float32]


def to_float32(embedding: Any) -> Float32Array:
    """The numbers of `embedding` as float32, (dim,) or (n, dim).

    Takes arrays and tensors of any library that has `__array__` or `__dlpack__`, tensors that must be detached and
    moved to the CPU first, and lists of numbers, of arrays or of lists. Raises InvalidRecord if it is none of them, has
    another shape, is empty, or has a number that is not finite.
    """
    try:
        array = _to_array(embedding)
    except InvalidRecord:
        raise
    except Exception as error:  # of any library
        raise InvalidRecord(f"an embedding of type {type(embedding).__name__} cannot be read: {error}") from error
    if array.dtype.kind not in "iuf":
        raise InvalidRecord(f"an embedding has numbers, not {array.dtype}")
    if array.ndim not in (1, 2) or 0 in array.shape:
        raise InvalidRecord(f"the shape of an embedding is (dim,) or (n, dim), not {array.shape}")
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(array, dtype="<f4")
    if not np.isfinite(converted).all():
        place = np.argwhere(~np.isfinite(converted))[0].tolist()
        raise InvalidRecord(f"the embedding has {array[tuple(place)]} at {place}: no number that float32 can hold")
    return converted


def _to_array(value: Any) -> NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, (list, tuple)):
        if value and not isinstance(value[0], (int, float, np.number)):
            rows = [_to_array(each) for each in value]
            if len({row.shape for row in rows}) > 1:
                raise InvalidRecord(f"the embeddings of one call have different shapes: {[row.shape for row in rows]}")
            return np.stack(rows)
        return np.asarray(value)
    if hasattr(value, "detach"):
        return _of_tensor(value.detach().cpu())
    if hasattr(value, "__array__"):
        return _plain(np.asarray(value), value)
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    raise InvalidRecord(f"an embedding is an array, a tensor or a list, not a {type(value).__name__}")


def _of_tensor(tensor: Any) -> NDArray[Any]:
    try:
        return np.asarray(tensor)
    except TypeError:  # numpy has no bfloat16
        return np.asarray(tensor.float())


def _plain(array: NDArray[Any], value: Any) -> NDArray[Any]:
    """`array` in a type of numpy's own. jax gives bfloat16 as a type that ml_dtypes registers, whose kind is V."""
    if array.dtype.kind == "V":
        return array.astype(np.float32)
    if array.dtype.kind == "O":
        raise InvalidRecord(f"an embedding of type {type(value).__name__} has no numbers")
    return array
