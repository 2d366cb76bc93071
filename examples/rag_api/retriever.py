"""A question into passages, by Chroma's client for asyncio."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from chromadb.api import AsyncClientAPI
from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.errors import AuthorizationError, ChromaAuthError, ChromaError, InvalidArgumentError, NotFoundError

from examples.answers import Passage, passages
from examples.connection import async_client, url
from examples.search import function_of, space_of


class Failed(Exception):
    """A question got no passages. `status` is that of the answer."""

    def __init__(self, status: int, error: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.status, self.error, self.message, self.hint = status, error, message, hint


class Retriever:
    """Asks one collection. It connects when it is first asked, and again after the gateway was away."""

    def __init__(self, collection: str, timeout_s: float = 10) -> None:
        self.collection, self._timeout_s = collection, timeout_s
        self._client: AsyncClientAPI | None = None

    async def search(self, question: str, most: int, filters: dict[str, Any]) -> list[Passage]:
        """At most `most` passages that match the filters, the nearest first. Raises Failed. Safe to retry."""
        async with self._attempt():
            collection = await self._open()
            vector = await asyncio.to_thread(lambda: function_of(collection)([question])[0])
            found = await collection.query(query_embeddings=[vector], n_results=most, where=filters or None)
            return passages(found, space_of(collection))

    async def count(self) -> int:
        """How many chunks the collection has. Raises Failed."""
        async with self._attempt():
            return await (await self._open()).count()

    @asynccontextmanager
    async def _attempt(self) -> AsyncIterator[None]:
        """Gives a search its time, and turns what Chroma's client raises into Failed."""
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError as error:
            raise Failed(504, "Timeout", f"the search took longer than {self._timeout_s} s") from error
        except Exception as error:
            if (failed := _failed(error, self.collection)) is None:
                raise
            raise failed from error

    async def _open(self) -> AsyncCollection:
        if self._client is None:
            try:
                self._client = await async_client()
            except ValueError as error:  # what the client makes of a refused connection
                raise _unavailable(error) from error
        # Each time anew: a restore or a new training may give the name to another collection.
        return await self._client.get_collection(self.collection)


def _failed(error: Exception, collection: str) -> Failed | None:
    """What is answered to an error of the client. None if it is none of the client's."""
    match error:
        case NotFoundError():
            hint = f"make it: chroma-gateway ingest FOLDER --collection {collection}"
            return Failed(404, "NotFound", f"there is no collection {collection}", hint)
        case InvalidArgumentError() | ValueError():  # the client checks filters itself, and raises ValueError
            return Failed(400, "InvalidFilters", str(error), "filters are Chroma's `where`")
        case AuthorizationError() | ChromaAuthError():
            return Failed(502, "Refused", f"the gateway refuses the key: {error}", "set CHROMA_KEY")
    # Of an answer whose error it does not know, the client raises a plain Exception (api/base_http_client.py).
    is_of_the_client = isinstance(error, ChromaError | httpx.HTTPError) or type(error) is Exception
    return _unavailable(error) if is_of_the_client else None


def _unavailable(error: Exception) -> Failed:
    return Failed(503, "Unavailable", f"the gateway at {url()} does not answer: {error}", "try again in a moment")
