"""Stops and starts Chroma through the supervisord that runs it, over its XML-RPC on a Unix socket."""

import asyncio
import http.client
import socket
import xmlrpc.client
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from supervisor.xmlrpc import Faults, SupervisorTransport

from gateway.errors import Unavailable

_PROGRAM = "chroma"
_POLL_S = 0.02
_CALL_TIMEOUT_S = 5
_HINT = "see `supervisorctl -c supervisord.conf status`, run where the gateway was started"


class Supervisor:
    """The supervisord at `server_url`, such as `unix:///srv/var/supervisor.sock`.

    Every method raises Unavailable when supervisord cannot be reached, refuses (as it does while it
    is stopping itself) or is not done in time. All may be retried.
    """

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url

    async def stop_chroma(self, timeout_s: float) -> None:
        """Return when Chroma is stopped and will stay so; it may have been stopped already.

        supervisord kills a Chroma that ignores SIGTERM after `stopwaitsecs`; a shorter `timeout_s`
        gives up before that, with the stop still under way.
        """
        async with _deadline("stopping Chroma", timeout_s):
            # A Chroma that died this instant is NOT_RUNNING too, yet about to be restarted. So ask
            # until it is STOPPED. Not by `wait`: supervisord spins on the processor meanwhile.
            await self._call("stopProcess", _PROGRAM, False, accept=Faults.NOT_RUNNING)
            while (await self._state())[0] != "STOPPED":
                await asyncio.sleep(_POLL_S)
                await self._call("stopProcess", _PROGRAM, False, accept=Faults.NOT_RUNNING)

    async def start_chroma(self, timeout_s: float) -> None:
        """Return when Chroma's process is there, which is well before it answers requests.

        It may have been there already. One that is just being stopped is waited for and started anew.
        """
        async with _deadline("starting Chroma", timeout_s):
            # Not by `wait`: that takes `startsecs`, and tells nothing about answering either.
            await self._call("startProcess", _PROGRAM, False, accept=Faults.ALREADY_STARTED)
            while (await self._state())[0] not in ("STARTING", "RUNNING"):
                await asyncio.sleep(_POLL_S)
                await self._call("startProcess", _PROGRAM, False, accept=Faults.ALREADY_STARTED)

    async def chroma_state(self) -> tuple[str, int | None, int]:
        """supervisord's name for the state, Chroma's pid while it has one, its last start in epoch seconds.

        The start is 0 before the first one.
        """
        async with _deadline("asking for Chroma's state", _CALL_TIMEOUT_S):
            return await self._state()

    async def _state(self) -> tuple[str, int | None, int]:
        info = await self._call("getProcessInfo", _PROGRAM)
        return info["statename"], info["pid"] or None, info["start"]

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
    except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
        raise Unavailable(f"{doing}: supervisord cannot be reached: {error}", _HINT) from error


def _call(server_url: str, method: str, args: tuple[Any, ...], accept: int | None) -> Any:
    """Call `supervisor.<method>` and return its result, or None for the fault to `accept`."""
    transport = SupervisorTransport(None, None, server_url)
    transport._get_connection = lambda: _UnixConnection(server_url.removeprefix("unix://"))
    try:
        # The host is not used, but must look like one.
        with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as server:
            return getattr(server.supervisor, method)(*args)
    except xmlrpc.client.Fault as fault:
        if fault.faultCode != accept:
            raise
        return None


class _UnixConnection(http.client.HTTPConnection):
    """What supervisor's own connection is, with a timeout."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_CALL_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_CALL_TIMEOUT_S)
        self.sock.connect(self._path)
