"""The gateway's process: listens and serves until told to stop.

`/api/` goes to the data path, past every framework; all else goes to FastAPI. Until that is built, `/healthz` and
`/readyz` are answered here. One process, one loop.
"""

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import structlog
import tenacity
import uvicorn

from gateway.api.key_holder import scraper_of
from gateway.api.probes import probe_response
from gateway.api.request_ids import numbered
from gateway.auth.admin_token import TOKEN_FILE, read_or_make
from gateway.config import URL_FILE, Settings
from gateway.errors import ConfigError, GatewayError, StorageUnavailable
from gateway.lease.probe import Conditions, probe
from gateway.server.container import Gateway, storage_of
from gateway.server.lifecycle import Lifecycle
from gateway.storage import PrefixedStorage

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

log = structlog.get_logger()

# Of the 10 s that platforms give after SIGTERM: requests under way, then the final snapshot, then Chroma's own stop.
_GRACE_S = 4


def serve(settings: Settings) -> None:
    """Run the gateway until SIGTERM or SIGINT.

    Raises ConfigError before it listens, and at the end what kept it from starting Chroma or from taking the final
    snapshot.
    """
    token = settings.admin_token.get_secret_value() if settings.admin_token else None
    gateway = Gateway(settings, token or read_or_make(TOKEN_FILE))
    gateway.vectorstore.directory.make()
    gateway.vectorstore.directory.claim_as_gateway()
    if settings.require_fencing:
        asyncio.run(_require_fencing(settings))
    listener = _listen(settings.host, settings.port)
    _note_url(settings.local_url)
    server = _Server(gateway)
    server.run(sockets=[listener])
    if server.lifecycle.failure is not None:
        raise server.lifecycle.failure


def _note_url(url: str) -> None:
    """For the commands that are run in this directory. Raises ConfigError."""
    try:
        URL_FILE.parent.mkdir(mode=0o700, exist_ok=True)
        URL_FILE.write_text(f"{url}\n")
    except OSError as error:
        raise ConfigError(f"cannot write {URL_FILE.absolute()}: {error.strerror}") from error


class _Server(uvicorn.Server):
    """uvicorn, with the data path as its protocol."""

    def __init__(self, gateway: Gateway) -> None:
        self._admin_wanted = asyncio.Event()
        self.lifecycle = Lifecycle(gateway, self._stop, on_ready=self._admin_wanted.set)
        self._gateway = gateway
        self._scraper = scraper_of(gateway.settings, gateway.keyring)
        self._admin: asyncio.Task[ASGIApp] | None = None
        settings = gateway.settings
        config = uvicorn.Config(
            self._answer,
            interface="asgi3",
            http=gateway.data_path,  # type: ignore[arg-type]  # only ever called, as a class would be
            ws="none",
            loop="uvloop",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # uvicorn believes any process of this machine; see GATEWAY_TRUSTED_PROXIES
            date_header=False,
            timeout_graceful_shutdown=max(1, min(_GRACE_S, int(settings.exit_budget_s / 2))),
        )
        super().__init__(config)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop. Raises GatewayError."""
        with self.capture_signals():
            self._admin = asyncio.create_task(self._build_admin())
            self._admin.add_done_callback(self._stop_without_admin)
            async with self.lifecycle.running():
                await super().serve(sockets)

    async def _build_admin(self) -> "ASGIApp":
        """Build the admin application. Requests to it wait until it is built."""
        # Its imports would slow down the start. They wait until that is over, or until a request needs them.
        await self._admin_wanted.wait()
        return await asyncio.to_thread(_admin_of, self._gateway)

    async def _answer(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        assert self._admin is not None
        if not self._admin.done() and (response := probe_response(scope, self._gateway.health, self._scraper)):
            await numbered(response)(scope, receive, send)
            return
        self._admin_wanted.set()
        admin = await asyncio.shield(self._admin)
        await admin(scope, receive, send)

    def _stop_without_admin(self, admin: "asyncio.Task[ASGIApp]") -> None:
        if not admin.cancelled() and (cause := admin.exception()):
            log.error("the admin API cannot be built", exc_info=cause)
            self.lifecycle.fail(GatewayError("the gateway failed unexpectedly", "the lines before say why"))

    def handle_exit(self, sig: int, frame: Any) -> None:
        # uvicorn's own handler would raise the signal again at the end, and a clean stop would look like a death.
        self._stop()

    def _stop(self) -> None:
        # The budget runs from here, not from when the requests have ended.
        self.lifecycle.stopping()
        self.should_exit = True


def _admin_of(gateway: Gateway) -> "ASGIApp":
    """The admin application. Blocks for longer than Chroma's start takes."""
    from gateway.server.admin import admin_of  # noqa: PLC0415  # the import is most of it

    return admin_of(gateway)


async def _require_fencing(settings: Settings) -> None:
    """Raise ConfigError unless the store keeps what conditional writes promise, StorageError if that is not known."""
    store = PrefixedStorage(storage_of(settings), settings.repository_prefix)
    try:
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(StorageUnavailable),
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


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}", "set HOST and PORT") from error
    listener.setblocking(False)
    return listener
