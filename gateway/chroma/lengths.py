"""`length.bin`: what a vector's values were divided by before it was stored; a float32 an element.

hnswlib does that for cosine alone, and multiplies again when a vector is asked for (`hnswalg.h`, `normalize_vector`,
`getDataByLabel`). For other spaces the file has whatever lay in memory, and nobody reads it.
"""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

_TOO_SMALL, _TOO_LARGE = 1e-18, 1e18


def read_lengths(path: Path, numbers: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The lengths of these elements (float32), and which of them can be one. Raises OSError.

    A vector of zeros has the length 0, and so has one whose length was never written: neither is a fault of the
    file unless many are.
    """
    lengths = np.zeros(len(numbers), np.float32)
    size = path.stat().st_size // 4
    inside = numbers < size
    if inside.any():
        with path.open("rb", buffering=0) as file:
            raw = os.pread(file.fileno(), (int(numbers[inside].max()) + 1) * 4, 0)
        lengths[inside] = np.frombuffer(raw, "<f4")[numbers[inside]]
    with np.errstate(all="ignore"):
        possible = inside & (lengths > _TOO_SMALL) & (lengths < _TOO_LARGE)
    return lengths, possible
