"""`AsyncAdmin`: the client for asyncio."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import IO, Any, Self

import httpx

from gateway.admin import http
from gateway.admin.answers import Document, Job, Snapshot
from gateway.admin.calls import PIECE_BYTES, Awaiting, Call, ignore
from gateway.admin.routes import DocumentRoutes, GatewayRoutes, JobRoutes, SnapshotRoutes


class AsyncSnapshots(SnapshotRoutes, Awaiting):
    """`AsyncAdmin.snapshots`."""

    async def all(self) -> AsyncIterator[Snapshot]:
        """All snapshots, newest first, page after page."""
        after: str | None = None
        while True:
            page = await self.list(after=after)
            for snapshot in page["snapshots"]:
                yield snapshot
            if (after := page.get("next")) is None:
                return


class AsyncJobs(JobRoutes, Awaiting):
    """`AsyncAdmin.jobs`."""

    def __init__(
        self, perform: Callable[[Call[Any]], Coroutine[Any, Any, Any]], watch: Callable[[str], AsyncIterator[Job]]
    ) -> None:
        super().__init__(perform)
        self._watch = watch

    def watch(self, job_id: str) -> AsyncIterator[Job]:
        """The job now, then after each change, at most four times a second, and last as it ended. Safe to retry."""
        return self._watch(job_id)


class AsyncDocuments(DocumentRoutes, Awaiting):
    """What `AsyncAdmin.documents` returns."""

    def __init__(self, perform: Callable[[Call[Any]], Coroutine[Any, Any, Any]], user_id: str) -> None:
        super().__init__(perform)
        self.user_id = user_id

    async def all(self, folder: str, *, prefix: str = "", digests: bool = False) -> AsyncIterator[Document]:
        """All documents of a folder, by name, page after page."""
        after: str | None = ""
        while after is not None:
            page = await self.list(folder, prefix=prefix, after=after, digests=digests)
            for document in page["documents"]:
                yield document
            after = page["next"]


class AsyncAdmin(GatewayRoutes, Awaiting):
    """The admin API of a running gateway, for asyncio. Close it, or use `async with`."""

    def __init__(self, url: str = http.DEFAULT_URL, *, token: str, use_proxies: bool | None = None) -> None:
        """As `Admin`."""
        super().__init__(self._answer)
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(**http.client_options(self.url, token, use_proxies))
        self.snapshots = AsyncSnapshots(self._answer)
        self.jobs = AsyncJobs(self._answer, self._events)

    def documents(self, user_id: str = "default") -> AsyncDocuments:
        """The training documents of the gateway's user, which GATEWAY_USER_ID names."""
        return AsyncDocuments(self._answer, user_id)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _answer(self, call: Call[Any]) -> Any:
        if call.into is not None:
            return await self._download(call, call.into)
        answer = await self._request(call)
        if call.on_job is not None:
            answer = await self._result(call, http.job_of(self.url, answer))
        return call.result(answer)

    async def _request(self, call: Call[Any]) -> Any:
        content = None if call.body is None else _in_threads(call.body.pieces)
        with http.translated(self.url):
            answer = await self._http.request(call.method, call.path, content=content, **http.options_of(call))
        return http.answer_of(self.url, answer)

    async def _result(self, call: Call[Any], job: Job) -> Any:
        on_job = call.on_job or ignore
        try:
            while job["state"] == "running":
                async for event in self._events(job["id"]):
                    job = event
                    on_job(job)
        except asyncio.CancelledError:
            if call.goes_on():
                raise
            await self.jobs.cancel(job["id"])
            raise
        return http.result_of(job, call.path)

    async def _events(self, job_id: str) -> AsyncIterator[Job]:
        async with self._stream(Call("GET", f"/admin/jobs/{job_id}/events")) as answer:
            async for line in answer.aiter_lines():
                if (event := http.event_of(line)) is not None:
                    yield http.job_of(self.url, event)

    async def _download(self, call: Call[Any], file: IO[bytes]) -> None:
        async with self._stream(call) as answer:
            done, total = 0, http.length_of(answer)
            async for piece in answer.aiter_bytes(PIECE_BYTES):
                await asyncio.to_thread(file.write, piece)
                done += len(piece)
                call.on_bytes(done, total)

    @contextlib.asynccontextmanager
    async def _stream(self, call: Call[Any]) -> AsyncIterator[httpx.Response]:
        options = http.options_of(call) | {"timeout": http.NO_ANSWER_TIMEOUT}
        with http.translated(self.url):
            async with self._http.stream(call.method, call.path, **options) as answer:
                if not answer.is_success:
                    await answer.aread()
                http.require_success(self.url, answer)
                yield answer


async def _in_threads(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """`pieces`, which read a file or pack an archive, without blocking the event loop."""
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece
