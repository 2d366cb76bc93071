"""Vectors that are in the memory of a running Chroma alone, written to its log again."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx

from gateway.chroma.process import base_url, http_client
from gateway.chroma.segments import Segment
from gateway.chroma.watch import collection_url
from gateway.errors import GatewayError

Hold = Callable[[], AbstractAsyncContextManager[object]]
"""Keeps writes back for the time of a block."""

_BATCH = 100
_TIMEOUT_S = 30.0


async def write_to_log(port: int, segment: Segment, ids: Sequence[str], hold: Hold) -> list[str]:
    """Upsert these records of a collection with the vectors that Chroma on `port` itself answers.

    Returns the ids of records of which Chroma has no vector either. Their texts and metadata stay: an upsert changes
    what it names. No write comes between the reading of a vector and its writing. Records that are gone by then are
    left out. Safe to retry. Raises GatewayError if Chroma does not answer, and what `hold` raises.
    """
    url, lost = collection_url(segment.tenant, segment.database, segment.collection_id), list[str]()
    async with http_client(base_url(port), _TIMEOUT_S) as client:
        for begin in range(0, len(ids), _BATCH):
            async with hold():
                found = await _vectors(client, url, ids[begin : begin + _BATCH], lost)
                if found:
                    # Chroma writes its log first (`rust/log/src/sqlite_log.rs`, `push_logs`), so the rows are there
                    # also where it then fails to write the index and answers 500.
                    await _post(client, f"{url}/upsert", {"ids": list(found), "embeddings": list(found.values())})
    return lost


async def _vectors(client: httpx.AsyncClient, url: str, ids: Sequence[str], lost: list[str]) -> dict[str, list[float]]:
    """The vectors by id. Adds to `lost` the ids of which Chroma has none."""
    answer = await _post(client, f"{url}/get", {"ids": ids, "include": ["embeddings"]})
    if answer.status_code == httpx.codes.OK:
        found = answer.json()
        return dict(zip(found["ids"], found["embeddings"], strict=True))
    if len(ids) == 1:
        known = await _post(client, f"{url}/get", {"ids": ids, "include": []})
        if known.status_code != httpx.codes.OK:
            raise GatewayError(f"Chroma does not answer for vectors that only it has: {known.text[:500]}")
        lost += known.json()["ids"]
        return {}
    # One record without a vector fails the whole request (`rust/frontend/src/executor/local.rs`).
    middle = len(ids) // 2
    first = await _vectors(client, url, ids[:middle], lost)
    return first | await _vectors(client, url, ids[middle:], lost)


async def _post(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> httpx.Response:
    try:
        answer = await client.post(url, json=body)
        if answer.status_code != httpx.codes.INTERNAL_SERVER_ERROR:
            answer.raise_for_status()
    except httpx.HTTPError as error:
        raise GatewayError(f"Chroma does not answer for vectors that only it has: {error}") from error
    return answer
