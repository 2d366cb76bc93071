"""Which name a collection's UUID has: read from the database, and cached for a short time.

Chroma finds a collection by its UUID alone and ignores the tenant and database in the path, while scopes are made of
names. The cache is cleared after each request that may rename or delete a collection and with each new Chroma process;
an entry expires after `_CACHED_S`. A name that was read before such a change is not cached after it.
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
_LOOK_UPS_AT_ONCE = 4
_QUERY = "select d.tenant_id, d.name, c.name from collections c join databases d on d.id = c.database_id where c.id = ?"


class Named(NamedTuple):
    """The names of a collection, its database and its tenant."""

    tenant: str
    database: str
    collection: str


class CollectionNames:
    """Use it from the event loop. It reads the database in threads."""

    def __init__(self, data_dir: Path, run: Callable[[], int]) -> None:
        """`run` returns a number that changes with each Chroma process."""
        self._path, self._run = data_dir / DATABASE, run
        self._changes = 0
        self._known: dict[str, tuple[Named, tuple[int, int], float]] = {}
        self._reads = asyncio.Semaphore(_LOOK_UPS_AT_ONCE)

    @property
    def generation(self) -> tuple[int, int]:
        """Changes whenever a UUID may have got another name."""
        return self._changes, self._run()

    def changed(self) -> None:
        """Clear the cache: some UUID may have another name now, or none."""
        self._changes += 1
        self._known.clear()

    def known(self, collection_id: str) -> Named | None:
        """The name if it is cached, else None."""
        found = self._known.get(collection_id)
        if found is None:
            return None
        named, generation, until_s = found
        return named if generation == self.generation and time.monotonic() < until_s else None

    async def find(self, collection_id: str) -> Named | None:
        """The name, None if there is no such collection. It is current when this returns. Raises Unavailable."""
        if named := self.known(collection_id):
            return named
        try:
            async with asyncio.timeout(_TIMEOUT_S), self._reads:
                while True:
                    generation = self.generation
                    found = await asyncio.to_thread(self._read, collection_id)
                    if generation == self.generation:
                        break
                    # A collection was renamed meanwhile, so this name may be the old one.
        except (sqlite3.Error, TimeoutError) as error:
            raise Unavailable("the collection's name cannot be read just now", "send it again") from error
        if found is not None:
            if len(self._known) >= _MAX_CACHED:
                self._known.clear()
            self._known[collection_id] = (found, generation, time.monotonic() + _CACHED_S)
        return found

    def _read(self, collection_id: str) -> Named | None:
        # Opened for each read: a restore puts another file in its place.
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_TIMEOUT_S / 2, isolation_level=None)) as connection:
            row = connection.execute(_QUERY, (collection_id,)).fetchone()
        return Named(*row) if row else None
