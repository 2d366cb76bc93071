"""Whether Chroma is up, and which collections can be read. `gateway.chroma.managed` starts it again when it died.

After each start of Chroma every collection is read once, four at a time. Suspects (`gateway.chroma.quarantine`) are
read last and alone, so that it is known which one Chroma dies of. What is quarantined is not read. A collection for
which Chroma answers status 500 later is read again, and so is what could not be read.

One connection is kept open and idle: when Chroma's process ends, however it ends, the kernel closes
it and the event loop hears of it before a new Chroma can listen. Chroma itself never closes it (seen
open after 240 idle seconds).
"""

import asyncio
import contextlib
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import httpx
import structlog

from gateway.aio import poll_until
from gateway.chroma.database import Collection, newest_log_row, read_contents
from gateway.chroma.disk_probe import named
from gateway.chroma.index_health import IndexHealth
from gateway.chroma.log import keep_log
from gateway.chroma.process import HOST, base_url, http_client
from gateway.chroma.quarantine import Quarantine
from gateway.errors import GatewayError, Unavailable

log = structlog.get_logger()

_POLL_S = 0.05
_PROBE_TIMEOUT_S = 300.0
_HEARTBEAT_TIMEOUT_S = 5.0
_PROBES_AT_ONCE = 4
_PROBE_AGAIN_S = 5.0
_HEARS_OF_END_S = 1.0
# How Rust's standard library writes an error of the system.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_DATABASE = "(database)"

Ticket = Callable[[str, str], AbstractAsyncContextManager[None]]


class ChromaWatch:
    """Follows one Chroma. `run` is its task; everything else may be asked at any time."""

    def __init__(
        self,
        data_dir: Path,
        port: int,
        ticket: Ticket,
        on_gone: Callable[[], None],
        quarantine: Quarantine | None = None,
    ) -> None:
        """`ticket(what, collection_id)` admits one first read; `on_gone` is called when Chroma's process ended."""
        self._data_dir, self.port, self._ticket, self._on_gone = data_dir, port, ticket, on_gone
        self._quarantine, self._health = quarantine or Quarantine(), IndexHealth(data_dir)
        self._changed = asyncio.Event()
        self.up = False
        self.starts = 0
        self.first_row: int | None = None
        """The newest row of Chroma's log when its present run was noticed, None if that could not be read."""
        self.warmed = False
        self.to_warm = self.done_warming = 0
        self.unreadable: dict[str, str] = {}
        """What could not be read, or not all of it, and why: by "tenant/database/collection"."""
        self.refused: frozenset[str] = frozenset()
        """Those of `unreadable` whose requests are refused."""

    async def run(self) -> None:
        """Follow Chroma until cancelled: connect, warm every collection, wait for its end, begin anew."""
        async with http_client(base_url(self.port), _PROBE_TIMEOUT_S) as client:
            while True:
                async with self._connection(client) as ended:
                    self.first_row = await asyncio.to_thread(self._keep_log)
                    self.up, self.starts = True, self.starts + 1
                    self._notify()
                    log.info("chroma is up", starts=self.starts)
                    warming = asyncio.create_task(self._keep_warm(client))
                    try:
                        await ended()
                        self._quarantine.chroma_gone()
                    finally:
                        warming.cancel()
                        await asyncio.gather(warming, return_exceptions=True)
                        self.up = self.warmed = False
                        self.unreadable, self.refused = {}, frozenset()
                        self._on_gone()
                        self._notify()
                log.warning("chroma is gone")

    def _keep_log(self) -> int | None:
        # From the first start on: with its log, an index that a crash has torn comes back whole.
        try:
            keep_log(self._data_dir)
            return newest_log_row(self._data_dir)
        except GatewayError as error:
            log.warning("Chroma cannot be told to keep its log", cause=error.message)
            return None

    async def until(self, condition: Callable[["ChromaWatch"], bool], timeout_s: float | None) -> bool:
        """Wait until `condition` holds, e.g. `lambda watch: watch.warmed`; return whether it did in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition(self):
                    await self._changed.wait()
        except TimeoutError:
            return condition(self)
        return True

    def require_served(self) -> int:
        """The number of Chroma's present run.

        Collections that cannot be read do not matter. Raises Unavailable while Chroma starts, and where the list of
        collections cannot be read.
        """
        if not self.up or not self.warmed:
            raise Unavailable("Chroma is starting", "wait until GET /readyz answers 200")
        if _DATABASE in self.unreadable:
            raise Unavailable(
                f"the list of collections cannot be read: {self.unreadable[_DATABASE]}", "see GET /readyz"
            )
        return self.starts

    @property
    def serves_nothing(self) -> bool:
        """Whether there are collections, and none of them is served."""
        return _DATABASE in self.unreadable or 0 < self.to_warm == len(self.refused)

    async def require_same_run(self, run: int) -> None:
        """Raise Unavailable unless Chroma's run number `run` still lives, as of this call's end."""
        alive = False
        with contextlib.suppress(Exception):
            async with http_client(base_url(self.port), _HEARTBEAT_TIMEOUT_S) as client:
                alive = (await client.get("/api/v2/heartbeat")).status_code == httpx.codes.OK
        if not alive or not self.up or self.starts != run:
            raise Unavailable(
                "Chroma ended meanwhile, so its files may be torn", "try again when GET /readyz answers 200"
            )

    # ------------------------------------------------------------------ inside

    @contextlib.asynccontextmanager
    async def _connection(self, client: httpx.AsyncClient) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Connect as soon as Chroma answers; yields a wait for the end of its process."""
        while True:
            writer = None
            try:
                reader, writer = await asyncio.open_connection(HOST, self.port)
                response = await client.get("/api/v2/heartbeat", timeout=_HEARTBEAT_TIMEOUT_S)
                if response.status_code == httpx.codes.OK and not reader.at_eof():
                    break
            except Exception as error:
                # Whatever a dying Chroma makes of a connection (an AttributeError of uvloop's closed transport
                # was seen): the watch must outlive it, since everything waits for what it says.
                log.debug("chroma does not answer yet", cause=repr(error))
            if writer is not None:
                writer.close()
            await asyncio.sleep(_POLL_S)

        async def ended() -> None:
            with contextlib.suppress(Exception):
                await reader.read()

        try:
            yield ended
        finally:
            writer.close()

    async def _keep_warm(self, client: httpx.AsyncClient) -> None:
        """Read every collection once; those that failed and those that are doubted again and again."""
        again: set[str] | None = None
        while True:
            try:
                contents = await asyncio.to_thread(read_contents, self._data_dir)
            except Exception as error:
                self.unreadable = {_DATABASE: str(error)}
                log.error("the list of collections cannot be read", cause=str(error))
            else:
                collections, doubted = contents.collections, self._quarantine.doubted
                if again is not None:
                    again |= {_full_name(each) for each in collections if each.id in doubted}
                doubted.clear()
                await self._warm(client, collections, again)
                self.warmed, again = True, set(self.unreadable)
                self._notify()
            await asyncio.sleep(_PROBE_AGAIN_S)
            await poll_until(self._is_in_doubt, every_s=_PROBE_AGAIN_S, timeout_s=math.inf)

    async def _is_in_doubt(self) -> bool:
        return bool(self.unreadable or self._quarantine.doubted)

    async def _warm(self, client: httpx.AsyncClient, collections: list[Collection], names: set[str] | None) -> None:
        """Read those of `collections` that have one of these names, or all."""
        quarantined, suspects = self._quarantine.quarantined, self._quarantine.suspects
        found = {each.id: quarantined[each.id] for each in collections if each.id in quarantined}
        refused = set(found)
        wanted = [each for each in collections if each.id not in found and (names is None or _full_name(each) in names)]
        self.to_warm, self.done_warming = len(collections), len(collections) - len(wanted)
        places = asyncio.Semaphore(_PROBES_AT_ONCE)

        async def warm(collection: Collection) -> None:
            async with places:
                if problem := await self._read(client, collection):
                    found[collection.id] = problem.why
                    if problem.is_whole:
                        refused.add(collection.id)
                self.done_warming += 1

        async with asyncio.TaskGroup() as group:
            for collection in wanted:
                if collection.id not in suspects:
                    group.create_task(warm(collection))
        for collection in wanted:
            if collection.id in suspects:
                await warm(collection)
        for collection in wanted if names is not None else ():
            # Chroma answers from its memory while it cannot write its files.
            if collection.id not in found and (torn := await self._torn(collection)):
                found[collection.id] = f"its index is torn on the disk: {torn}"
        self._quarantine.unreadable = {each: found[each] for each in refused - set(quarantined)}
        self.unreadable = {_full_name(each): found[each.id] for each in collections if each.id in found}
        self.refused = frozenset(_full_name(each) for each in collections if each.id in refused)

    async def _torn(self, collection: Collection) -> str | None:
        try:
            return await asyncio.to_thread(self._health.torn, collection.id)
        except GatewayError as error:
            log.warning("an index cannot be checked", collection=_full_name(collection), cause=error.message)
            return None

    async def _read(self, client: httpx.AsyncClient, collection: Collection) -> "_Problem | None":
        name = _full_name(collection)
        try:
            async with self._ticket(f"warming {name}", collection.id):
                self._quarantine.begin_probe(collection.id)
                why = await probe(client, collection)
                problem = _Problem(why, not await _answers(client, collection)) if why else None
                self._quarantine.end_probe(collection.id)
                if problem:
                    raise _Unreadable(problem)
        except _Unreadable as error:
            problem = error.problem
        except httpx.TransportError as error:
            # Chroma may just have ended. Then this is cancelled in a moment. Nothing else may begin before that, or it
            # would be suspected too.
            await asyncio.sleep(_HEARS_OF_END_S)
            problem = _Problem(str(error) or type(error).__name__, True)
        except Exception as error:
            problem = _Problem(str(error) or type(error).__name__, True)
        if problem:
            log.error("a collection cannot be read or written", collection=name, cause=problem.why)
        return problem

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _Problem(NamedTuple):
    """Why a collection cannot be read, and whether Chroma answers nothing at all of it."""

    why: str
    is_whole: bool


class _Unreadable(Exception):
    """Ends the ticket of a read that failed, so that the collection does not count as warm."""

    def __init__(self, problem: _Problem) -> None:
        super().__init__(problem.why)
        self.problem = problem


def _full_name(collection: Collection) -> str:
    return f"{collection.tenant}/{collection.database}/{collection.name}"


def collection_url(tenant: str, database: str, collection_id: str) -> str:
    """The path of a collection in Chroma's API."""
    return f"/api/v2/tenants/{quote(tenant, safe='')}/databases/{quote(database, safe='')}/collections/{collection_id}"


def _url(collection: Collection) -> str:
    return collection_url(collection.tenant, collection.database, collection.id)


async def _answers(client: httpx.AsyncClient, collection: Collection) -> bool:
    """Whether Chroma answers at least what needs no vectors."""
    base = _url(collection)
    counted = await client.get(f"{base}/count")
    read = await client.post(f"{base}/get", json={"limit": 1, "include": ["metadatas", "documents"]})
    return counted.status_code == read.status_code == httpx.codes.OK


async def probe(client: httpx.AsyncClient, collection: Collection) -> str | None:
    """Count a collection, read a record and find it by its vector; say what failed, None if nothing.

    A collection that is gone by now is no failure. A heartbeat is green while an index is torn, so
    this goes through both segments.
    """
    base = _url(collection)
    counted = await client.get(f"{base}/count")
    if counted.status_code == httpx.codes.NOT_FOUND:
        return None
    if counted.status_code != httpx.codes.OK:
        return f"count: {_why(counted)}"
    read = await client.post(f"{base}/get", json={"limit": 1, "include": ["embeddings", "metadatas", "documents"]})
    if read.status_code == httpx.codes.NOT_FOUND:
        return None
    if read.status_code != httpx.codes.OK:
        return f"get: {_why(read)}"
    vectors = [vector for vector in read.json().get("embeddings") or [] if vector]
    if vectors:
        found = await client.post(f"{base}/query", json={"query_embeddings": vectors, "n_results": 1, "include": []})
        if found.status_code not in (httpx.codes.OK, httpx.codes.NOT_FOUND):
            return f"query: {_why(found)}"
    return None


def _why(response: httpx.Response) -> str:
    said = f"{response.status_code} {response.text[:500]}"
    number = _OS_ERROR.search(said)
    return named(int(number[1]), said) if number else said
