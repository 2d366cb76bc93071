"""The name of a collection by its UUID, read from the database and cached for a short time.

Chroma finds a collection by its UUID alone, whatever tenant and database the path names (docs/chroma-internals.md, "A
collection is found by its UUID alone"). Scopes are made of names, so the gateway must know the name.

The cache is cleared by every request that may rename or delete a collection and by every start of Chroma, and entries
expire after `_CACHED_S`. An answer that was read before such a change is not cached after it.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from gateway.chroma.disk import DATABASE
from gateway.errors import Unavailable

_CACHED_S = 10.0
_MAX_CACHED = 10_000
_TIMEOUT_S = 5.0
_MAX_LOOKUPS = 4
_QUERY = "select d.tenant_id, d.name, c.name from collections c join databases d on d.id = c.database_id where c.id = ?"


class CollectionName(NamedTuple):
    """The full name of a collection."""

    tenant: str
    database: str
    collection: str


class CollectionNames:
    """Names by UUID. Call it from the event loop; it reads the database in threads."""

    def __init__(self, data_dir: Path, run: Callable[[], int]) -> None:
        """`run` returns the number of Chroma's present run, which changes with every start."""
        self._path, self._run = data_dir / DATABASE, run
        self._changes = 0
        self._cached: dict[str, tuple[CollectionName, tuple[int, int], float]] = {}
        self._lookups = asyncio.Semaphore(_MAX_LOOKUPS)

    @property
    def generation(self) -> tuple[int, int]:
        """Changes whenever a UUID may have got another name."""
        return self._changes, self._run()

    def changed(self) -> None:
        """Forget every name: a collection may have been renamed or deleted."""
        self._changes += 1
        self._cached.clear()

    def known(self, collection_id: str) -> CollectionName | None:
        """The name, if it is cached."""
        found = self._cached.get(collection_id)
        if found is None:
            return None
        named, generation, until_s = found
        return named if generation == self.generation and time.monotonic() < until_s else None

    async def find(self, collection_id: str) -> CollectionName | None:
        """The name when this call ends; None if there is no such collection. Raises Unavailable. Safe to retry."""
        if named := self.known(collection_id):
            return named
        try:
            async with asyncio.timeout(_TIMEOUT_S), self._lookups:
                while True:
                    generation = self.generation
                    found = await asyncio.to_thread(self._read, collection_id)
                    if generation == self.generation:
                        break
                    # The name may have been read before the change. Read again.
        except (sqlite3.Error, TimeoutError) as error:
            raise Unavailable("the collection's name cannot be read at the moment", "send the request again") from error
        if found is not None:
            if len(self._cached) >= _MAX_CACHED:
                self._cached.clear()
            self._cached[collection_id] = (found, generation, time.monotonic() + _CACHED_S)
        return found

    def _read(self, collection_id: str) -> CollectionName | None:
        # A new connection for each read: a restore replaces the file.
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_TIMEOUT_S / 2, isolation_level=None)) as connection:
            row = connection.execute(_QUERY, (collection_id,)).fetchone()
        return CollectionName(*row) if row else None
