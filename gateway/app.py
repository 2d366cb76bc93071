"""The gateway's process: builds the objects, mounts the routers, serves until told to stop.

`/api/` goes to the data path, past every framework; all else goes to FastAPI. One process, one loop.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import structlog
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

import gateway
from gateway import jobs_api
from gateway.auth.admin_token import TOKEN_FILE, AdminToken, read_or_make
from gateway.chroma.directory import DataDirectory
from gateway.chroma.managed import ManagedChroma
from gateway.chroma.process import HOST, base_url
from gateway.chroma.supervisor import Supervisor
from gateway.chroma.watch import ChromaWatch
from gateway.config import Settings
from gateway.documents import api as documents_api
from gateway.documents.api import Documents
from gateway.documents.embedding import Embedding
from gateway.documents.library import Library
from gateway.documents.train import Trainer
from gateway.errors import BodyTooLarge, ConfigError, GatewayError, InvalidRequest, NotAllowed, NotFound
from gateway.jobs import Jobs
from gateway.observe import api as observe_api
from gateway.observe.health import Health
from gateway.proxy.data_path import DataPath
from gateway.proxy.gate import Gate
from gateway.proxy.limits import Limits
from gateway.snapshot import api as snapshot_api
from gateway.snapshot.operations import Operations, snapshot_regularly
from gateway.snapshot.repository import Repository
from gateway.store import Prefixed, open_store

log = structlog.get_logger()

# Of the 10 s that platforms give after SIGTERM: requests under way, then the final snapshot, then
# Chroma's own stop.
_GRACE_S = 4
_LAST_BUDGET_S = 8.0
# What has not ended then breaks off: everybody else is turned away meanwhile.
_REFUSAL_GRACE_S = 5.0
_MAX_ADMIN_BODY_BYTES = 64 << 10
_DESCRIPTION = """
Administration of a Chroma Gateway. The data path `/api/*` is Chroma's own and not described here.

Errors have Chroma's shape: `error`, `message` and, where we know what to do next, `hint`.
"""


class House:
    """Everything of one gateway, built from its settings."""

    def __init__(self, settings: Settings, admin_token: str) -> None:
        self.settings = settings
        self.directory = DataDirectory(settings.data_dir)
        store = open_store(settings.store, addressing=settings.s3_addressing)
        self.repository = Repository(Prefixed(store, settings.repository_prefix))
        self.gate = Gate(settings.gate_timeout_s)
        limits = Limits(
            client_timeout_s=settings.client_timeout_s,
            queue_timeout_s=settings.gate_timeout_s,
            read_timeout_s=settings.read_timeout_s,
            max_body_bytes=settings.max_body_bytes,
            max_in_flight=settings.max_in_flight,
            max_queued=settings.max_queued,
        )
        self.data_path = DataPath(self.gate, HOST, settings.chroma_port, limits)
        self.watch = ChromaWatch(settings.data_dir, settings.chroma_port, self.gate.ticket, self.gate.chroma_gone)
        self.chroma = ManagedChroma(
            Supervisor(settings.supervisor_url) if settings.supervisor_url else None, self.watch
        )
        self.operations = Operations(
            self.repository,
            self.directory,
            self.watch,
            self.chroma,
            hold=lambda: self.gate.hold(settings.drain_timeout_s),
            refuse=lambda reason: self.gate.refuse(reason, _REFUSAL_GRACE_S),
        )
        self.jobs = Jobs()
        self.documents = Documents(
            Library(store, settings.user_id, settings.max_document_bytes),
            Trainer(
                base_url(settings.chroma_port),
                self.gate.admitted,
                embedding=Embedding.of(settings.embedding),
                module=settings.embedding_module or None,
            ),
            self.jobs,
        )
        self.health = Health(settings, self.directory, self.watch, self.gate, self.operations)
        self.stop_by: float | None = None
        self.last_failure: GatewayError | None = None
        self.admin = _admin_application(self, admin_token)

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """What runs beside requests; at the end the final snapshot."""
        snapshotter = self.operations.snapshotter
        work = (
            self.watch.run(),
            self.data_path.watch_the_clock(),
            self.operations.begin(),
            snapshotter.keep_bounded(),
            *self._schedule(),
        )
        watching, timing, beginning, bounding, *scheduling = (asyncio.create_task(_logged(each)) for each in work)
        # Their first steps: an interrupted restore refuses requests before there can be one.
        await asyncio.sleep(0)
        log.info("gateway is listening", host=self.settings.host, port=self.settings.port)
        try:
            yield
        finally:
            await _end(*scheduling)
            await self.jobs.close()
            await self._last_snapshot()
            await _end(watching, timing, beginning, bounding)
            await snapshotter.close()
            self.data_path.close()
            await self.repository.close()

    def _schedule(self) -> list[Coroutine[Any, Any, None]]:
        interval_s = self.settings.snapshot_interval_s
        return [snapshot_regularly(self.operations, interval_s)] if interval_s else []

    async def _last_snapshot(self) -> None:
        """Requests have ended. Take the final snapshot in what is left of the grace; keep why, if it failed."""
        await self.operations.resume()
        left_s = (self.stop_by or time.monotonic() + _LAST_BUDGET_S) - time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                await self.operations.until_idle()
                if self.settings.takes_final_snapshot and self.watch.starts:
                    await self.operations.snapshot("final")
                else:
                    async with self.gate.hold(left_s):
                        pass
        except TimeoutError:
            self.last_failure = GatewayError(f"the final snapshot did not fit into the {left_s:.1f} s that were left")
        except GatewayError as error:
            self.last_failure = error


def serve(settings: Settings) -> None:
    """Run the gateway until SIGTERM or SIGINT.

    Raises ConfigError before it listens, and at the end what kept the final snapshot from being taken.
    """
    directory = DataDirectory(settings.data_dir)
    directory.make()
    directory.claim_as_gateway()
    token = settings.admin_token.get_secret_value() if settings.admin_token else None
    if token is None:
        token = read_or_make(TOKEN_FILE)
        log.info("the admin token is in a file", path=str(TOKEN_FILE.absolute()))
    listener = _listen(settings.host, settings.port)
    house = House(settings, token)
    config = uvicorn.Config(
        _bounded(house.admin, settings.max_document_bytes),
        http=house.data_path,  # type: ignore[arg-type]  # only ever called, as a class would be
        ws="none",
        loop="uvloop",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    _Server(config, house).run(sockets=[listener])
    if house.last_failure is not None:
        raise house.last_failure


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, house: House) -> None:
        super().__init__(config)
        self._house = house

    def handle_exit(self, sig: int, frame: Any) -> None:
        # The budget runs from the signal, not from whenever requests have ended. uvicorn's own handler
        # would raise the signal again at the end, and a clean stop would look like a death.
        self._house.stop_by = self._house.stop_by or time.monotonic() + _LAST_BUDGET_S
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}", "set HOST and PORT") from error
    listener.setblocking(False)
    return listener


def _admin_application(house: House, admin_token: str) -> FastAPI:
    app = FastAPI(
        title="Chroma Gateway",
        version=gateway.__version__,
        description=_DESCRIPTION,
        lifespan=house.lifespan,
        max_body_size=_MAX_ADMIN_BODY_BYTES,
        responses={"default": {"model": ErrorBody, "description": "any error"}},
    )
    app.state.operations, app.state.health = house.operations, house.health
    app.include_router(observe_api.public)
    protected = [Depends(AdminToken(admin_token))]
    app.include_router(observe_api.admin, dependencies=protected)
    app.include_router(snapshot_api.router, dependencies=protected)
    app.state.jobs = house.jobs
    app.include_router(jobs_api.router, dependencies=protected)
    app.state.documents = house.documents
    app.include_router(documents_api.router, dependencies=protected)

    @app.exception_handler(GatewayError)
    async def _ours(_request: Request, error: GatewayError) -> JSONResponse:
        return _answer(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())[:1000]
        hint = "GET /docs describes every route"
        if not request.headers.get("content-type", "application/json").startswith("application/json"):
            hint = "send JSON, and with it the header 'Content-Type: application/json'"
        return _answer(InvalidRequest(problems, hint))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        where = f"{request.method} {request.url.path}"
        match error.status_code:
            case 404:
                answer = _answer(NotFound(f"there is nothing at {request.url.path}", "GET /docs lists the routes"))
            case 405:
                answer = _answer(NotAllowed(f"{where}: {error.detail}"))
            case 413:
                answer = _answer(
                    BodyTooLarge(f"{where}: a request to the gateway itself may have {_MAX_ADMIN_BODY_BYTES} bytes")
                )
            case _:
                answer = _answer(InvalidRequest(f"{where}: {error.detail}"))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("unexpected error", path=request.url.path, exc_info=error)
        return _answer(GatewayError("the gateway failed unexpectedly", "its log says more"))

    return app


class ErrorBody(BaseModel):
    """What every error looks like."""

    error: str = Field(description="what kind; the name chromadb raises by where it has one")
    message: str = Field(description="what failed, and why")
    hint: str | None = Field(None, description="the way out, where we know it")


def _bounded(app: ASGIApp, max_document_bytes: int) -> ASGIApp:
    """`app`, with a declared body that is too long refused in the shape of all errors, before it is read."""

    async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
        declared = dict(scope["headers"]).get(b"content-length", b"") if scope["type"] == "http" else b""
        bound = documents_api.body_bound(scope, max_document_bytes) or _MAX_ADMIN_BODY_BYTES
        if declared.isdigit() and int(declared) > bound:
            refusal = BodyTooLarge(f"the body of {scope['path']} may have {bound} bytes")
            await _answer(refusal)(scope, receive, send)
        else:
            await app(scope, receive, send)

    return bounded


def _answer(error: GatewayError) -> JSONResponse:
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body(), error.status, headers)


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    """Nobody awaits a task that runs for life: its failure must at least be heard."""
    try:
        await work
    except Exception:
        log.exception("a background task failed")
        raise
