"""A whole gateway for tests: supervisord, Chroma and the gateway in a directory of their own."""

import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import chromadb
import httpx
from chromadb.api import ClientAPI

from gateway.supervisor.client import _call
from tests.ports import free_port

ROOT = Path(__file__).parents[1]
ADMIN_TOKEN = "a-token-for-tests-only"
START_TIMEOUT_S = 60


class Gateway:
    """`chroma-gateway serve` in `directory`; start and stop it as often as needed."""

    def __init__(self, directory: Path, **env: str) -> None:
        self.directory = directory
        self.port, self.chroma_port = free_port(), free_port()
        self.log = directory / "log"
        self.command = [sys.executable, "-m", "gateway", "serve", "--config", str(ROOT / "supervisord.conf")]
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "PYTHONPATH": str(ROOT),
            "PORT": str(self.port),
            "GATEWAY_CHROMA_PORT": str(self.chroma_port),
            "GATEWAY_ADMIN_TOKEN": ADMIN_TOKEN,
            # Most tests are about snapshots: what a journal adds to a store would hide what they look at.
            "GATEWAY_JOURNAL_INTERVAL_S": "0",
            **env,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        return Path(self.env.get("GATEWAY_DATA_DIR", self.directory / "var/chroma"))

    @property
    def store_dir(self) -> Path:
        return self.directory / "var/store"

    # ------------------------------------------------------------------ life

    def start(self, *, ready: bool = True) -> Self:
        """Start it; unless told otherwise, wait until it is ready."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.directory,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if ready:
            self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        self.until(lambda: self.readyz().status_code == 200, "it is ready")

    def wait(self, timeout_s: float = START_TIMEOUT_S) -> int:
        """Wait for its end; return the exit status."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def stop(self, timeout_s: float = START_TIMEOUT_S) -> int:
        """SIGTERM, as platforms do; return the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """kill -9 everything at once, as a lost machine would. Its three processes have ended when this returns."""
        if self._process is not None and self._process.poll() is None:
            pids = [self._process.pid, *(pid for pid in (self.pid("chroma"), self.pid("gateway")) if pid)]
            # A killed process finishes the call it is in, which may make a file in a directory that a test removes.
            # Chroma and the gateway are no children of this process, so they cannot be waited for by their ids.
            handles = selectors.DefaultSelector()
            for pid in pids:
                if sys.platform == "linux":
                    with suppress(OSError):  # it has ended, or the system has no such call
                        handles.register(os.pidfd_open(pid), selectors.EVENT_READ)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            while handles.get_map():
                ended = handles.select(START_TIMEOUT_S)
                assert ended, "a killed process did not end"
                for key, _ in ended:
                    handles.unregister(key.fd)
                    os.close(key.fd)
            handles.close()
            self._process.wait()

    def lose_disk(self) -> None:
        """kill -9 everything, and its data directory is gone. The next start takes the lease at once.

        How long a holder that does not answer is waited for is what `test_two_gateways` looks at.
        """
        self.kill()
        shutil.rmtree(self.data_dir)
        self.env["GATEWAY_TAKEOVER_TIMEOUT_S"] = "0"

    def kill_gateway(self) -> None:
        """kill -9 the gateway alone, and wait until supervisord has started the next one."""
        killed = self.pid("gateway")
        assert killed
        os.kill(killed, signal.SIGKILL)
        self.until(lambda: self.pid("gateway") not in (None, killed), "the gateway is started again")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    # ------------------------------------------------------------------ talking to it

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **kwargs: Any) -> ClientAPI:
        return chromadb.HttpClient(host="127.0.0.1", port=self.port, **kwargs)

    def chroma(self) -> ClientAPI:
        """A client that goes round the gateway."""
        return chromadb.HttpClient(host="127.0.0.1", port=self.chroma_port)

    def admin(
        self,
        method: str,
        path: str,
        token: str | None = ADMIN_TOKEN,
        extra: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers |= extra or {}
        return httpx.request(method, f"{self.url}/admin{path}", headers=headers, timeout=120, **kwargs)

    def snapshot(self, label: str | None = None) -> dict[str, Any]:
        """Take one; it must succeed."""
        answer = self.admin("POST", "/snapshot", json={"label": label})
        assert answer.status_code == 201, answer.text
        snapshot: dict[str, Any] = answer.json()
        return snapshot

    def readyz(self) -> httpx.Response:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=10)
        except httpx.TransportError as error:
            return httpx.Response(599, text=str(error))

    def pid(self, program: str) -> int | None:
        """The process id of `chroma` or `gateway`, None while it has none."""
        try:
            info = _call(f"unix://{self.directory}/var/supervisor.sock", "supervisor.getProcessInfo", (program,), None)
        except OSError:
            return None
        return info["pid"] or None

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait for `condition`; fail with the log if it does not come, or if the gateway ends."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline or not self.running:
                raise AssertionError(f"{what} did not come true:\n{self.output()[-8000:]}")
            time.sleep(0.05)

    def until_logged(self, words: str) -> None:
        """Wait for a line of the log, which takes a moment longer than an answer: it goes through supervisord."""
        self.until(lambda: words in self.output(), f"`{words}` is in the log", 10)

    def output(self) -> str:
        """All it has said so far. What belongs to an answer may still be on its way."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@contextmanager
def gateway_process(**env: str) -> Iterator[Gateway]:
    """A gateway in a fresh, short-named directory (Unix sockets want short paths), not yet started."""
    with tempfile.TemporaryDirectory(prefix="gw-") as directory:
        built = Gateway(Path(directory), **env)
        try:
            yield built
        finally:
            built.kill()
