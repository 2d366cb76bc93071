"""Real S3 servers for tests. Each is a process on 127.0.0.1 that runs as long as its `with` block.

    with ministack() as server:
        server.make_bucket("b")
        env = server.env        # AWS_*: credentials, endpoint, region; no configuration of this machine

Most tests use `ministack`: it is fast and verifies checksums. The fixture of that name is one server for all tests of
a process, which use different buckets. `moto` is a second opinion. `rclone` ignores the conditions of conditional
writes.
"""

import contextlib
import http.client
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session

from tests.ports import free_port
from tests.store_faults import FaultProxy

ACCESS_KEY, SECRET_KEY, REGION = "test", "test", "us-east-1"
_START_TIMEOUT_S = 30
_STOP_TIMEOUT_S = 5


@dataclass(frozen=True)
class S3Server:
    """Where a server listens."""

    port: int
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """The variables with which an S3 client talks to this server and to no other one."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def env_behind(self, proxy: FaultProxy) -> dict[str, str]:
        """The same variables, with `proxy` in between."""
        return self.env | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{proxy.port}"}

    def make_bucket(self, name: str) -> None:
        client: Any = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name=REGION,
        )
        with contextlib.closing(client):
            client.create_bucket(Bucket=name)

    def new_bucket(self, name: str) -> str:
        """Make an empty bucket, whatever others there are. Return its name, which begins with `name`."""
        name = f"{name}-{uuid.uuid4().hex[:8]}"
        self.make_bucket(name)
        return name


@contextmanager
def ministack() -> Iterator[S3Server]:
    """Conditional writes are right and atomic; checksums are verified."""
    port = free_port()
    env = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "s3,iam,sts"}
    with _running([sys.executable, "-m", "ministack"], port, env) as server:
        yield server


@contextmanager
def moto() -> Iterator[S3Server]:
    """Conditional writes are right and atomic; checksums are not verified. Keep objects below 64 MiB."""
    port = free_port()
    with _running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port) as server:
        yield server


@contextmanager
def rclone() -> Iterator[S3Server]:
    """Conditions are accepted and ignored; signatures are verified."""
    with tempfile.TemporaryDirectory() as directory, rclone_in(Path(directory)) as server:
        yield server


@contextmanager
def rclone_in(directory: Path, certificate: Path | None = None) -> Iterator[S3Server]:
    """As `rclone`, with its buckets in `directory`; over TLS with a `certificate`, whose key has the suffix `.key`."""
    port = free_port()
    tls = ["--cert", str(certificate), "--key", str(certificate.with_suffix(".key"))] if certificate else []
    command = [
        *(str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--addr", f"127.0.0.1:{port}"),
        *("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", *tls, str(directory)),
    ]
    with _running(command, port):
        yield S3Server(port, "https" if certificate else "http")


@contextmanager
def faults(upstream_port: int) -> Iterator[FaultProxy]:
    """A proxy in front of the server on `upstream_port`; see `tests.store_faults` for its faults."""
    with FaultProxy(upstream_port) as proxy:
        yield proxy


@contextmanager
def _running(command: Sequence[str], port: int, env: Mapping[str, str] | None = None) -> Iterator[S3Server]:
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=home,
            env={"PATH": os.environ["PATH"], "HOME": home, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            if not _answers(process, port):
                log.seek(0)
                raise RuntimeError(f"{command} did not start:\n{log.read().decode(errors='replace')}")
            yield S3Server(port)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server answers any HTTP request. Return False if it has ended or takes too long."""
    give_up_at = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < give_up_at:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=1)) as connection:
            try:
                connection.request("GET", "/")
                connection.getresponse()
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
            else:
                return True
    return False
