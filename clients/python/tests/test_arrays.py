"""Embeddings of other libraries, which stand here as what this client uses of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chroma
from chroma import InvalidRecord
from chroma.arrays import to_float32

NUMBERS = np.array([[1.5, -2.0], [0.25, 3.0]], np.float32)


class Tensor:
    """As torch's: numpy may have it only after `detach` and `cpu`, and never as bfloat16."""

    def __init__(self, array: Any, *, attached: bool = True, on_gpu: bool = True, bfloat16: bool = False) -> None:
        self.array, self.attached, self.on_gpu, self.bfloat16 = array, attached, on_gpu, bfloat16

    def detach(self) -> "Tensor":
        return Tensor(self.array, attached=False, on_gpu=self.on_gpu, bfloat16=self.bfloat16)

    def cpu(self) -> "Tensor":
        return Tensor(self.array, attached=self.attached, on_gpu=False, bfloat16=self.bfloat16)

    def float(self) -> "Tensor":
        return Tensor(self.array, attached=self.attached, on_gpu=self.on_gpu)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if self.attached:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.on_gpu or self.bfloat16:
            raise TypeError("can't convert, or unsupported ScalarType BFloat16")
        return self.array


class JaxArray:
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return NUMBERS


class DlpackArray:
    def __dlpack__(self, **options: Any) -> Any:
        return NUMBERS.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return NUMBERS.__dlpack_device__()


@pytest.mark.parametrize(
    "embedding",
    [
        NUMBERS,
        NUMBERS.astype(np.float64),
        NUMBERS.astype(np.float16),
        np.asfortranarray(NUMBERS),
        NUMBERS.astype(">f4"),
        NUMBERS.tolist(),
        tuple(map(tuple, NUMBERS.tolist())),
        list(NUMBERS),
        [Tensor(row) for row in NUMBERS],
        Tensor(NUMBERS),
        Tensor(NUMBERS, bfloat16=True),
        JaxArray(),
        DlpackArray(),
    ],
    ids=lambda embedding: type(embedding).__name__,
)
def test_arrays_of_any_library_become_float32(embedding: Any) -> None:
    """The numbers are the same, in memory as Chroma takes them."""
    converted = to_float32(embedding)
    assert converted.dtype == np.dtype("<f4")
    assert converted.flags.c_contiguous
    assert np.array_equal(converted, NUMBERS)


def test_integers_are_numbers() -> None:
    """Quantized embeddings are taken as they are."""
    assert to_float32([1, 2]).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("embedding", "expected"),
    [
        ([1.0, float("nan")], "nan at [1]"),
        ([[1.0], [float("inf")]], "inf at [1, 0]"),
        ([1e300], "1e+300 at [0]"),
        ([], "not (0,)"),
        ([[]], "not (1, 0)"),
        (3.0, "not a float"),
        (np.float32(3), "not ()"),
        (np.zeros((2, 2, 2)), "not (2, 2, 2)"),
        ([[1.0, 2.0], [1.0]], "different shapes"),
        (["a"], "not"),
        ([True], "not bool"),
        (np.array([1j]), "not complex128"),
        (np.array([object()]), "not object"),
        ("abc", "not a str"),
        (None, "not a NoneType"),
        (Tensor(np.array([float("nan")])), "nan at [0]"),
    ],
    ids=lambda each: each if isinstance(each, str) else type(each).__name__,
)
def test_what_is_no_embedding_is_refused(embedding: Any, expected: str) -> None:
    """The message says what was found instead."""
    with pytest.raises(InvalidRecord) as raised:
        to_float32(embedding)
    assert expected in str(raised.value)


def test_no_library_of_arrays_is_imported() -> None:
    """Only numpy and httpx are, beside what Python brings."""
    text = "".join(path.read_text() for path in Path(chroma.__file__).parent.glob("*.py"))
    assert not [name for name in ("torch", "jax", "tensorflow", "chromadb") if f"import {name}" in text]
