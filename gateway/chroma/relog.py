"""Vectors that are in the memory of a running Chroma alone, written to its log again."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

import httpx

from gateway.chroma.process import base_url, http_client
from gateway.chroma.segments import Segment
from gateway.chroma.watch import collection_url
from gateway.errors import GatewayError

_BATCH = 100
_TIMEOUT_S = 30.0


async def write_to_log(
    port: int, segment: Segment, ids: Sequence[str], hold: Callable[[], AbstractAsyncContextManager[object]]
) -> None:
    """Upsert these records of a collection with the vectors that Chroma on `port` itself answers.

    Their texts and metadata stay: an upsert changes what it names. `hold` keeps writes back for the time of a block, so
    that none comes between the reading of a vector and its writing. Records that are gone by then are left out. Safe to
    retry. Raises GatewayError if Chroma does not do it, and what `hold` raises.
    """
    url = collection_url(segment.tenant, segment.database, segment.collection_id)
    async with http_client(base_url(port), _TIMEOUT_S) as client:
        for begin in range(0, len(ids), _BATCH):
            async with hold():
                wanted = {"ids": ids[begin : begin + _BATCH], "include": ["embeddings"]}
                found = await _ask(client, f"{url}/get", wanted)
                if found["ids"]:
                    await _ask(client, f"{url}/upsert", {"ids": found["ids"], "embeddings": found["embeddings"]})


async def _ask(client: httpx.AsyncClient, url: str, body: Mapping[str, object]) -> dict[str, list[object]]:
    try:
        answer = await client.post(url, json=body)
        answer.raise_for_status()
        result: dict[str, list[object]] = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise GatewayError(f"Chroma does not answer for vectors that only it has: {error}") from error
    return result
