"""What was compared after a migration."""

import sys
from typing import NamedTuple

import numpy as np

_TOLERANCE = 1e-5


class Check(NamedTuple):
    """One comparison. `differ` names what is not the same, at most ten of them."""

    what: str
    compared: int
    differ: list[str]


def vectors_differ(ours: np.ndarray, theirs: np.ndarray, space: str) -> np.ndarray:
    """Which rows of two float32 arrays, (n, dimensions), are not the same: bool, (n,).

    With `cosine` only the direction counts, because Chroma keeps such vectors at length 1.
    """
    if space == "cosine":
        ours, theirs = _normalized(ours), _normalized(theirs)
    return np.asarray(np.abs(ours - theirs).max(axis=1) > _TOLERANCE)


def _normalized(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def show(checks: list[Check]) -> None:
    """Print the checks. Raises SystemExit if anything differs."""
    for check in checks:
        print(f"{'same' if not check.differ else 'DIFFERENT'}: {check.compared} {check.what}")
        for name in check.differ[:10]:
            print(f"    {name}")
    if any(check.differ for check in checks):
        sys.exit("the copy differs from its source")
