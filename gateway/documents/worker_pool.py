"""The worker processes, seen from the gateway: started when needed, killed when they take too long."""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.documents.embedding import Embedding
from gateway.documents.readers.ocr import OCR_BUDGET_S
from gateway.errors import GatewayError, InvalidRequest

# A line has the embeddings of one batch at most.
_LINE_BYTES = 256 << 20
_READ_TIMEOUT_S = 120.0
_READ_TIMEOUT_S_PER_MB = 5.0
_READ_TRIES = 2
_LOAD_TIMEOUT_S = 600.0  # a model may have to be downloaded
_EMBED_TIMEOUT_S = 600.0
_READER_MEMORY_BYTES = 3 << 30
# For tesseract: more threads make a page slower, and the gateway's requests come first.
_READER_ENVIRONMENT = {"OMP_THREAD_LIMIT": "1"}


class WorkerEnded(Exception):
    """The worker crashed, or was killed because it took too long."""


class Unreadable(Exception):
    """A document could not be read. `is_fault_of_document` is false if the reader failed: it may succeed later."""

    def __init__(self, message: str, *, is_fault_of_document: bool = True) -> None:
        super().__init__(message)
        self.is_fault_of_document = is_fault_of_document


class TextRefused(Exception):
    """The provider of embeddings refused a text."""


@dataclass(frozen=True, slots=True)
class ReadResult:
    """How many chunks a document has, and which of its parts could not be read."""

    chunks: int
    problems: list[str]


class WorkerPool:
    """One process that reads documents, with bounded memory, and one that embeds. `async with` kills both."""

    def __init__(self) -> None:
        self.max_tokens: int | None = None
        self._directory = tempfile.TemporaryDirectory(prefix="chroma-gateway-")
        self._tokenizer = str(Path(self._directory.name, "tokenizer.json"))
        # A hostile document must not reach keys through the reader. Some embedding functions need those of AWS.
        self._reader = _Process(
            "GATEWAY_", "AWS_", arguments=(str(_READER_MEMORY_BYTES),), environment=_READER_ENVIRONMENT
        )
        self._embedder = _Process("GATEWAY_")

    async def __aenter__(self) -> "WorkerPool":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.kill()
        self._embedder.kill()
        await asyncio.gather(self._reader.ended(), self._embedder.ended())
        self._directory.cleanup()

    async def require_ocr(self, languages: str) -> None:
        """Raise InvalidRequest unless scanned pages in `languages` (`eng+deu`) can be recognised."""
        try:
            answer = await self._reader.ask({"do": "require_ocr", "ocr": languages}, _READ_TIMEOUT_S)
        except WorkerEnded as error:
            raise InvalidRequest(f"OCR: {error}") from None
        if "error" in answer:
            raise InvalidRequest(
                answer["error"],
                "install Debian's packages tesseract-ocr and tesseract-ocr-{language}, or leave 'ocr' out",
            )

    async def read(
        self, path: str, name: str, splitting: dict[str, Any], to: str, *, ocr: str | None = None
    ) -> ReadResult:
        """Write the chunks of the document at `path` to the file `to`. Raises Unreadable.

        Chunks are counted in the tokens of the embedding function that `load` has loaded. Scanned pages are recognised
        in the languages `ocr`. If the reader dies or takes too long, the document is read once more by a new one.
        """
        asked: dict[str, Any] = {"do": "read", "path": path, "name": name, "splitting": splitting, "to": to, "ocr": ocr}
        asked |= {"tokenizer": self._tokenizer, "max_tokens": self.max_tokens}
        size_bytes = await asyncio.to_thread(os.path.getsize, path)
        timeout_s = _READ_TIMEOUT_S + _READ_TIMEOUT_S_PER_MB * (size_bytes >> 20)
        timeout_s += OCR_BUDGET_S if ocr is not None else 0
        for attempt in range(1, _READ_TRIES + 1):
            try:
                answer = await self._reader.ask(asked, timeout_s)
                break
            except WorkerEnded as error:
                if attempt == _READ_TRIES:
                    raise Unreadable(
                        f"the reader failed {_READ_TRIES} times: {error}", is_fault_of_document=False
                    ) from None
        if "error" in answer:
            raise Unreadable(answer["error"], is_fault_of_document=answer.get("is_fault_of_document", False))
        return ReadResult(int(answer["chunks"]), answer["problems"])

    async def load(self, embedding: Embedding, module: str | None, hnsw: dict[str, Any]) -> dict[str, Any]:
        """Load the embedding function and return the configuration of a collection with it.

        `max_tokens` is how many tokens the function reads of a text afterwards, None if it has no tokenizer. Raises
        InvalidRequest if the function cannot be loaded or does not embed.
        """
        asked = {"do": "load", "embedding": embedding.model_dump(), "module": module, "hnsw": hnsw}
        asked["tokenizer"] = self._tokenizer
        try:
            answer = await self._embedder.ask(asked, _LOAD_TIMEOUT_S)
        except WorkerEnded as error:
            raise InvalidRequest(f"embedding function {embedding.name!r}: {error}") from None
        if "error" in answer:
            raise InvalidRequest(answer["error"], answer.get("hint"))
        self.max_tokens = answer["max_tokens"]
        configuration: dict[str, Any] = answer["configuration"]
        return configuration

    async def embed(self, texts: list[str]) -> list[str]:
        """Return the embedding of each text, as Chroma takes them.

        Raises TextRefused if the provider refuses one of the texts, GatewayError if it does not answer.
        """
        try:
            answer = await self._embedder.ask({"do": "embed", "texts": texts}, _EMBED_TIMEOUT_S)
        except WorkerEnded as error:
            raise GatewayError(
                f"embedding failed: {error}", "train again: documents that are done are skipped"
            ) from None
        if answer.get("is_refused"):
            raise TextRefused(answer["error"])
        if "error" in answer:
            raise GatewayError(answer["error"], "train again: documents that are done are skipped")
        embeddings: list[str] = answer["embeddings"]
        return embeddings


class _Process:
    """One worker process. It is started by the first question, and again after it ended."""

    def __init__(
        self, *withheld: str, arguments: tuple[str, ...] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        """Environment variables that begin with one of `withheld` are not passed on; `environment` is added."""
        self._withheld, self._arguments, self._environment = withheld, arguments, dict(environment or {})
        self._process: asyncio.subprocess.Process | None = None
        self._dying: asyncio.subprocess.Process | None = None

    async def ask(self, asked: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a question and return the answer. Raises WorkerEnded; a new process answers the next question."""
        if self._process is None:
            inherited = {**os.environ, **self._environment}
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
        """Wait until a killed process is gone."""
        if self._dying is not None:
            await self._dying.wait()
