"""The nearest training records.

Chroma looks at every record of the collection to answer a query with a condition, and at few to answer one without. So
the nearest records of any mode are asked for first, and those of training are taken from them. Only where these are too
few, the query is repeated with more, and at last with the condition.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chroma.records import Label, Mode
from chroma.server import Collection, Server

TRAINING = {"mode": Mode.TRAINING.value}
_AT_FIRST, _THEN = 30, 300
# Chroma asks SQLite for the metadata of all results of a query at once. SQLite takes 32,766 variables.
_RESULTS = 10_000


@dataclass(frozen=True)
class Neighbours:
    """The nearest training records of one embedding, the nearest first."""

    ids: list[str]
    distances: NDArray[np.float64]
    labels: list[Label | None]


def nearest_training(
    server: Server, collection: Collection, embeddings: Sequence[Sequence[float]], count: int
) -> list[Neighbours]:
    """The `count` nearest training records of each embedding; fewer where there are no more."""
    found: dict[int, Neighbours] = {}
    for limit in (_AT_FIRST, _THEN, None):
        missing = [each for each in range(len(embeddings)) if each not in found]
        at_once = _RESULTS // (limit or count)
        for start in range(0, len(missing), at_once):
            some = missing[start : start + at_once]
            found |= _ask(server, collection, {each: embeddings[each] for each in some}, count, limit)
    return [found[each] for each in range(len(embeddings))]


def _ask(
    server: Server,
    collection: Collection,
    embeddings: Mapping[int, Sequence[float]],
    count: int,
    limit: int | None,
) -> dict[int, Neighbours]:
    """The neighbours of those that have enough among the nearest `limit` records. None asks for training alone."""
    condition: dict[str, Any] = {"where": TRAINING} if limit is None else {}
    answer = server.query(
        collection,
        list(embeddings.values()),
        n_results=limit or count,
        include=["distances", "metadatas"],
        **condition,
    )
    found = {}
    answers = zip(embeddings, answer["ids"], answer["distances"], answer["metadatas"], strict=True)
    for each, ids, distances, metadatas in answers:
        training = [place for place, metadata in enumerate(metadatas) if (metadata or {}).get("mode") == "training"]
        # With fewer records than asked for, these were all that there are.
        if len(training) >= count or limit is None or len(ids) < limit:
            taken = training[:count]
            found[each] = Neighbours(
                [ids[place] for place in taken],
                _to_distances(collection, [distances[place] for place in taken]),
                [metadatas[place].get("label") for place in taken],
            )
    return found


def _to_distances(collection: Collection, raw: list[float]) -> NDArray[np.float64]:
    """Distances out of Chroma's. It gives squared Euclidean ones, and rounding can make one of zero negative."""
    distances = np.maximum(np.asarray(raw, np.float64), 0)
    return np.sqrt(distances) if collection.space == "l2" else distances
