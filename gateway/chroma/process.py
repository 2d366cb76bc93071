"""How Chroma is started: `chroma run`, unmodified, on loopback, in place of the calling process."""

import asyncio
import contextlib
import importlib.metadata
import json
import os
import shutil
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, NoReturn

import httpx

from gateway.errors import ConfigError, SnapshotError

HOST = "127.0.0.1"
# Ours alone: the admin token and the store's keys are none of Chroma's business.
_NOT_FOR_CHROMA = ("GATEWAY_", "AWS_")

# Migrations of a large directory run before it answers.
_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 10.0
_HEARTBEAT_TIMEOUT_S = 5.0
_POLL_S = 0.05
_SAID_BYTES = 1000
# Chroma speaks plain HTTP. httpx would read every certificate authority anew for each client: 20 ms of the loop.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
# Linux can tie a process to its parent (prctl 1 is PR_SET_PDEATHSIG, 9 is SIGKILL); elsewhere it outlives it.
_UNTIL_PARENT_DIES = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the gateway is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def chroma_version() -> str:
    """The installed chromadb's version: the CLI and /api/v2/version tell other numbers (DESIGN §2.12)."""
    return importlib.metadata.version("chromadb")


def base_url(port: int) -> str:
    return f"http://{HOST}:{port}"


def http_client(url: str, timeout_s: float) -> httpx.AsyncClient:
    """A client for the Chroma at `url`, which is on this machine: no proxy, no TLS."""
    return httpx.AsyncClient(base_url=url, timeout=timeout_s, trust_env=False, verify=_NO_TLS)


def require_free_port(port: int) -> None:
    """Raise ConfigError if Chroma could not listen on `port`."""
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise ConfigError(
            f"Chroma's port {port} on {HOST} is taken: {error.strerror}",
            "stop what listens there, or set GATEWAY_CHROMA_PORT",
        ) from error


def run_chroma(data_dir: Path, port: int, *, allow_reset: bool = False) -> NoReturn:
    """Become `chroma run`. `allow_reset` is off by default there too (`rust/frontend/src/config.rs`)."""
    command = _command(data_dir, port)
    if allow_reset:  # there is no option for it
        command = [*command[:2], str(_config_file(data_dir, port))]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, _environment())  # noqa: S606  # no shell is wanted


@contextlib.asynccontextmanager
async def scratch_chroma(data_dir: Path) -> AsyncIterator[str]:
    """Run Chroma on a directory of its own for the time of the block; yields its base URL once it answers.

    It listens on a free port of loopback and is gone when the block ends, however it ends, also by
    the death of this process. Raises SnapshotError if it ends by itself or does not answer: then it cannot
    serve what is there.
    """
    port = _free_port()
    command = [sys.executable, "-c", _UNTIL_PARENT_DIES, str(os.getpid()), *_command(data_dir, port)]
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=said, stderr=said, env=_environment(), cwd=data_dir
        )
        try:
            await _until_it_answers(process, base_url(port), said)
            yield base_url(port)
        finally:
            # Gently, so that what it migrated is written; an end by force is awaited even by who is cancelled.
            if process.returncode is None:
                process.terminate()
                try:
                    async with asyncio.timeout(_STOP_TIMEOUT_S):
                        await process.wait()
                finally:
                    if process.returncode is None:
                        process.kill()
                        await asyncio.shield(process.wait())


async def _until_it_answers(process: asyncio.subprocess.Process, url: str, said: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    async with http_client(url, _HEARTBEAT_TIMEOUT_S) as client:
        while process.returncode is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get("/api/v2/heartbeat")).status_code == httpx.codes.OK:
                    return
            await asyncio.sleep(_POLL_S)
    said.seek(0)
    last = said.read()[-_SAID_BYTES:].decode(errors="replace").strip()
    what = "did not answer" if process.returncode is None else f"ended with status {process.returncode}"
    raise SnapshotError(f"Chroma {chroma_version()} {what} on this data: {last}")


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _command(data_dir: Path, port: int) -> list[str]:
    command = shutil.which("chroma", path=os.pathsep.join((str(Path(sys.executable).parent), os.defpath)))
    if command is None:
        raise ConfigError(
            "the `chroma` command is not installed",
            "install the gateway with its dependencies: scripts/setup",
        )
    return [command, "run", "--path", str(data_dir), "--host", HOST, "--port", str(port)]


def _environment() -> dict[str, str]:
    inherited = {**os.environ}
    return {name: value for name, value in inherited.items() if not name.startswith(_NOT_FOR_CHROMA)} | {
        "ANONYMIZED_TELEMETRY": "False"
    }


def _config_file(data_dir: Path, port: int) -> Path:
    config = {"persist_path": str(data_dir), "listen_address": HOST, "port": port, "allow_reset": True}
    path = data_dir / ".gateway" / "chroma.yaml"
    path.write_text(json.dumps(config))  # which is YAML too
    return path
