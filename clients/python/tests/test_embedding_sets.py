"""The id of an embedding set follows from its dict alone."""

from typing import Any

import numpy as np
import pytest

from chroma import EmbeddingSet, InvalidRecord

GOLDEN: list[tuple[dict[str, Any], str]] = [
    ({"model": "user-exp-abc", "model_version": "123", "layer": "context"}, "b181fbb7ab0f9b3d681e76ae8973d0d40aa7418c"),
    ({"model": "user-exp-abc", "model_version": 123, "layer": "context"}, "d7911cb85a9d7fb25710ec9a18109bf223b3f6c1"),
    ({"a": 1}, "9f89c740ceb46d7418c924a78ac57941d5e96520"),
    ({"a": 1.0}, "5fa46a3fc145802032414a85eee29088bf50717a"),
    ({"a": True}, "c60916fc0818fbda22bc6ce349b0360f18f62217"),
    ({"a": "1"}, "1708d735828d488e7eba7cb61e27c30b8c2b5178"),
    ({"a": None}, "66009be65277bbe2ccd6b1a4d00b8b9cd293a9e4"),
    ({"ä": "猫", "nested": {"b": [1, 2.5, "x"], "a": {}}}, "a34003ae792da95e1b83d66bb78291e54344ddbe"),
]


@pytest.mark.parametrize(("described", "expected"), GOLDEN)
def test_ids_are_fixed(described: dict[str, Any], expected: str) -> None:
    """Data that was stored under an id is found by every later release."""
    assert EmbeddingSet(described).id == expected


def test_types_matter() -> None:
    """1, 1.0, "1", True and None are five values."""
    assert len({EmbeddingSet({"a": value}).id for value in (1, 1.0, "1", True, None)}) == 5


def test_the_order_of_keys_does_not_matter() -> None:
    """At any depth."""
    one = EmbeddingSet({"a": 1, "b": {"c": 2, "d": 3}})
    other = EmbeddingSet({"b": {"d": 3, "c": 2}, "a": 1})
    assert one.id == other.id
    assert one == other
    assert one.canonical == '{"a":1,"b":{"c":2,"d":3}}'


def test_the_order_of_lists_matters() -> None:
    """A list is not a set."""
    assert EmbeddingSet({"a": [1, 2]}) != EmbeddingSet({"a": [2, 1]})


def test_a_later_change_of_the_dict_changes_nothing() -> None:
    """The set has a copy."""
    described = {"a": {"b": 1}}
    made = EmbeddingSet(described)
    described["a"]["b"] = 2
    assert made == EmbeddingSet({"a": {"b": 1}})


@pytest.mark.parametrize(
    "described",
    [
        {},
        "a",
        None,
        {1: "a"},
        {"a": (1, 2)},
        {"a": {1}},
        {"a": float("nan")},
        {"a": [float("inf")]},
        {"a": b"x"},
        {"a": np.float64(1)},
        {"a": "\ud800"},
        {"\ud800": 1},
    ],
)
def test_what_json_would_write_as_something_else_is_refused(described: Any) -> None:
    """Two dicts that differ never have one id by a conversion."""
    with pytest.raises(InvalidRecord):
        EmbeddingSet(described)
