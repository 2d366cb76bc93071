"""What is usual in an embedding set: how far its training records are from each other.

It is kept in the metadata of the set's collection, and computed anew each time the training records became a quarter
more. A sample of them is enough: its median and quartiles are those of all, within a few percent.
"""

import random
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields

import numpy as np

from chroma.errors import Denied
from chroma.neighbours import TRAINING, nearest_training
from chroma.server import Collection, Server

NEIGHBOURS = 10
LEAST_RECORDS = 100
SAMPLE = 1000
_GROWTH = 1.25
_PAGE = 10_000
_AT_ONCE = 50


@dataclass(frozen=True)
class Statistics:
    """Distances among the training records, in the metric of the collection."""

    training_records: int
    """How many there were."""
    median_nearest: float
    """The median of the distances to the nearest other record."""
    mean_distance_q3: float
    """The third quartile of the mean distances to the 10 nearest others."""
    mean_distance_iqr: float
    """The interquartile range of the same."""
    computed_at: float
    """Seconds since 1970."""


def from_metadata(collection: Collection) -> Statistics | None:
    """The statistics that are kept with the collection; None if there are none yet."""
    kept = {each.name: collection.metadata.get(each.name) for each in fields(Statistics)}
    if not all(isinstance(value, (int, float)) for value in kept.values()):
        return None
    return Statistics(**kept)  # type: ignore[arg-type]  # checked above


def bring_up_to_date(server: Server, collection: Collection) -> None:
    """Compute the statistics of `collection` anew and keep them, if it grew enough and has 100 training records.

    A key that may not change the collection leaves the kept ones as they are. Safe to call in several processes at
    once.
    """
    kept = from_metadata(collection)
    at_least = max(LEAST_RECORDS, int(kept.training_records * _GROWTH) if kept else 0)
    if has_training_records(server, collection, at_least):
        computed = compute(server, collection)
        with suppress(Denied):
            server.set_metadata(collection, collection.metadata | asdict(computed))


def has_training_records(server: Server, collection: Collection, at_least: int) -> bool:
    """Whether the collection has that many, without counting them all."""
    found = server.get(collection, where=TRAINING, include=[], limit=1, offset=at_least - 1)
    return bool(found["ids"])


def compute(server: Server, collection: Collection) -> Statistics:
    """Statistics of the training records, from a random sample of 1000 of them."""
    chosen: list[str] = []
    count = 0
    choose = random.Random(collection.id)  # noqa: S311  # the same records give the same statistics
    for record_id in _training_ids(server, collection):
        count += 1
        if len(chosen) < SAMPLE:
            chosen.append(record_id)
        elif (place := choose.randrange(count)) < SAMPLE:
            chosen[place] = record_id
    nearest: list[float] = []
    means: list[float] = []
    for start in range(0, len(chosen), _AT_ONCE):
        some = server.get(collection, ids=chosen[start : start + _AT_ONCE], include=["embeddings"])
        # One more than needed: a record is its own nearest.
        found = nearest_training(server, collection, some["embeddings"], NEIGHBOURS + 1)
        for record_id, neighbours in zip(some["ids"], found, strict=True):
            others = neighbours.distances[[each != record_id for each in neighbours.ids]]
            if others.size:
                nearest.append(float(others[0]))
                means.append(float(others[:NEIGHBOURS].mean()))
    q1, q3 = np.percentile(means, [25, 75])
    return Statistics(count, float(np.median(nearest)), float(q3), float(q3 - q1), time.time())


def _training_ids(server: Server, collection: Collection) -> Iterator[str]:
    offset = 0
    while ids := server.get(collection, where=TRAINING, include=[], limit=_PAGE, offset=offset)["ids"]:
        yield from ids
        offset += len(ids)
