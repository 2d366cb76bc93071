"""Starts and stops a program through the supervisord that runs it, over its XML-RPC on a Unix socket."""

import asyncio
import http.client
import socket
import xmlrpc.client
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any
from xml.parsers.expat import ExpatError

from gateway.aio import poll_until
from gateway.errors import Unavailable

# As in supervisor.xmlrpc.Faults. To import that would take longer than a call.
_ALREADY_STARTED = 60
_NOT_RUNNING = 70
_DIED = frozenset(("EXITED", "BACKOFF", "FATAL", "UNKNOWN"))
_ENDED = _DIED | {"STOPPED"}
_POLL_S = 0.02
_CALL_TIMEOUT_S = 5
_HINT = "see `supervisorctl -c supervisord.conf status`, run where the gateway was started"


class SupervisedProcess:
    """One program of the supervisord at `server_url`, such as `unix:///srv/var/supervisor.sock`.

    Every method raises Unavailable when supervisord cannot be reached, refuses (as it does while it
    is stopping itself) or is not done in time. All may be retried.
    """

    def __init__(self, server_url: str, program: str, *, log_as: tuple[bool, str] | None = None) -> None:
        """`log_as`: whether its lines are JSON, and the lowest level that is written."""
        self._server_url, self._program, self._log_as = server_url, program, log_as

    async def start(self, timeout_s: float) -> None:
        """Return when the process is there, which is well before it answers requests.

        It may have been there already. One that is just being stopped is waited for and started anew.
        """
        if self._log_as is not None:
            async with _deadline(f"the form of the lines of {self._program}", timeout_s):
                await self._call("gateway.log_as", *self._log_as)
        await self._ask_until("supervisor.startProcess", _ALREADY_STARTED, {"STARTING", "RUNNING"}, timeout_s)

    async def stop(self, timeout_s: float) -> None:
        """Return when the process has ended and will stay so; it may have ended before.

        supervisord kills one that ignores SIGTERM after `stopwaitsecs`. A shorter `timeout_s` gives up before that,
        with the stop still under way.
        """
        await self._ask_until("supervisor.stopProcess", _NOT_RUNNING, _ENDED, timeout_s)

    async def is_running(self) -> bool:
        """Whether there is a process, also one that was just started or is just being stopped."""
        return (await self.state())[0] not in _ENDED

    async def has_died(self) -> bool:
        """Whether it ended without having been told to, and was not started since."""
        return (await self.state())[0] in _DIED

    async def forget_deaths(self) -> None:
        """Its deaths so far do not count for the number at which everything ends."""
        async with _deadline(f"forgetting the deaths of {self._program}", _CALL_TIMEOUT_S):
            await self._call("gateway.forget_deaths", self._program)

    async def state(self) -> tuple[str, int | None]:
        """supervisord's name for the state, and the process id while there is one."""
        async with _deadline(f"asking for the state of {self._program}", _CALL_TIMEOUT_S):
            return await self._state()

    async def _ask_until(self, method: str, accept: int, wanted: Collection[str], timeout_s: float) -> None:
        async with _deadline(f"{method} {self._program}", timeout_s):
            # Not by `wait`: supervisord spins on the processor meanwhile. A state may change between two calls, so the
            # request is repeated until the state is the wanted one.
            async def is_wanted() -> bool:
                await self._call(method, self._program, False, accept=accept)
                return (await self._state())[0] in wanted

            await poll_until(is_wanted, every_s=_POLL_S, timeout_s=timeout_s)

    async def _state(self) -> tuple[str, int | None]:
        info = await self._call("supervisor.getProcessInfo", self._program)
        return info["statename"], info["pid"] or None

    async def _call(self, method: str, *args: Any, accept: int | None = None) -> Any:
        return await asyncio.to_thread(_call, self._server_url, method, args, accept)


@asynccontextmanager
async def _deadline(doing: str, timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except xmlrpc.client.Fault as fault:
        raise Unavailable(f"supervisord refuses {doing}: {fault.faultString}", _HINT) from fault
    except TimeoutError as error:
        raise Unavailable(f"{doing} took longer than {timeout_s:g} s", _HINT) from error
    except (OSError, http.client.HTTPException, xmlrpc.client.Error, ExpatError) as error:
        raise Unavailable(f"{doing}: supervisord cannot be reached: {error}", _HINT) from error


def _call(server_url: str, method: str, args: tuple[Any, ...], accept: int | None) -> Any:
    """Call `method` and return its result, or None for the fault to `accept`."""
    transport = _UnixTransport(server_url.removeprefix("unix://"))
    try:
        with xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=transport) as server:
            return getattr(server, method)(*args)
    except xmlrpc.client.Fault as fault:
        if fault.faultCode != accept:
            raise
        return None


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def request(self, *args: Any, **kwargs: Any) -> Any:
        # Not the one above, which sends a call again when its connection breaks.
        return self.single_request(*args, **kwargs)

    def make_connection(self, host: Any) -> "_UnixConnection":
        connection = _UnixConnection(self._path)
        self._connection = host, connection  # for `close`
        return connection


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_CALL_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_CALL_TIMEOUT_S)
        self.sock.connect(self._path)
