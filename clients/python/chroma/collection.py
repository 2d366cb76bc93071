"""An embedding set at a server: its collection, its records and its statistics."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from chroma.embedding_set import EmbeddingSet
from chroma.errors import ChromaError, InvalidRecord, Refused
from chroma.neighbours import nearest_training
from chroma.recommendation import Result, recommend
from chroma.records import Record
from chroma.server import Collection, Server
from chroma.statistics import NEIGHBOURS, Statistics, bring_up_to_date, from_metadata

BODY_BYTES = 8_000_000
"""About how large one request gets. Chroma and the gateway take 40 MiB; less keeps the memory of both small."""
RECORD_BYTES = 400
"""About what a record takes in a request beside its embedding and its inferences."""
_KEPT_S = 300
_Answer = TypeVar("_Answer")


@dataclass
class Stored:
    """What became of records that were to be stored."""

    written: int = 0
    already_there: int = 0
    in_store: bool = True
    """Whether a gateway said each time that its store has them."""

    def __iadd__(self, other: "Stored") -> "Stored":
        self.written += other.written
        self.already_there += other.already_there
        self.in_store &= other.in_store
        return self


class SetCollection:
    """One Chroma collection for each embedding set, named `{application_id}-{id of the set}`.

    Methods raise ServerError, and InvalidRecord before anything is sent if an embedding has another dimension than
    those of the collection.
    """

    def __init__(
        self, server: Server, application_id: str, set_id: str, embedding_set: EmbeddingSet | None = None
    ) -> None:
        """Without `embedding_set`, of which only the id is known then, the collection can be asked and not made."""
        self.name = f"{application_id}-{set_id}"
        self._server, self._embedding_set = server, embedding_set
        self._collection: Collection | None = None
        self._statistics: Statistics | None = None
        self._statistics_until = 0.0

    def forget(self) -> None:
        """Look for the collection and its statistics again. It may be gone, deleted or by a restore."""
        self._collection, self._statistics_until = None, 0.0

    def check(self, dimension: int) -> Collection | None:
        """The collection, None if there is none. Raises InvalidRecord if its embeddings have another dimension."""
        if self._collection is None or self._collection.dimension is None:
            self._collection = self._server.find_collection(self.name)
        if self._collection is not None and self._collection.dimension not in (None, dimension):
            raise InvalidRecord(
                f"the embedding has {dimension} dimensions, and the others of its set have"
                f" {self._collection.dimension} (collection {self.name})"
            )
        return self._collection

    def store(
        self, records: Sequence[Record], more: Sequence[Mapping[str, Any]] | None = None, *, wait: bool = False
    ) -> Stored:
        """Write those of `records`, all of one dimension, that are not there or were logged earlier. Safe to repeat.

        `more` is further metadata, a dict for each. With `wait`, wait until the gateway's store has all of them.

        A collection that is gone is made again. With `wait` that takes another call, and Refused is raised: what the
        caller stored before is gone too.
        """
        return self._found_again(lambda: self._store(records, more, wait), repeat=not wait)

    def _store(self, records: Sequence[Record], more: Sequence[Mapping[str, Any]] | None, wait: bool) -> Stored:
        collection = self.check(records[0].dimension) or self._make(records[0].dimension)
        total = Stored()
        pairs = list(zip(records, more or [{}] * len(records), strict=True))
        while pairs:
            size = min(self._server.max_batch_size(), max(1, BODY_BYTES // (records[0].dimension * 6 + RECORD_BYTES)))
            total += self._store_batch(collection, pairs[:size], wait)
            pairs = pairs[size:]
        return total

    def _store_batch(
        self, collection: Collection, pairs: Sequence[tuple[Record, Mapping[str, Any]]], wait: bool
    ) -> Stored:
        content: dict[str, tuple[Record, dict[str, Any]]] = {}
        for record, further in pairs:
            if record.id not in content or content[record.id][0].logged_at_us <= record.logged_at_us:
                content[record.id] = (record, {**record.metadata(), **further})
        there = self._logged_at(collection, list(content))
        new = {each: what for each, what in content.items() if what[0].logged_at_us > there.get(each, -1)}
        in_store = False
        if new:
            in_store = self._write(collection, new, wait)
        elif wait:
            # Written again, which changes nothing: the answer comes when the store has everything before it.
            record_id, (record, _) = next(iter(content.items()))
            again = {"ids": [record_id], "embeddings": [record.base64]}
            in_store = self._server.upsert(collection, again, stored=True)
        return Stored(len(new), len(pairs) - len(new), in_store)

    def bring_statistics_up_to_date(self) -> None:
        """Compute the statistics anew if the set grew enough, and keep them with the collection."""
        if (collection := self._server.find_collection(self.name)) is not None:
            bring_up_to_date(self._server, collection)

    def recommend(self, records: Sequence[Record], explore: float) -> list[Result]:
        """What to do with each of `records`, all of one dimension. It reads, and computes no statistics."""
        return self._found_again(lambda: self._recommend(records, explore))

    def _recommend(self, records: Sequence[Record], explore: float) -> list[Result]:
        if time.monotonic() > self._statistics_until:
            self._collection = kept = self._server.find_collection(self.name)
            self._statistics = from_metadata(kept) if kept else None
            self._statistics_until = time.monotonic() + (_KEPT_S if kept else 0)
        collection = self.check(records[0].dimension)
        if collection is None or self._statistics is None:
            nothing = np.empty(0)
            return [recommend(record, nothing, [], None, explore) for record in records]
        results: list[Result] = []
        size = max(1, BODY_BYTES // (records[0].dimension * 16))
        for start in range(0, len(records), size):
            some = records[start : start + size]
            vectors = [record.vector.tolist() for record in some]
            found = nearest_training(self._server, collection, vectors, NEIGHBOURS)
            for record, neighbours in zip(some, found, strict=True):
                results.append(recommend(record, neighbours.distances, neighbours.labels, self._statistics, explore))
        return results

    def _found_again(self, ask: Callable[[], _Answer], *, repeat: bool = True) -> _Answer:
        """What `ask` returns. If the collection is gone, it is looked for again, and asked once more if `repeat`."""
        try:
            return ask()
        except Refused as error:
            if error.status != 404:
                raise
            self.forget()
            if not repeat:
                raise
        return ask()

    def _make(self, dimension: int) -> Collection:
        """Cosine distances beyond three dimensions, as Cleanlab's rules have it, Euclidean ones up to three."""
        if self._embedding_set is None:
            raise ChromaError(f"there is no collection {self.name}")
        metadata = {"embedding_set": self._embedding_set.canonical, "embedding_set_id": self._embedding_set.id}
        space = "cosine" if dimension > 3 else "l2"
        self._collection = self._server.create_collection(self.name, space, metadata)
        return self._collection

    def _logged_at(self, collection: Collection, ids: list[str]) -> dict[str, int]:
        """When those of `ids` that are there were logged."""
        found = self._server.get(collection, ids=ids, include=["metadatas"])
        metadatas = zip(found["ids"], found["metadatas"], strict=True)
        return {record_id: (metadata or {}).get("logged_at_us", -1) for record_id, metadata in metadatas}

    def _write(self, collection: Collection, new: Mapping[str, tuple[Record, dict[str, Any]]], wait: bool) -> bool:
        """Write all of `new`, in parts where it is too much for one request. Return whether the store has it."""
        items = list(new.items())
        in_store = True
        while items:
            part = items[: self._server.max_batch_size()]
            content = {
                "ids": [record_id for record_id, _ in part],
                "embeddings": [record.base64 for _, (record, _) in part],
                "metadatas": [metadata for _, (_, metadata) in part],
                "uris": [record.input_uri for _, (record, _) in part],
            }
            try:
                in_store &= self._server.upsert(collection, content, stored=wait)
            except Refused as error:
                if error.status != 413 or len(part) == 1:
                    raise
                # A body that is too large, or a key that may write fewer records at once.
                self._server.take_fewer(len(part) // 2)
            else:
                items = items[len(part) :]
        return in_store
