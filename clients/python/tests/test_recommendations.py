"""What is recommended, from distances alone."""

from typing import Any

import numpy as np
import pytest

from chroma import EmbeddingSet, Result, Tag
from chroma.recommendation import draw, recommend
from chroma.records import Mode, make_records
from chroma.statistics import Statistics

USUAL = Statistics(1000, median_nearest=1.0, mean_distance_q3=2.0, mean_distance_iqr=0.5, computed_at=0)


def asked(
    distances: list[float], labels: Any = (), label: Any = None, explore: float = 0, statistics: Any = USUAL
) -> Result:
    inferences = None if label is None else {"label": label}
    [record] = make_records(EmbeddingSet({"a": 1}), Mode.PRODUCTION, "u", [1.0], inferences, 0)
    return recommend(record, np.array(distances, float), list(labels), statistics, explore)


def tags(result: Result) -> list[Tag]:
    return [each.tag for each in result.recommendations]


def test_an_ordinary_input_has_no_recommendation() -> None:
    """It is neither recommended nor useless."""
    result = asked([1.0] * 10)
    assert (result.recommendations, result.training_recommended, result.not_useful) == ((), False, False)
    assert result.summary == "none"


@pytest.mark.parametrize(("nearest", "expected"), [(0.129, True), (0.131, False), (0.0, True)])
def test_a_near_duplicate_is_not_useful(nearest: float, expected: bool) -> None:
    """Under 0.13 of the median distance to the nearest."""
    result = asked([nearest] + [1.0] * 9)
    assert result.not_useful is expected
    assert not result.training_recommended
    assert tags(result) == [Tag.NEAR_DUPLICATE] * expected
    assert not expected or result.recommendations[0].score == pytest.approx(nearest / 0.13)


def test_the_same_embedding_is_a_duplicate_where_most_are() -> None:
    """Also where the median distance to the nearest is zero."""
    same = Statistics(1000, 0.0, 2.0, 0.5, 0)
    assert asked([0.0] * 10, statistics=same).not_useful
    assert not asked([0.1] * 10, statistics=same).not_useful


@pytest.mark.parametrize(("mean", "expected"), [(2.84, False), (2.86, True)])
def test_an_outlier_is_recommended(mean: float, expected: bool) -> None:
    """Beyond Q3 + 1.70 x IQR of the mean distances."""
    result = asked([mean] * 10)
    assert result.training_recommended is expected
    assert tags(result) == [Tag.OUTLIER] * expected
    assert not expected or result.recommendations[0].score == pytest.approx(mean / 2.85)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["cat"] * 5 + ["dog"] * 5, None),
        (["cat"] * 4 + ["dog"] * 6, 0.6),
        (["cat"] * 2 + ["dog"] * 3 + [None] * 5, 0.6),
        ([None] * 10, None),
        ([1] * 10, 1.0),
    ],
)
def test_disagreement_with_the_neighbours_is_recommended(labels: list[Any], expected: float | None) -> None:
    """Fewer than half of the labelled neighbours have the inferred label. Types matter."""
    result = asked([1.0] * 10, labels, "cat")
    assert tags(result) == ([] if expected is None else [Tag.BOUNDARY])
    assert expected is None or result.recommendations[0].score == pytest.approx(expected)


def test_a_label_of_true_is_not_one() -> None:
    """Though Python says so."""
    assert tags(asked([1.0] * 10, [1] * 10, True)) == [Tag.BOUNDARY]


def test_reasons_come_together() -> None:
    """Each with its score, and a sentence with the numbers that were compared."""
    result = asked([3.0] * 10, ["dog"] * 10, "cat")
    assert tags(result) == [Tag.OUTLIER, Tag.BOUNDARY]
    assert result.recommendations[0].reason == (
        "the mean distance to 10 neighbours is 3, beyond Q3 + 1.70 x IQR = 2.85 of the set"
    )
    assert result.recommendations[1].reason == "0 of 10 labelled neighbours have its label 'cat'"


def test_a_small_set_recommends_everything() -> None:
    """And says that it is a cold start."""
    result = asked([], statistics=None)
    assert tags(result) == [Tag.COLD_START]
    assert result.training_recommended


def test_a_share_at_random_is_recommended() -> None:
    """A fifth of what nothing else speaks for; the same embedding has the same answer."""
    draws = [draw(np.float32([number]).tobytes()) for number in range(5000)]
    assert sum(each < 0.2 for each in draws) / 5000 == pytest.approx(0.2, abs=0.02)
    assert tags(asked([1.0] * 10, explore=1)) == [Tag.EXPLORE]
    assert tags(asked([0.0] * 10, explore=1)) == [Tag.NEAR_DUPLICATE]
    assert tags(asked([3.0] * 10, explore=1)) == [Tag.OUTLIER]
    assert asked([1.0] * 10, explore=0.5) == asked([1.0] * 10, explore=0.5)
