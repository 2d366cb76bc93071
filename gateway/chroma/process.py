"""How Chroma is started and asked: `chroma run`, unmodified, on loopback."""

import asyncio
import contextlib
import importlib.metadata
import json
import os
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO, Any

import httpx

from gateway.aio import poll_until
from gateway.chroma.disk import DATABASE
from gateway.chroma.native import environment_for_chroma
from gateway.errors import ConfigError, SnapshotError
from gateway.files import write_durably

HOST = "127.0.0.1"
# Migrations of a large directory run before it answers.
_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 10.0
_HEARTBEAT_TIMEOUT_S = 5.0
_POLL_S = 0.05
CHROMAS_MAX_PAYLOAD_BYTES = 40 << 20
"""Of Chroma itself (`rust/frontend/src/config.rs`, `default_max_payload_size_bytes`)."""
_MAX_PAYLOAD = "max_payload_size_bytes"
# Which setting of the gateway an operator may want instead.
_WAYS = {
    "persist_path": "GATEWAY_DATA_DIR",
    "port": "GATEWAY_CHROMA_PORT",
    "allow_reset": "GATEWAY_ALLOW_RESET",
    _MAX_PAYLOAD: "GATEWAY_MAX_BODY_BYTES",
}
_SAID_BYTES = 1000
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients that speak plain HTTP only. httpx would read every certificate authority anew for each: 20 to 60 ms."""

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
    """The installed chromadb's version. The command and /api/v2/version tell other numbers."""
    return importlib.metadata.version("chromadb")


def base_url(port: int) -> str:
    return f"http://{HOST}:{port}"


def http_client(url: str, timeout_s: float) -> httpx.AsyncClient:
    """A client for the Chroma at `url`, which is on this machine: no proxy, no TLS."""
    return httpx.AsyncClient(base_url=url, timeout=timeout_s, trust_env=False, verify=NO_TLS)


def require_free_port(port: int) -> None:
    """Raise ConfigError if Chroma could not listen on `port`."""
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise ConfigError(
            f"Chroma's port {port} on {HOST} is taken: {error.strerror}",
            "stop what listens there, or set GATEWAY_CHROMA_PORT",
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """An operator's configuration of Chroma: a YAML file as `chroma run FILE` takes it. Blocks. Raises ConfigError."""
    import yaml  # noqa: PLC0415  # few have such a file

    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"GATEWAY_CHROMA_CONFIG: {path} cannot be read: {error}", "it must be YAML") from error
    if not isinstance(found or {}, dict):
        raise ConfigError(f"GATEWAY_CHROMA_CONFIG: {path} is not a mapping of settings", "see docs/configuration.md")
    return found or {}


def merged_config(
    data_dir: Path,
    port: int,
    *,
    allow_reset: bool = False,
    max_payload_bytes: int = CHROMAS_MAX_PAYLOAD_BYTES,
    operators: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `chroma run` is configured by: what the gateway needs, on top of what an operator wants.

    All else keeps Chroma's defaults, which for a configuration file are those of its options
    (`rust/frontend/src/config.rs`). Unknown settings are passed on. Raises ConfigError for a setting of the operator's
    that contradicts the gateway's.
    """
    given = dict(operators or {})
    ours: dict[str, Any] = {
        "persist_path": str(data_dir),
        "listen_address": HOST,
        "port": port,
        "allow_reset": allow_reset,
        "sqlite_filename": DATABASE,
    }
    if max_payload_bytes > CHROMAS_MAX_PAYLOAD_BYTES and not _is_at_least(given.get(_MAX_PAYLOAD), max_payload_bytes):
        ours[_MAX_PAYLOAD] = max_payload_bytes
    for name, value in ours.items():
        if name in given and given[name] != value:
            raise _contradiction(name, given[name], value, _WAYS.get(name))
    for part, name in (("sqlitedb", "url"), ("segment_manager", "persist_path")):
        if isinstance(given.get(part), dict) and name in given[part]:
            raise _contradiction(f"{part}.{name}", given[part][name], "a place in the data directory", None)
    # stdout_tracing as without a file (`rust/cli/src/commands/run.rs`).
    return {"stdout_tracing": True, **given, **ours}


def _is_at_least(value: object, least: int) -> bool:
    return isinstance(value, int) and value >= least


def _contradiction(name: str, given: object, ours: object, way: str | None) -> ConfigError:
    return ConfigError(
        f"GATEWAY_CHROMA_CONFIG sets {name} to {given!r}, and the gateway sets it to {ours!r}",
        f"leave it out of the file{f', and set {way}' if way else ''}",
    )


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write what `chroma run` is configured by, whole or not at all; `path` is read by `gateway.chroma.native`.

    Raises DiskFull, GatewayError.
    """
    write_durably(path, json.dumps(config, default=str).encode())  # JSON is YAML too


@contextlib.asynccontextmanager
async def scratch_chroma(data_dir: Path) -> AsyncIterator[str]:
    """Run Chroma on a directory of its own for the time of the block; yields its base URL once it answers.

    It listens on a free port of loopback and is gone when the block ends, however it ends, also by
    the death of this process. Raises SnapshotError if it ends by itself or does not answer: then it cannot
    serve what is there.
    """
    port = _free_port()
    with tempfile.TemporaryDirectory() as private, tempfile.TemporaryFile() as said:
        config = Path(private) / "chroma.yaml"
        write_config(config, merged_config(data_dir, port))
        run = [sys.executable, "-P", "-m", "gateway.chroma.native", str(config)]
        command = [sys.executable, "-c", _UNTIL_PARENT_DIES, str(os.getpid()), *run]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env=environment_for_chroma({**os.environ}),
            cwd=data_dir,
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
    async with http_client(url, _HEARTBEAT_TIMEOUT_S) as client:

        async def has_ended_or_answers() -> bool:
            if process.returncode is not None:
                return True
            with contextlib.suppress(httpx.HTTPError):
                return (await client.get("/api/v2/heartbeat")).status_code == httpx.codes.OK
            return False

        with contextlib.suppress(TimeoutError):
            await poll_until(has_ended_or_answers, every_s=_POLL_S, timeout_s=_START_TIMEOUT_S)
            if process.returncode is None:
                return
    said.seek(0)
    last = said.read()[-_SAID_BYTES:].decode(errors="replace").strip()
    what = "did not answer" if process.returncode is None else f"ended with status {process.returncode}"
    raise SnapshotError(f"Chroma {chroma_version()} {what} on this data: {last}")


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
