"""A question into passages of a collection, with the embedding function that the collection names."""

import json
from typing import Any

from chromadb.api.models.CollectionCommon import CollectionCommon

from examples.answers import Passage, passages
from examples.connection import client
from examples.embedding import loaded

_functions: dict[str, Any] = {}


def function_of(collection: CollectionCommon[Any]) -> Any:
    """The embedding function that the collection names. Raises ValueError if it names none.

    Loading one takes seconds, so it is kept.
    """
    key = json.dumps(collection.configuration_json.get("embedding_function"), sort_keys=True)
    if key not in _functions:
        function = collection.configuration.get("embedding_function")
        if function is None:
            raise ValueError(f"{collection.name} names no embedding function")
        _functions[key] = loaded(function)
    return _functions[key]


def space_of(collection: CollectionCommon[Any]) -> str:
    """`l2`, `cosine` or `ip`."""
    return str((collection.configuration_json.get("hnsw") or {}).get("space", "l2"))


def search(collection: str, question: str, most: int = 5, where: dict[str, Any] | None = None) -> list[Passage]:
    """At most `most` passages, the nearest first. Raises NotFoundError without such a collection. Safe to retry."""
    opened = client().get_collection(collection)
    vector = function_of(opened)([question])[0]
    return passages(opened.query(query_embeddings=[vector], n_results=most, where=where), space_of(opened))
