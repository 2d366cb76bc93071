"""How Chroma is started: `chroma run`, unmodified, on loopback, in place of the calling process."""

import importlib.metadata
import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import NoReturn

from gateway.errors import ConfigError

HOST = "127.0.0.1"
# Ours alone: the admin token and the store's keys are none of Chroma's business.
_NOT_FOR_CHROMA = ("GATEWAY_", "AWS_")


def chroma_version() -> str:
    """The installed chromadb's version: the CLI and /api/v2/version tell other numbers (DESIGN §2.12)."""
    return importlib.metadata.version("chromadb")


def base_url(port: int) -> str:
    return f"http://{HOST}:{port}"


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
    command = shutil.which("chroma", path=os.pathsep.join((str(Path(sys.executable).parent), os.defpath)))
    if command is None:
        raise ConfigError(
            "the `chroma` command is not installed",
            "install the gateway with its dependencies: scripts/setup",
        )
    sys.stdout.flush()
    sys.stderr.flush()
    inherited = {**os.environ}
    asked = ["--path", str(data_dir), "--host", HOST, "--port", str(port)]
    if allow_reset:  # there is no option for it
        asked = [str(_config_file(data_dir, port))]
    os.execve(  # noqa: S606  # no shell is wanted
        command,
        [command, "run", *asked],
        {name: value for name, value in inherited.items() if not name.startswith(_NOT_FOR_CHROMA)}
        | {"ANONYMIZED_TELEMETRY": "False"},
    )


def _config_file(data_dir: Path, port: int) -> Path:
    config = {"persist_path": str(data_dir), "listen_address": HOST, "port": port, "allow_reset": True}
    path = data_dir / ".gateway" / "chroma.yaml"
    path.write_text(json.dumps(config))  # which is YAML too
    return path
