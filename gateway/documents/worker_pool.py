"""The worker processes, seen from the gateway: started when needed, killed when they take too long."""

import asyncio
import contextlib
import json
import os
import sys
from typing import Any

from gateway.documents.embedding import Embedding
from gateway.errors import GatewayError, InvalidRequest

# A line has the embeddings of one batch at most.
_LINE_BYTES = 256 << 20
_READ_TIMEOUT_S = 120.0
_LOAD_TIMEOUT_S = 600.0  # a model may have to be downloaded
_EMBED_TIMEOUT_S = 600.0
_READER_MEMORY_BYTES = 3 << 30


class WorkerEnded(Exception):
    """The worker crashed, or was ended because it took too long."""


class Unreadable(Exception):
    """A document has no chunks; says why."""


class WorkerPool:
    """One process that reads documents, with bounded memory, and one that embeds. `async with` kills both."""

    def __init__(self) -> None:
        # A hostile document must not reach keys through the reader. Some embedding functions need those of AWS.
        self._reader = _Process("GATEWAY_", "AWS_", arguments=(str(_READER_MEMORY_BYTES),))
        self._embedder = _Process("GATEWAY_")

    async def __aenter__(self) -> "WorkerPool":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.kill()
        self._embedder.kill()
        await asyncio.gather(self._reader.ended(), self._embedder.ended())

    async def read(self, path: str, name: str, splitting: dict[str, Any], to: str) -> int:
        """Write the chunks of the document at `path` to the file `to`; return how many. Raises Unreadable."""
        asked = {"do": "read", "path": path, "name": name, "splitting": splitting, "to": to}
        try:
            answer = await self._reader.ask(asked, _READ_TIMEOUT_S)
        except WorkerEnded as error:
            raise Unreadable(f"reading it failed: {error}") from None
        if "error" in answer:
            raise Unreadable(answer["error"])
        return int(answer["chunks"])

    async def load(self, embedding: Embedding, module: str | None, hnsw: dict[str, Any]) -> dict[str, Any]:
        """Get the embedding function ready; return a collection's configuration. Raises InvalidRequest."""
        asked = {"do": "load", "embedding": embedding.model_dump(), "module": module, "hnsw": hnsw}
        try:
            answer = await self._embedder.ask(asked, _LOAD_TIMEOUT_S)
        except WorkerEnded as error:
            raise InvalidRequest(f"embedding function {embedding.name!r}: {error}") from None
        if "error" in answer:
            raise InvalidRequest(
                answer["error"], "install what it needs beside the gateway, set its key, or choose another one"
            )
        configuration: dict[str, Any] = answer["configuration"]
        return configuration

    async def embed(self, texts: list[str]) -> list[str]:
        """The embeddings, as Chroma takes them. Raises GatewayError if the provider does not give them."""
        try:
            answer = await self._embedder.ask({"do": "embed", "texts": texts}, _EMBED_TIMEOUT_S)
        except WorkerEnded as error:
            raise GatewayError(f"embedding failed: {error}", "train again: what is done stays done") from None
        if "error" in answer:
            raise GatewayError(answer["error"], "train again: what is done stays done")
        embeddings: list[str] = answer["embeddings"]
        return embeddings


class _Process:
    """One worker, started at the first question and again after it ended."""

    def __init__(self, *withheld: str, arguments: tuple[str, ...] = ()) -> None:
        """Environment variables that begin with one of `withheld` are not passed on."""
        self._withheld, self._arguments = withheld, arguments
        self._process: asyncio.subprocess.Process | None = None
        self._dying: asyncio.subprocess.Process | None = None

    async def ask(self, asked: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Raises WorkerEnded; the next question goes to a new one then."""
        if self._process is None:
            inherited = {**os.environ}
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway.documents.worker", *self._arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE_BYTES,
                env={name: value for name, value in inherited.items() if not name.startswith(self._withheld)},
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                process.stdin.write(json.dumps(asked).encode() + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
        except TimeoutError:
            self.kill()
            raise WorkerEnded(f"it took longer than {timeout_s:g} s") from None
        except (OSError, ValueError) as error:
            self.kill()
            raise WorkerEnded(str(error)) from None
        except BaseException:
            self.kill()  # its late answer would be taken for the next question's
            raise
        if not line.endswith(b"\n"):
            self.kill()
            raise WorkerEnded("its process ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._dying = process
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def ended(self) -> None:
        """Wait until a process that was killed is gone."""
        if self._dying is not None:
            await self._dying.wait()
