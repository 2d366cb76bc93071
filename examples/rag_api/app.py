"""The routes: `POST /query`, `GET /health`, `GET /stats`."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from examples.answers import ModelFailed, Passage, answer, model_name
from examples.rag_api.models import Answer, Health, Problem, Query, Source, Times
from examples.rag_api.retriever import Failed, Retriever
from examples.rag_api.stats import Stats

_MAX_BODY_BYTES = 64 << 10
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 404, 409, 422, 502, 503, 504)
}


def build(retriever: Retriever, at_once: int = 32) -> FastAPI:
    """The application. At most `at_once` questions are answered at a time; more get 503."""
    app = FastAPI(title="Questions and answers", max_body_size=_MAX_BODY_BYTES)
    stats = Stats()
    app.add_middleware(_AtMost, at_once=at_once, stats=stats)

    @app.exception_handler(Failed)
    async def failed(_: Request, error: Failed) -> JSONResponse:
        stats.failed(error.error)
        return _problem(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:]))
        stats.failed("InvalidQuery")
        return _problem(Failed(422, "InvalidQuery", f"{where}: {first['msg']}"))

    @app.post("/query", responses=_PROBLEMS, response_model=Answer, summary="Answer a question")
    async def query(asked: Query) -> Answer | StreamingResponse:
        since = time.perf_counter()
        found = await retriever.search(asked.question, asked.max_results, asked.filters)
        search_ms = _ms_since(since)
        if asked.stream:
            return StreamingResponse(_events(asked.question, found, search_ms, stats), media_type="text/event-stream")
        since = time.perf_counter()
        try:
            text = "".join([piece async for piece in answer(asked.question, found)])
        except ModelFailed as error:
            raise Failed(502, "ModelFailed", str(error)) from error
        times = Times(search_ms=search_ms, answer_ms=_ms_since(since))
        stats.answered(times)
        return Answer(answer=text, sources=_sources(found), time=times, model=model_name())

    @app.get("/health", responses={503: {"model": Problem}}, summary="Can questions be answered")
    async def health() -> Health:
        try:
            records = await retriever.count()
        except Failed as error:
            raise Failed(503, error.error, error.message, error.hint) from error
        return Health(status="ok", collection=retriever.collection, records=records)

    @app.get("/stats", summary="How many questions were answered, and how fast")
    async def read_stats() -> dict[str, Any]:
        return {"collection": retriever.collection, "model": model_name()} | stats.read()

    return app


class _AtMost:
    """Answers 503 to questions beyond a number at a time. A streamed answer counts until its end."""

    def __init__(self, app: ASGIApp, at_once: int, stats: Stats) -> None:
        self._app, self._at_once, self._stats = app, at_once, stats
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") != "/query":
            await self._app(scope, receive, send)
            return
        if self._running >= self._at_once:
            self._stats.failed("Busy")
            busy = Failed(503, "Busy", f"{self._at_once} questions are being answered", "try again in a moment")
            await _problem(busy)(scope, receive, send)
            return
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1


async def _events(question: str, found: list[Passage], search_ms: float, stats: Stats) -> AsyncIterator[str]:
    """Server-sent events: `sources`, then `text` piece by piece, then `done` or `error`."""
    sources = [source.model_dump() for source in _sources(found)]
    yield _event("sources", {"sources": sources, "model": model_name()})
    since = time.perf_counter()
    try:
        async for piece in answer(question, found):
            yield _event("text", {"text": piece})
    except ModelFailed as error:
        stats.failed("ModelFailed")
        yield _event("error", {"error": "ModelFailed", "message": str(error)})
        return
    times = Times(search_ms=search_ms, answer_ms=_ms_since(since))
    stats.answered(times)
    yield _event("done", {"time": times.model_dump()})


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _sources(found: list[Passage]) -> list[Source]:
    return [Source.model_validate(passage._asdict()) for passage in found]


def _problem(error: Failed) -> JSONResponse:
    problem = Problem(error=error.error, message=error.message, hint=error.hint)
    headers = {"Retry-After": "1"} if error.status == 503 else None
    return JSONResponse(problem.model_dump(exclude_none=True), error.status, headers)


def _ms_since(since: float) -> float:
    return round((time.perf_counter() - since) * 1000, 1)
