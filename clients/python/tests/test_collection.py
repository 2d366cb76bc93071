"""A set's collection, at a server of this process that can lose collections."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from chroma import EmbeddingSet, Tag
from chroma.buffer import Buffer
from chroma.collection import SetCollection
from chroma.configuration import Configuration
from chroma.errors import Refused
from chroma.records import Mode, Record, make_records
from chroma.server import Collection, Server
from chroma.statistics import Statistics
from chroma.upload import upload

SET = EmbeddingSet({"model": "a"})
NAME = f"app-{SET.id}"
USUAL = Statistics(100, 1.0, 2.0, 0.5, 0)


class MemoryServer(Server):
    """Collections of this process. Ten training records are near to everything."""

    def __init__(self) -> None:
        super().__init__(Configuration(), 0)
        self.there: dict[str, Collection] = {}
        self.written: dict[str, list[str]] = {}
        self.gets = 0
        self.lose_after_upsert = False

    def max_batch_size(self) -> int:
        return 2

    def find_collection(self, name: str) -> Collection | None:
        return self.there.get(name)

    def create_collection(self, name: str, space: str, metadata: Mapping[str, Any]) -> Collection:
        self.there[name] = Collection(f"id{len(self.written)}", name, 1, space, dict(metadata))
        self.written[self.there[name].id] = []
        return self.there[name]

    def get(self, collection: Collection, **query: Any) -> dict[str, Any]:
        self._find(collection)
        self.gets += 1
        return {"ids": [], "metadatas": [], "embeddings": []}

    def query(self, collection: Collection, embeddings: Sequence[Sequence[float]], **query: Any) -> dict[str, Any]:
        self._find(collection)
        one = {"ids": list("0123456789"), "distances": [1.0] * 10, "metadatas": [{"mode": "training"}] * 10}
        return {key: [value] * len(embeddings) for key, value in one.items()}

    def upsert(self, collection: Collection, content: Mapping[str, Any], *, stored: bool = False) -> bool:
        self._find(collection)
        self.written[collection.id] += content["uris"]
        if self.lose_after_upsert:
            self.there.clear()
            self.lose_after_upsert = False
        return True

    def _find(self, collection: Collection) -> None:
        if collection not in self.there.values():
            raise Refused("Collection does not exist", 404)


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer()


@pytest.fixture
def target(server: MemoryServer) -> SetCollection:
    return SetCollection(server, "app", SET.id, SET)


def records(*uris: str) -> list[Record]:
    return make_records(SET, Mode.TRAINING, list(uris), [[1.0]] * len(uris), None, 1)


def test_a_collection_that_is_gone_is_made_again(server: MemoryServer, target: SetCollection) -> None:
    """Everything of the call is stored in the new one, also what was in the old one for a moment."""
    target.store(records("a"))
    server.there.clear()
    target.store(records("b"))
    server.lose_after_upsert = True
    target.store(records("c", "d", "e"))
    assert list(server.written.values()) == [["a"], ["b", "c", "d"], ["c", "d", "e"]]


def test_a_collection_that_is_gone_has_no_neighbours(server: MemoryServer, target: SetCollection) -> None:
    """The statistics are gone with it."""
    target.store(records("a"))
    server.there[NAME].metadata |= asdict(USUAL)
    target.forget()
    [usual] = target.recommend(records("b"), 0)
    assert Tag.COLD_START not in [each.tag for each in usual.recommendations]
    server.there.clear()
    [result] = target.recommend(records("b"), 0)
    assert [each.tag for each in result.recommendations] == [Tag.COLD_START]


def test_only_a_missing_collection_is_looked_for_again(server: MemoryServer, target: SetCollection) -> None:
    """Any other refusal is raised."""
    target.store(records("a"))
    refused = Refused("no", 400)

    def refuse(*_: Any, **__: Any) -> Any:
        raise refused

    server.get = refuse  # type: ignore[method-assign]
    with pytest.raises(Refused) as raised:
        target.store(records("a"))
    assert raised.value is refused


def test_an_upload_does_not_end_in_half_a_collection(
    server: MemoryServer, target: SetCollection, tmp_path: Path
) -> None:
    """Where the collection goes between two batches the file stays, and the next upload has all of it."""
    path = tmp_path / "buffer"
    buffer = Buffer(path)
    buffer.append([each.line() for each in records("a", "b", "c")])
    server.lose_after_upsert = True
    with pytest.raises(Refused):
        upload(buffer, lambda _: target, server, remove=True)
    assert path.exists()
    upload(buffer, lambda _: target, server, remove=True)
    assert list(server.written.values()) == [["a", "b"], ["a", "b", "c"]]
    buffer.append([each.line() for each in records("d")])
    server.there.clear()
    upload(buffer, lambda _: target, server, remove=True)
    assert list(server.written.values())[2:] == [["d"]]


def test_a_question_computes_no_statistics(server: MemoryServer, target: SetCollection) -> None:
    """They are read, and kept for a while. A reader's key could not keep computed ones with the collection."""
    target.store(records("a"))
    server.there[NAME].metadata |= asdict(USUAL)
    server.gets = 0
    for _ in range(2):
        target.recommend(records("b"), 0)
        target.forget()
    assert server.gets == 0
