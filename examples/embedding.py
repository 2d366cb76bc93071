"""An embedding function without a model: words and their parts, hashed.

It needs no network and no download, and finds less than a model does: docs/examples.md has the numbers. To use it, set
this for the gateway and for the examples:

    export GATEWAY_EMBEDDING=hashed_words GATEWAY_EMBEDDING_MODULE=examples.embedding

Importing this module registers it, so that `get_collection` finds the function of a collection that names it.
"""

import functools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import numpy as np
from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
from chromadb.utils.embedding_functions import (
    config_to_embedding_function,
    register_embedding_function,
)

DIMENSIONS = 1024
# They say nothing about what a text is about.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an and any are as at be been but by can could did do does for from had has have how i if in into is it its
        may me more most my no not of on one or our shall should so some such than that the their them then there these
        they this to us was we were what when where which who why will with would you your""",
    )
)
_PART_LETTERS = 4
_PART_WEIGHT = 0.3


@register_embedding_function
class HashedWords(EmbeddingFunction[Documents]):
    """Embeds a text as its words and their parts of four letters, each in one of 1,024 dimensions."""

    def __init__(self) -> None:
        pass

    def __call__(self, input: Documents) -> Embeddings:
        return [_embed(text) for text in input]

    @staticmethod
    def name() -> str:
        return "hashed_words"

    def default_space(self) -> Space:
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        return {}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "HashedWords":
        return HashedWords()


def words(text: str) -> list[str]:
    """The words of a text that say something, in lower case."""
    return [word for word in re.findall(r"[^\W_]+", text.lower()) if word not in STOP_WORDS]


def named() -> Any:
    """The embedding function that GATEWAY_EMBEDDING names: `default` is Chroma's. Raises ValueError if unknown."""
    setting = os.environ.get("GATEWAY_EMBEDDING", "default")
    chosen = json.loads(setting) if setting.startswith("{") else {"name": setting}
    return loaded(config_to_embedding_function({"config": {}} | chosen))


def loaded(function: Any) -> Any:
    """The same function. In place of Chroma's default, which loads its model for each call, one that keeps it."""
    if function.name() != "default":
        return function
    from chromadb.utils.embedding_functions import ONNXMiniLM_L6_V2  # noqa: PLC0415  # loads the ONNX runtime

    return ONNXMiniLM_L6_V2()


def _embed(text: str) -> Any:
    weights: dict[str, float] = {}
    for word, count in Counter(words(text)).items():
        often = 1 + math.log(count)
        weights[f" {word}"] = often
        for part in _parts(word):
            weights[part] = weights.get(part, 0.0) + _PART_WEIGHT * often
    vector = np.zeros(DIMENSIONS, dtype=np.float32)
    for name, weight in weights.items():
        at, sign = _place(name)
        vector[at] += sign * weight
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


def _parts(word: str) -> Iterator[str]:
    for start in range(len(word) - _PART_LETTERS + 1):
        yield word[start : start + _PART_LETTERS]


@functools.lru_cache(maxsize=1 << 16)
def _place(name: str) -> tuple[int, int]:
    """The dimension of a word or part, and its sign: where two share one, they cancel out as often as they add up."""
    number = int.from_bytes(blake2b(name.encode(), digest_size=8).digest())
    return number % DIMENSIONS, 1 if number >> 63 else -1
