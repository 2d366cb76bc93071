"""`Admin`: the blocking client."""

import contextlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Self

import httpx

from gateway.admin import http
from gateway.admin.answers import Document, Job, Snapshot
from gateway.admin.calls import PIECE_BYTES, Blocking, Call, ignore
from gateway.admin.routes import DocumentRoutes, GatewayRoutes, JobRoutes, SnapshotRoutes


class Snapshots(SnapshotRoutes, Blocking):
    """`Admin.snapshots`."""

    def all(self) -> Iterator[Snapshot]:
        """All snapshots, newest first, page after page."""
        after: str | None = None
        while True:
            page = self.list(after=after)
            yield from page["snapshots"]
            if (after := page.get("next")) is None:
                return


class Jobs(JobRoutes, Blocking):
    """`Admin.jobs`."""

    def __init__(self, perform: Callable[[Call[Any]], Any], watch: Callable[[str], Iterator[Job]]) -> None:
        super().__init__(perform)
        self._watch = watch

    def watch(self, job_id: str) -> Iterator[Job]:
        """The job now, then after each change, at most four times a second, and last as it ended. Safe to retry."""
        return self._watch(job_id)


class Documents(DocumentRoutes, Blocking):
    """What `Admin.documents` returns."""

    def __init__(self, perform: Callable[[Call[Any]], Any], user_id: str) -> None:
        super().__init__(perform)
        self.user_id = user_id

    def all(self, folder: str, *, prefix: str = "", digests: bool = False) -> Iterator[Document]:
        """All documents of a folder, by name, page after page."""
        after: str | None = ""
        while after is not None:
            page = self.list(folder, prefix=prefix, after=after, digests=digests)
            yield from page["documents"]
            after = page["next"]


class Admin(GatewayRoutes, Blocking):
    """The admin API of a running gateway. One object may be used by several threads. Close it, or use `with`."""

    def __init__(self, url: str = http.DEFAULT_URL, *, token: str, use_proxies: bool | None = None) -> None:
        """`token` is the admin token, or an admin's key.

        `use_proxies` says whether the proxies of the environment are used; by default, unless the gateway is on
        loopback. Raises ConfigError if `url` or `token` cannot be used. Sends nothing yet.
        """
        super().__init__(self._answer)
        self.url = url.rstrip("/")
        self._http = httpx.Client(**http.client_options(self.url, token, use_proxies))
        self.snapshots = Snapshots(self._answer)
        self.jobs = Jobs(self._answer, self._events)

    def documents(self, user_id: str = "default") -> Documents:
        """The training documents of the gateway's user, which GATEWAY_USER_ID names."""
        return Documents(self._answer, user_id)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, call: Call[Any]) -> Any:
        if call.into is not None:
            return self._download(call, call.into)
        answer = self._request(call)
        return call.result(answer if call.on_job is None else self._result(call, http.job_of(self.url, answer)))

    def _request(self, call: Call[Any]) -> Any:
        content = None if call.body is None else call.body.pieces
        with http.translated(self.url):
            answer = self._http.request(call.method, call.path, content=content, **http.options_of(call))
        return http.answer_of(self.url, answer)

    def _result(self, call: Call[Any], job: Job) -> Any:
        on_job = call.on_job or ignore
        try:
            while job["state"] == "running":
                for event in self._events(job["id"]):
                    job = event
                    on_job(job)
        except KeyboardInterrupt:
            if call.goes_on():
                raise http.goes_on(job) from None
            self.jobs.cancel(job["id"])
            raise
        return http.result_of(job, call.path)

    def _events(self, job_id: str) -> Iterator[Job]:
        with self._stream(Call("GET", f"/admin/jobs/{job_id}/events")) as answer:
            for line in answer.iter_lines():
                if (event := http.event_of(line)) is not None:
                    yield http.job_of(self.url, event)

    def _download(self, call: Call[Any], file: IO[bytes]) -> None:
        with self._stream(call) as answer:
            done, total = 0, http.length_of(answer)
            for piece in answer.iter_bytes(PIECE_BYTES):
                file.write(piece)
                done += len(piece)
                call.on_bytes(done, total)

    @contextlib.contextmanager
    def _stream(self, call: Call[Any]) -> Iterator[httpx.Response]:
        options = http.options_of(call) | {"timeout": http.NO_ANSWER_TIMEOUT}
        with http.translated(self.url), self._http.stream(call.method, call.path, **options) as answer:
            if not answer.is_success:
                answer.read()
            http.require_success(self.url, answer)
            yield answer
