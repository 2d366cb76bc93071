"""How training reads and writes a collection of Chroma: as any client, through the write gate."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import quote

import httpx

from gateway.aio import uninterrupted
from gateway.chroma.process import NO_TLS
from gateway.errors import BadUpstream, NotFound, Unavailable

Admit = Callable[[str, str | None, str | None], AbstractAsyncContextManager[None]]
"""`admit(action, collection_id, touches)` holds the write gate open for one request to Chroma, or raises Unavailable.

`collection_id` is given for reads of records only. A request without it counts as a write. `touches` is the collection
whose records are read or written."""

_TIMEOUT_S = 300.0
# Long enough for a restore to end: training then goes on.
_RETRY_FOR_S = 900.0
_RETRY_PAUSE_S = 1.0
_PAGE_RECORDS = 5000
_BODY_BYTES = 16 << 20


class ChromaClient:
    """The collections of one database.

    A request is repeated while Chroma is unavailable. A cancelled caller waits for the end of its request, because
    Chroma does not stop working on it either.
    """

    def __init__(
        self, url: str, admit: Admit, tenant: str, database: str, headers: dict[str, str] | None = None
    ) -> None:
        self._admit = admit
        self._base = f"/api/v2/tenants/{quote(tenant, safe='')}/databases/{quote(database, safe='')}/collections"
        # HTTP_PROXY must not apply to a Chroma on this machine.
        is_remote = not url.startswith("http://127.0.0.1:")
        self._client = httpx.AsyncClient(
            base_url=url, timeout=_TIMEOUT_S, headers=headers, trust_env=is_remote, verify=is_remote or NO_TLS
        )
        self.batch_size = 0

    async def __aenter__(self) -> "ChromaClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def collection(self, name: str) -> dict[str, Any] | None:
        """Return the collection as Chroma describes it, or None."""
        try:
            found: dict[str, Any] = await self._ask("GET", f"{self._base}/{quote(name, safe='')}", "look up", None)
        except NotFound:
            return None
        return found

    async def create(self, name: str, configuration: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
        """Create a collection and return it. If it exists by now, return that one."""
        body = {"name": name, "configuration": configuration, "metadata": metadata, "get_or_create": True}
        created: dict[str, Any] = await self._ask("POST", self._base, "create", None, body)
        return created

    async def set_metadata(self, collection_id: str, metadata: dict[str, Any]) -> None:
        """Replace a collection's metadata."""
        body = {"new_metadata": metadata}
        await self._ask("PUT", f"{self._base}/{collection_id}", "set metadata", None, body)

    async def drop(self, name: str) -> None:
        """Delete a collection if it exists."""
        try:
            await self._ask("DELETE", f"{self._base}/{quote(name, safe='')}", "delete a collection", None)
        except NotFound:
            return

    async def records(self, collection_id: str) -> AsyncIterator[tuple[str, dict[str, Any] | None]]:
        """Yield the id and metadata of every record."""
        offset = 0
        while True:
            body = {"limit": _PAGE_RECORDS, "offset": offset, "include": ["metadatas"]}
            page = await self._ask(
                "POST", f"{self._base}/{collection_id}/get", "read", collection_id, body, collection_id
            )
            for pair in zip(page["ids"], page["metadatas"], strict=True):
                yield pair
            if len(page["ids"]) < _PAGE_RECORDS:
                return
            offset += _PAGE_RECORDS

    async def upsert(self, collection_id: str, records: list[dict[str, Any]]) -> None:
        """Write records. Each has `id`, `embedding` (float32 in base64), `document` and `metadata`."""
        for batch in _batches(records, await self._batch_size()):
            body = {
                f"{part}s": [record[part] for record in batch] for part in ("id", "embedding", "document", "metadata")
            }
            await self._ask("POST", f"{self._base}/{collection_id}/upsert", "upsert", None, body, collection_id)

    async def delete(self, collection_id: str, ids: Iterable[str]) -> None:
        """Delete records. Ids that do not exist are ignored."""
        remaining, size = sorted(ids), await self._batch_size()
        for start in range(0, len(remaining), size):
            body = {"ids": remaining[start : start + size]}
            await self._ask("POST", f"{self._base}/{collection_id}/delete", "delete", None, body, collection_id)

    async def _batch_size(self) -> int:
        if not self.batch_size:
            limits = await self._ask("GET", "/api/v2/pre-flight-checks", "ask for its limits", None)
            self.batch_size = max(1, min(int(limits["max_batch_size"]), 1000))
        return self.batch_size

    async def _ask(
        self,
        method: str,
        path: str,
        action: str,
        collection_id: str | None,
        body: Any = None,
        touches: str | None = None,
    ) -> Any:
        """Send a request and return the answer's JSON. Every request of this class is safe to repeat.

        `collection_id` and `touches`: see `Admit`.
        """
        give_up_at = time.monotonic() + _RETRY_FOR_S
        while True:
            try:
                # Chroma finishes a request even if its client has gone.
                return await uninterrupted(self._send(method, path, action, collection_id, touches, body))
            except Unavailable as error:
                if time.monotonic() > give_up_at:
                    raise
                await asyncio.sleep(error.retry_after_s or _RETRY_PAUSE_S)

    async def _send(
        self, method: str, path: str, action: str, collection_id: str | None, touches: str | None, body: Any
    ) -> Any:
        try:
            async with self._admit(f"training: {action}", collection_id, touches):
                answer = await self._client.request(method, path, json=body)
        except httpx.TransportError as error:
            raise Unavailable(f"Chroma cannot be reached to {action}: {error or type(error).__name__}") from error
        if answer.status_code in (502, 503, 504, 429):
            raise Unavailable(f"Chroma is unavailable: {answer.text[:300]}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise NotFound(answer.text[:300])
        if answer.is_error:
            raise BadUpstream(f"Chroma refused to {action}: {answer.status_code} {answer.text[:500]}")
        return answer.json()


def _batches(records: list[dict[str, Any]], size: int) -> Iterable[list[dict[str, Any]]]:
    """Yield records in batches of at most `size` records and _BODY_BYTES bytes."""
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
