"""Whether an input is worth training on, from its neighbours among the training records. No I/O.

The rules for near duplicates and outliers, with their numbers, are those of Cleanlab's Datalab.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from chroma.records import Label, Record
from chroma.statistics import LEAST_RECORDS, Statistics

EXPLORE = 0.2
_NEAR_DUPLICATE = 0.13
_OUTLIER = 1.70
_AGREEMENT = 0.5
# What rounding leaves of a distance of zero, with float32.
_ZERO = 1e-6


class Tag(str, Enum):
    """Why an input is recommended, or is not useful."""

    COLD_START = "cold_start"
    NEAR_DUPLICATE = "near_duplicate"
    OUTLIER = "outlier"
    BOUNDARY = "boundary"
    EXPLORE = "explore"


@dataclass(frozen=True)
class Recommendation:
    """One reason, with how strong it is and a sentence that says what was compared."""

    tag: Tag
    score: float
    """`near_duplicate`, `outlier`: the distance, as a multiple of the limit. `boundary`: the share of neighbours that
    disagree. `explore`: the share that is chosen at random. `cold_start`: 1."""
    reason: str


@dataclass(frozen=True)
class Result:
    """What was found about one input."""

    input_uri: str
    recommendations: tuple[Recommendation, ...]
    training_recommended: bool
    """Whether to train on it."""
    not_useful: bool
    """Whether the training records have it, or almost the same, already."""

    @property
    def summary(self) -> str:
        """`training_recommended`, `not_useful`, or `none`: neither."""
        if self.training_recommended:
            return "training_recommended"
        return "not_useful" if self.not_useful else "none"


def recommend(
    record: Record,
    distances: NDArray[np.float64],
    labels: Sequence[Label | None],
    statistics: Statistics | None,
    explore: float,
) -> Result:
    """What to do with `record`. `distances` and `labels` are of its nearest training records, the nearest first."""
    recommendations = tuple(_reasons(record, distances, labels, statistics, explore))
    not_useful = any(each.tag is Tag.NEAR_DUPLICATE for each in recommendations)
    return Result(record.input_uri, recommendations, bool(recommendations) and not not_useful, not_useful)


def _reasons(
    record: Record,
    distances: NDArray[np.float64],
    labels: Sequence[Label | None],
    statistics: Statistics | None,
    explore: float,
) -> list[Recommendation]:
    if statistics is None or not distances.size:
        reason = f"the set has fewer than {LEAST_RECORDS} training records, too few to compare with"
        return [Recommendation(Tag.COLD_START, 1.0, reason)]
    reasons = []
    nearest, limit = float(distances[0]), _NEAR_DUPLICATE * statistics.median_nearest
    if nearest < limit or nearest <= _ZERO:
        reason = (
            f"the nearest training record is {nearest:.3g} away, under {_NEAR_DUPLICATE} x"
            f" {statistics.median_nearest:.3g}, the set's median distance to the nearest"
        )
        return [Recommendation(Tag.NEAR_DUPLICATE, nearest / limit if limit else 0.0, reason)]
    mean = float(distances.mean())
    limit = statistics.mean_distance_q3 + _OUTLIER * statistics.mean_distance_iqr
    if mean > limit:
        reason = (
            f"the mean distance to {len(distances)} neighbours is {mean:.3g}, beyond Q3 + {_OUTLIER:.2f} x IQR ="
            f" {limit:.3g} of the set"
        )
        reasons.append(Recommendation(Tag.OUTLIER, mean / limit if limit else float("inf"), reason))
    labelled = [each for each in labels if each is not None]
    if record.label is not None and labelled:
        agree = sum(type(each) is type(record.label) and each == record.label for each in labelled)
        if agree / len(labelled) < _AGREEMENT:
            reason = f"{agree} of {len(labelled)} labelled neighbours have its label {record.label!r}"
            reasons.append(Recommendation(Tag.BOUNDARY, 1 - agree / len(labelled), reason))
    if not reasons and draw(record.embedding) < explore:
        reasons.append(Recommendation(Tag.EXPLORE, explore, f"chosen at random, as {explore:.0%} of the others are"))
    return reasons


def draw(embedding: bytes) -> float:
    """A number from 0 to 1 that looks random. The same embedding has the same number each time."""
    return int.from_bytes(hashlib.sha1(embedding, usedforsecurity=False).digest()[:8], "big") / 2**64
