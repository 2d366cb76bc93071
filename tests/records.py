"""Real text for tests, and a way to say everything about what a Chroma holds."""

import functools
import hashlib
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

_MODULES = ("argparse", "asyncio", "collections", "datetime", "email", "heapq", "json", "logging", "pathlib", "random")
_DIMENSION = 48


def prose() -> list[dict[str, Any]]:
    """A few hundred records of real prose: the standard library's own docstrings, with where they stand."""
    found = {}
    for module_name in _MODULES:
        module = importlib.import_module(module_name)
        for name, text, kind in _docstrings(module_name, module):
            found.setdefault(name, {"id": name, "document": text, "metadata": _metadata(module_name, text, kind)})
    return list(found.values())


def _docstrings(prefix: str, owner: Any) -> Iterator[tuple[str, str, str]]:
    for name, member in inspect.getmembers(owner):
        if name.startswith("_") or not (inspect.isclass(member) or inspect.isroutine(member)):
            continue
        text = inspect.getdoc(member)
        if text and len(text) > 40:
            yield f"{prefix}.{name}", text, "class" if inspect.isclass(member) else "function"
        if inspect.isclass(member) and prefix.count(".") < 1:
            yield from _docstrings(f"{prefix}.{name}", member)


def _metadata(module: str, text: str, kind: str) -> dict[str, Any]:
    return {
        "module": module,
        "kind": kind,
        "words": len(text.split()),
        "density": len(set(text)) / len(text),
        "long": len(text) > 400,
    }


def embed(text: str) -> list[float]:
    """A vector that depends on the words of `text` and on nothing else: float32, (48,)."""
    vector = np.zeros(_DIMENSION, dtype=np.float32)
    for word in text.lower().split():
        vector += _vector_of(word)
    return (vector / max(float(np.linalg.norm(vector)), 1e-9)).tolist()


@functools.cache
def _vector_of(word: str) -> npt.NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(_DIMENSION, dtype=np.float32)


def everything(url: str, places: list[tuple[str, str]], questions: list[str]) -> dict[str, Any]:
    """All that the Chroma at `url` holds in these (tenant, database)s, and what it answers to `questions`.

    Straight over HTTP, so that no client's own conversions hide a difference. Embeddings come as the
    JSON numbers Chroma sends, which are exact for float32.
    """
    seen: dict[str, Any] = {}
    with httpx.Client(base_url=url, timeout=60) as http:
        for tenant, database in places:
            base = f"/api/v2/tenants/{tenant}/databases/{database}"
            seen[f"{tenant}/{database}"] = http.get(base).json()
            collections = sorted(http.get(f"{base}/collections").json(), key=lambda each: each["name"])
            for collection in collections:
                name = f"{tenant}/{database}/{collection['name']}"
                records = f"{base}/collections/{collection['id']}"
                include = ["embeddings", "documents", "metadatas", "uris"]
                held = http.post(f"{records}/get", json={"include": include}).raise_for_status().json()
                rows = sorted(
                    zip(held["ids"], held["embeddings"], held["documents"], held["metadatas"], strict=True),
                    key=lambda row: row[0],
                )
                answers = None
                if rows and collection["dimension"] == _DIMENSION:
                    asked = {
                        "query_embeddings": [embed(question) for question in questions],
                        "n_results": 5,
                        "include": ["distances", "documents", "metadatas"],
                    }
                    answers = http.post(f"{records}/query", json=asked).raise_for_status().json()
                seen[name] = {
                    "collection": collection,
                    "count": http.get(f"{records}/count").json(),
                    "records": rows,
                    "answers": answers,
                }
    return seen
