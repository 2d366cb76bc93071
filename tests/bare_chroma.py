"""Chroma itself, without a gateway in front."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import chromadb
import httpx
from chromadb.api import ClientAPI

from tests.ports import free_port

# What the `chroma` command runs, without the second that importing all of chromadb takes.
_RUN = "import sys, chromadb_rust_bindings; chromadb_rust_bindings.cli(sys.argv[1:])"


class BareChroma:
    def __init__(self, path: Path, process: subprocess.Popen[bytes], port: int) -> None:
        self.path, self.process, self.port = path, process, port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> ClientAPI:
        return chromadb.HttpClient(host="127.0.0.1", port=self.port)


@contextmanager
def bare_chroma(path: Path) -> Iterator[BareChroma]:
    """`chroma run --path`, answering; killed at the end."""
    port = free_port()
    arguments = ["chroma", "run", "--path", str(path), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "HOME": str(path)},
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/api/v2/heartbeat").status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None, "Chroma ended"
                assert time.monotonic() < deadline, "Chroma does not answer"
                time.sleep(0.02)
        yield BareChroma(path, process, port)
    finally:
        process.kill()
        process.wait()
