"""One collection of Chroma, as training reads and writes it: like any client, through the gate."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import quote

import httpx

from gateway.errors import BadUpstream, GatewayError, NotFound, Unavailable

Admit = Callable[[str, str | None], AbstractAsyncContextManager[None]]
"""`admit(what, collection_id)` lets one request at a time through to Chroma, or raises Unavailable.

The id is for reads of records alone: with one it is no write, and neither counted nor turned away like one."""

_TIMEOUT_S = 300.0
# A restore takes its time; training waits for it rather than to fail of it.
_PATIENCE_S = 900.0
_PAUSE_S = 1.0
_READ_AT_ONCE = 5000
_BODY_BYTES = 16 << 20


class ChromaClient:
    """The collections of one database. Requests are never broken off, and are repeated while Chroma is away."""

    def __init__(
        self, url: str, admit: Admit, tenant: str, database: str, headers: dict[str, str] | None = None
    ) -> None:
        self._admit = admit
        self._base = f"/api/v2/tenants/{quote(tenant, safe='')}/databases/{quote(database, safe='')}/collections"
        # A proxy of the environment's is not for what stays on this machine.
        away = not url.startswith("http://127.0.0.1:")
        self._client = httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, headers=headers, trust_env=away)
        self.batch_size = 0

    async def __aenter__(self) -> "ChromaClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def collection(self, name: str) -> dict[str, Any] | None:
        """The collection as Chroma describes it; None if there is none."""
        try:
            found: dict[str, Any] = await self._ask("GET", f"{self._base}/{quote(name, safe='')}", "look up", None)
        except NotFound:
            return None
        return found

    async def create(self, name: str, configuration: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
        """Create a collection, or get the one that has been created meanwhile."""
        body = {"name": name, "configuration": configuration, "metadata": metadata, "get_or_create": True}
        created: dict[str, Any] = await self._ask("POST", self._base, "create", None, body)
        return created

    async def describe(self, collection_id: str, metadata: dict[str, Any]) -> None:
        """Give a collection this metadata."""
        body = {"new_metadata": metadata}
        await self._ask("PUT", f"{self._base}/{collection_id}", "describe a collection", None, body)

    async def drop(self, name: str) -> None:
        """Delete a collection."""
        try:
            await self._ask("DELETE", f"{self._base}/{quote(name, safe='')}", "delete a collection", None)
        except NotFound:
            return

    async def records(self, collection_id: str) -> AsyncIterator[tuple[str, dict[str, Any] | None]]:
        """The id and metadata of every record."""
        offset = 0
        while True:
            body = {"limit": _READ_AT_ONCE, "offset": offset, "include": ["metadatas"]}
            page = await self._ask("POST", f"{self._base}/{collection_id}/get", "read", collection_id, body)
            for pair in zip(page["ids"], page["metadatas"], strict=True):
                yield pair
            if len(page["ids"]) < _READ_AT_ONCE:
                return
            offset += _READ_AT_ONCE

    async def upsert(self, collection_id: str, records: list[dict[str, Any]]) -> None:
        """Write records, each with `id`, `embedding`, `document` and `metadata`."""
        for batch in _batches(records, await self._batch_size()):
            body = {
                f"{part}s": [record[part] for record in batch] for part in ("id", "embedding", "document", "metadata")
            }
            await self._ask("POST", f"{self._base}/{collection_id}/upsert", "upsert", None, body)

    async def delete(self, collection_id: str, ids: Iterable[str]) -> None:
        """Delete records; those that are not there are no error."""
        waiting, size = sorted(ids), await self._batch_size()
        for start in range(0, len(waiting), size):
            body = {"ids": waiting[start : start + size]}
            await self._ask("POST", f"{self._base}/{collection_id}/delete", "delete", None, body)

    async def _batch_size(self) -> int:
        if not self.batch_size:
            limits = await self._ask("GET", "/api/v2/pre-flight-checks", "ask for limits", None)
            self.batch_size = max(1, min(int(limits["max_batch_size"]), 1000))
        return self.batch_size

    async def _ask(self, method: str, path: str, what: str, collection_id: str | None, body: Any = None) -> Any:
        """One request and its answer. All that is asked here may be asked twice."""
        give_up_at = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return await _to_its_end(self._once(method, path, what, collection_id, body))
            except Unavailable as error:
                if time.monotonic() > give_up_at:
                    raise
                await asyncio.sleep(error.retry_after_s or _PAUSE_S)

    async def _once(self, method: str, path: str, what: str, collection_id: str | None, body: Any) -> Any:
        try:
            async with self._admit(f"training: {what}", collection_id):
                answer = await self._client.request(method, path, json=body)
        except httpx.TransportError as error:
            raise Unavailable(f"Chroma cannot be asked to {what}: {error or type(error).__name__}") from error
        if answer.status_code in (502, 503, 504, 429):
            raise Unavailable(f"Chroma is away: {answer.text[:300]}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise NotFound(answer.text[:300])
        if answer.is_error:
            raise _refused(what, answer)
        return answer.json()


async def _to_its_end(request: Any) -> Any:
    """What `request` returns; also when we are cancelled it is finished first: Chroma does not stop either."""
    task = asyncio.ensure_future(request)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _batches(records: list[dict[str, Any]], size: int) -> Iterable[list[dict[str, Any]]]:
    """Records in batches that Chroma takes, by their number and by their bytes."""
    batch: list[dict[str, Any]] = []
    size_bytes = 0
    for record in records:
        own_bytes = len(record["embedding"]) + 2 * len(record["document"].encode())
        if batch and (len(batch) == size or size_bytes + own_bytes > _BODY_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(record)
        size_bytes += own_bytes
    if batch:
        yield batch


def _refused(what: str, answer: httpx.Response) -> GatewayError:
    return BadUpstream(f"Chroma refused to {what}: {answer.status_code} {answer.text[:500]}")
