"""The gateway's process: builds the objects, mounts the routers, serves until told to stop.

`/api/` goes to the data path, past every framework; all else goes to FastAPI. One process, one loop.
"""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime
from typing import Any

import structlog
import tenacity
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

import gateway
from gateway import jobs_api
from gateway.auth.addresses import networks
from gateway.auth.admin_token import TOKEN_FILE, read_or_make
from gateway.auth.api_keys import KeyHolder
from gateway.auth.audit import Audit
from gateway.auth.audited import audited
from gateway.auth.keyring import Keyring
from gateway.auth.keys import parse_keys
from gateway.auth.quota import Limits as VisitorLimits
from gateway.auth.scope import Role
from gateway.chroma.directory import DataDirectory
from gateway.chroma.managed import ManagedChroma
from gateway.chroma.names import CollectionNames
from gateway.chroma.process import HOST, base_url
from gateway.chroma.supervisor import Supervisor
from gateway.chroma.watch import ChromaWatch
from gateway.config import Settings
from gateway.documents import api as documents_api
from gateway.documents.api import Documents
from gateway.documents.embedding import Embedding
from gateway.documents.library import Library
from gateway.documents.train import Trainer
from gateway.errors import (
    BodyTooLarge,
    ConfigError,
    Conflict,
    GatewayError,
    InvalidRequest,
    NotAllowed,
    NotFound,
    SnapshotError,
    StoreUnavailable,
)
from gateway.jobs import Jobs
from gateway.observe import api as observe_api
from gateway.observe.collect import Collection
from gateway.observe.health import Health
from gateway.observe.metrics import Metrics
from gateway.observe.requests import numbered
from gateway.observe.tracing import open_tracing
from gateway.proxy.data_path import DataPath
from gateway.proxy.door import Door
from gateway.proxy.gate import Gate
from gateway.proxy.limits import Limits
from gateway.snapshot import api as snapshot_api
from gateway.snapshot.budget import ChangedBytes, Estimate, Record
from gateway.snapshot.changes import Changes
from gateway.snapshot.collect import Collected
from gateway.snapshot.home import Home
from gateway.snapshot.lease import this_process
from gateway.snapshot.model import Snapshot
from gateway.snapshot.operations import Operations
from gateway.snapshot.parallel import within
from gateway.snapshot.probe import Conditions, probe
from gateway.snapshot.repository import Repository
from gateway.snapshot.retention import Keep
from gateway.snapshot.rounds import DeadMansSwitch, make_rounds
from gateway.snapshot.schedule import Cron, Every, Jittered, Schedule
from gateway.snapshot.succession import Succession
from gateway.store import Prefixed, Store, Undeletable, open_store
from gateway.store.observed import Observed

log = structlog.get_logger()

# Of the 10 s that platforms give after SIGTERM: requests under way, then the final snapshot, then
# Chroma's own stop.
_GRACE_S = 4
_LEAST_FOR_THE_LEASE_S = 0.5
# Bytes on their way to a store that does not answer are waited for no longer than this.
_BREAK_OFF_S = 0.5
_AGAIN_S = 0.02
_JOBS_END_S = 2.0
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
        self.metrics = Metrics()
        everything = Observed(_store(settings), self.metrics)
        store = Prefixed(everything, settings.repository_prefix)
        self.gate = Gate(settings.gate_timeout_s)
        self.changes = Changes(lambda: self.gate.admitted_writes)
        self.place = Succession(
            store,
            Home(settings.data_dir),
            this_process(),
            self.gate,
            has_data=lambda: not self.directory.is_empty(),
            save=self._save,
            on_published=self.changes.saved,
            on_change=self.changes.exchanged,
            on_empty_start=self._restored_at_boot,
            takeover_timeout_s=settings.takeover_timeout_s,
            may_delete=not settings.store_never_delete,
        )
        self.repository = Repository(store, self.place)
        self.record = Record()
        self.switch = DeadMansSwitch(
            settings.snapshot_ping_url.get_secret_value() if settings.snapshot_ping_url else None
        )
        limits = Limits(
            client_timeout_s=settings.client_timeout_s,
            queue_timeout_s=settings.gate_timeout_s,
            read_timeout_s=settings.read_timeout_s,
            max_body_bytes=settings.max_body_bytes,
            max_in_flight=settings.max_in_flight,
            max_queued=settings.max_queued,
        )
        self.watch = ChromaWatch(settings.data_dir, settings.chroma_port, self.gate.ticket, self.gate.chroma_gone)
        given = settings.keys.get_secret_value() if settings.keys else None
        self.keyring = Keyring(admin_token, parse_keys(given, "GATEWAY_KEYS") if given else (), settings.keys_file)
        self.audit = Audit(settings.audit_file)
        self.door = Door(
            self.keyring,
            anonymous=not settings.is_closed,
            allow_reset=settings.allow_reset,
            max_body_bytes=settings.max_body_bytes,
            limits=VisitorLimits(
                requests_per_s=settings.limit_requests_per_s,
                in_flight=settings.limit_in_flight,
                records=settings.limit_records,
            ),
            origins=settings.origins,
            traced=settings.traces,
        )
        self.tracing = open_tracing() if settings.traces else None
        self.data_path = DataPath(
            self.gate,
            HOST,
            settings.chroma_port,
            limits,
            self.door,
            CollectionNames(settings.data_dir, lambda: self.watch.starts),
            self.audit,
            networks(settings.trusted_proxies),
            self.tracing,
        )
        self.chroma = ManagedChroma(
            Supervisor(settings.supervisor_url) if settings.supervisor_url else None, self.watch
        )
        self.operations = Operations(
            self.repository,
            self.directory,
            self.watch,
            self.chroma,
            hold=self._hold,
            refuse=lambda reason: self.gate.refuse(reason, _REFUSAL_GRACE_S),
            place=self.place,
        )
        self.operations.on_outcome = self._note_snapshot
        self.collection = Collection(
            self.metrics,
            self.door.tallies,
            self.gate,
            self.data_path.pool,
            self.watch,
            lambda: len(self.data_path.clients),
            settings.data_dir,
            self._lease,
        )
        self.health = Health(
            settings,
            self.directory,
            self.watch,
            self.gate,
            self.operations,
            self.place,
            self._final_snapshot,
            self.collection,
        )
        self.changed_bytes: ChangedBytes = lambda: (
            self.operations.snapshotter.changed_bytes() if self.changes.any else 0
        )
        self.jobs = Jobs(lambda job: self.metrics.job_ended(job.kind, job.state))
        self.documents = Documents(
            Library(everything, settings.user_id, settings.max_document_bytes),
            Trainer(
                base_url(settings.chroma_port),
                self.gate.admitted,
                embedding=Embedding.of(settings.embedding),
                module=settings.embedding_module or None,
                restores=lambda: self.gate.refusals,
            ),
            self.jobs,
        )
        self.stop_by: float | None = None
        self.last_failure: GatewayError | None = None
        self.admin = _admin_application(self)

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """What runs beside requests; at the end the final snapshot."""
        await asyncio.to_thread(self.directory.drop_scratch)
        snapshotter = self.operations.snapshotter
        work = (
            self.watch.run(),
            self.data_path.watch_the_clock(),
            self.operations.begin(),
            snapshotter.keep_bounded(),
            self.keyring.run(),
            self._look_for_the_last_snapshot(),
        )
        lasting = [asyncio.create_task(_logged(each)) for each in work]
        placing, *scheduling = (asyncio.create_task(_logged(each)) for each in (self.place.run(), *self._schedule()))
        # Their first steps: an interrupted restore refuses requests before there can be one.
        await asyncio.sleep(0)
        log.info("gateway is listening", host=self.settings.host, port=self.settings.port)
        try:
            yield
        finally:
            await _end(*scheduling, placing)
            await self._end_jobs()
            await self._last_snapshot()
            await self._give_the_lease_back()
            await _end(*lasting)
            await self.switch.close()
            await snapshotter.close()
            self.data_path.close()
            await asyncio.to_thread(self.audit.close)
            if self.tracing is not None:
                await asyncio.to_thread(self.tracing.close)
            await self.repository.close()

    @contextlib.asynccontextmanager
    async def _hold(self) -> AsyncIterator[float]:
        async with self.gate.hold(self.settings.drain_timeout_s) as drain_ms:
            self.changes.cut()
            yield drain_ms

    def _restored_at_boot(self) -> None:
        # The newest snapshot is what is there, or is about to be, and nothing was written to it yet.
        if self.settings.restore == "latest" and not self.gate.admitted_writes:
            self.changes.cut()
            self.changes.saved()

    async def _save(self, label: str) -> None:
        """Take a last snapshot for whoever comes next, unless the newest one has everything.

        Waits for other operations, as long as there are any: the caller bounds it.
        """
        while True:
            await self.operations.resume()
            await self.operations.until_idle()
            try:
                await self._save_now(label)
            except Conflict as error:  # something else was quicker, a round's garbage collection for one
                log.debug("the last snapshot waits", cause=error.message)
                await asyncio.sleep(_AGAIN_S)
            else:
                return

    async def _drain(self, timeout_s: float) -> None:
        await self.operations.until_idle()
        async with self.gate.hold(timeout_s):
            pass

    async def _save_now(self, label: str) -> None:
        if not self.changes.any or (not self.watch.starts and await asyncio.to_thread(self.directory.is_empty)):
            log.info("nothing changed since the latest snapshot, so it is the last one")
            return
        writes = self.changes.writes
        snapshot = await self.operations.snapshot(label)
        log.info("everything that was acknowledged is in the last snapshot", snapshot=snapshot.id, writes=writes)

    def _lease(self) -> tuple[bool, int]:
        return self.place.may_write, self.place.status()["epoch"] or 0

    def _note_snapshot(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            self.metrics.snapshot_failed()
        else:
            self.record.add(snapshot.uploaded_bytes, snapshot.duration_s)
            self.metrics.snapshot_taken(
                at_s=snapshot.created_at.timestamp(),
                duration_s=snapshot.duration_s,
                drain_s=snapshot.drain_ms / 1e3,
                freeze_s=snapshot.freeze_ms / 1e3,
            )

    async def _look_for_the_last_snapshot(self) -> None:
        """Tell the metrics how old the latest good snapshot is, which an earlier process took."""
        try:
            for snapshot_id in await self.repository.ids():
                with contextlib.suppress(SnapshotError, NotFound):  # damaged, or deleted since
                    latest = (await self.repository.manifest(snapshot_id)).snapshot
                    if self.metrics.last_good_s is None:
                        self.metrics.last_good_snapshot(latest.created_at.timestamp())
                    return
        except GatewayError as error:
            log.warning("the store's snapshots cannot be listed", cause=str(error))

    def _schedule(self) -> list[Coroutine[Any, Any, None]]:
        settings, schedules = self.settings, list[Schedule]()
        if settings.snapshot_interval_s:
            schedules.append(Every(datetime.now(UTC), settings.snapshot_interval_s))
        if settings.snapshot_cron:
            schedules.append(Cron(settings.snapshot_cron))
        jitter = random.Random().random  # noqa: S311  # not a secret
        return [
            make_rounds(
                Jittered(schedule, settings.snapshot_jitter_s, jitter),
                self.changes,
                self.operations.snapshot,
                self.tidy,
                self.switch.ping,
                now=_now_here,
            )
            for schedule in schedules
        ]

    async def tidy(self) -> Collected:
        """Apply the retention, collect the garbage."""
        settings = self.settings
        keep = Keep(
            last=settings.keep_last,
            hourly=settings.keep_hourly,
            daily=settings.keep_daily,
            weekly=settings.keep_weekly,
            monthly=settings.keep_monthly,
            yearly=settings.keep_yearly,
        )
        return await self.operations.collect(keep, settings.gc_grace_s, may_delete=not settings.store_never_delete)

    def _final_snapshot(self) -> Estimate:
        return self.record.estimate(self.changed_bytes(), self.settings.exit_budget_s)

    async def _give_the_lease_back(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(_LEAST_FOR_THE_LEASE_S, self._left_s())):
                await self.place.end()

    def _left_s(self) -> float:
        return (self.stop_by or time.monotonic() + self.settings.exit_budget_s) - time.monotonic()

    async def _end_jobs(self) -> None:
        """Cancel what runs, but let a snapshot come to its end: it holds what the last one would."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_JOBS_END_S):
                await self.jobs.close(spare="snapshot")

    async def _last_snapshot(self) -> None:
        """Take the final snapshot in what is left of the grace; keep why, if it failed."""
        # Most requests have ended. One that is still arriving would be acknowledged after the cut.
        self.gate.refuse_writes("this gateway is stopping")
        await self.operations.resume()
        left_s, writes = self._left_s(), self.changes.writes
        wanted = self.settings.takes_final_snapshot and self.watch.starts and self.place.may_write
        try:
            await within(left_s, self._save("final") if wanted else self._drain(left_s), break_off_s=_BREAK_OFF_S)
        except TimeoutError:
            what = "the final snapshot did not fit into" if wanted else "what was under way did not end within"
            self.last_failure = GatewayError(f"{what} the {left_s:.1f} s that were left")
        except GatewayError as error:
            self.last_failure = error
        except Exception:
            log.exception("the final snapshot failed unexpectedly")
            self.last_failure = GatewayError("the final snapshot failed unexpectedly", "the lines before say why")
        if self.last_failure is not None:
            log.error(
                "what was written since the latest snapshot is not in the store",
                writes="unknown" if writes is None else writes,
                cause=str(self.last_failure),
            )


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
    if settings.require_fencing:
        asyncio.run(_require_fencing(settings))
    listener = _listen(settings.host, settings.port)
    house = House(settings, token)
    config = uvicorn.Config(
        numbered(
            audited(
                _bounded(house.admin, KeyHolder(house.keyring, Role.ADMIN), settings.max_document_bytes),
                house.audit,
                networks(settings.trusted_proxies),
            )
        ),
        http=house.data_path,  # type: ignore[arg-type]  # only ever called, as a class would be
        ws="none",
        loop="uvloop",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # uvicorn believes any process of this machine; see GATEWAY_TRUSTED_PROXIES
        date_header=False,
        timeout_graceful_shutdown=max(1, min(_GRACE_S, int(settings.exit_budget_s / 2))),
    )
    _Server(config, house).run(sockets=[listener])
    if house.last_failure is not None:
        raise house.last_failure


def _store(settings: Settings) -> Store:
    store = open_store(settings.store, addressing=settings.s3_addressing)
    return Undeletable(store) if settings.store_never_delete else store


async def _require_fencing(settings: Settings) -> None:
    """Raise ConfigError unless the store keeps what conditional writes promise, StoreError if it does not say."""
    store = Prefixed(_store(settings), settings.repository_prefix)
    try:
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(StoreUnavailable),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
            stop=tenacity.stop_after_delay(settings.restore_retry_s),
            reraise=True,
        ):
            with attempt:
                conditions = await probe(store, may_delete=not settings.store_never_delete)
    finally:
        await store.close()
    if conditions is not Conditions.KEPT:
        raise ConfigError(
            f"GATEWAY_REQUIRE_FENCING is set, and conditional writes on {store.url} are {conditions.value}",
            "use a store that keeps them, or unset it and never let two gateways use this one at once",
        )


def _now_here() -> datetime:
    """Now, in the time zone of this machine, which is what lines of cron are in."""
    return datetime.now(UTC).astimezone()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, house: House) -> None:
        super().__init__(config)
        self._house = house

    def handle_exit(self, sig: int, frame: Any) -> None:
        # The budget runs from the signal, not from whenever requests have ended. uvicorn's own handler
        # would raise the signal again at the end, and a clean stop would look like a death.
        self._house.stop_by = self._house.stop_by or time.monotonic() + self._house.settings.exit_budget_s
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}", "set HOST and PORT") from error
    listener.setblocking(False)
    return listener


def _admin_application(house: House) -> FastAPI:
    app = FastAPI(
        title="Chroma Gateway",
        version=gateway.__version__,
        description=_DESCRIPTION,
        lifespan=house.lifespan,
        max_body_size=_MAX_ADMIN_BODY_BYTES,
        responses={"default": {"model": ErrorBody, "description": "any error"}},
    )
    app.state.operations, app.state.health, app.state.tidy = house.operations, house.health, house.tidy
    app.state.collection = house.collection
    app.include_router(observe_api.public)
    scraper = KeyHolder(house.keyring, Role.READER, anonymous=not house.settings.is_closed)
    app.state.tells_names = scraper.lets_pass
    app.include_router(observe_api.scraped, dependencies=[Depends(scraper)])
    protected = [Depends(KeyHolder(house.keyring, Role.ADMIN))]
    app.include_router(observe_api.admin, dependencies=protected)
    app.include_router(snapshot_api.router, dependencies=protected)
    app.state.jobs, app.state.max_upload_bytes = house.jobs, house.settings.max_upload_bytes
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


def _bounded(app: ASGIApp, admins: KeyHolder, max_document_bytes: int) -> ASGIApp:
    """`app`, with what is not an admin's, and a declared body that is too long, refused before the body is read.

    FastAPI reads and parses a body first, and asks who sent it afterwards.
    """

    async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/admin/"):
            try:
                admins(Request(scope))
            except GatewayError as error:
                await _answer(error)(scope, receive, send)
                return
        declared = dict(scope["headers"]).get(b"content-length", b"") if scope["type"] == "http" else b""
        limited = scope.get("path") != snapshot_api.UPLOAD_PATH  # which has a limit of its own
        bound = documents_api.body_bound(scope, max_document_bytes) or _MAX_ADMIN_BODY_BYTES
        if limited and declared.isdigit() and int(declared) > bound:
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
    """Cancel `tasks` and wait until they have ended, not for ever: one may be at what must not be left halfway."""
    for task in tasks:
        task.cancel()
    await asyncio.wait([asyncio.gather(task, return_exceptions=True) for task in tasks], timeout=_JOBS_END_S)


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    """Nobody awaits a task that runs for life: its failure must at least be heard."""
    try:
        await work
    except Exception:
        log.exception("a background task failed")
        raise
