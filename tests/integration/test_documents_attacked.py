"""Documents that harm whoever opens them, and providers that say "later": training outlives both."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.documents.embedding import Embedding, NoEmbedding, TextRefused, embed
from gateway.documents.worker_pool import Unreadable, WorkerEnded, WorkerPool
from gateway.errors import InvalidRequest

SPLITTING: dict[str, Any] = {}


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "chunks")


async def test_a_reader_that_takes_too_long_is_ended(tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next document is read by a new one."""
    monkeypatch.setattr("gateway.documents.worker_pool._READ_TIMEOUT_S", 0.001)
    document = tmp_path / "document"
    document.write_text("words")
    async with WorkerPool() as worker_pool:
        with pytest.raises(Unreadable, match="longer than"):
            await worker_pool.read(str(document), "a.txt", SPLITTING, out)
        monkeypatch.undo()
        assert (await worker_pool.read(str(document), "a.txt", SPLITTING, out)).chunks == 1
    assert json.loads(Path(out).read_text()) == [0, "words", {}]


async def test_a_document_is_read_again_when_its_reader_dies(tmp_path: Path, out: str) -> None:
    """Once; a reader that dies again is not the fault of the document, and the next document is read."""
    document = tmp_path / "document"
    document.write_text("words " * 100)
    async with WorkerPool() as worker_pool:
        await worker_pool.read(str(document), "a.txt", SPLITTING, out)
        ask = worker_pool._reader.ask
        kills = 0

        async def ask_and_kill(asked: dict[str, Any], timeout_s: float) -> dict[str, Any]:
            nonlocal kills
            if kills and worker_pool._reader._process is not None:
                kills -= 1
                worker_pool._reader._process.kill()
                await worker_pool._reader._process.wait()
            return await ask(asked, timeout_s)

        worker_pool._reader.ask = ask_and_kill  # type: ignore[method-assign]
        kills = 1
        assert (await worker_pool.read(str(document), "a.txt", SPLITTING, out)).chunks == 1
        worker_pool._reader.ask = _dies  # type: ignore[method-assign]
        with pytest.raises(Unreadable) as failed:
            await worker_pool.read(str(document), "a.txt", SPLITTING, out)
        assert not failed.value.is_fault_of_document
        worker_pool._reader.ask = ask  # type: ignore[method-assign]
        assert (await worker_pool.read(str(document), "a.txt", SPLITTING, out)).chunks == 1


async def _dies(asked: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    raise WorkerEnded("its process ended")


async def test_a_reader_has_bounded_memory(tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs more than it may have fails alone, and soon."""
    monkeypatch.setattr("gateway.documents.worker_pool._READER_MEMORY_BYTES", 400 << 20)
    document = tmp_path / "document"
    with document.open("wb") as file:
        file.truncate(1 << 30)
    async with WorkerPool() as worker_pool:
        with pytest.raises(Unreadable) as failed:
            await worker_pool.read(str(document), "a.txt", SPLITTING, out)
        assert not failed.value.is_fault_of_document


async def test_a_cancelled_question_is_not_answered_to_the_next(tmp_path: Path, out: str) -> None:
    """Whoever stops waiting takes the worker along: answers never come to the wrong question."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("first " * 1000)
    second.write_text("second")
    async with WorkerPool() as worker_pool:
        asking = asyncio.ensure_future(worker_pool.read(str(first), "a.txt", SPLITTING, out))
        await asyncio.sleep(0)
        while worker_pool._reader._process is None:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert (await worker_pool.read(str(second), "a.txt", SPLITTING, out)).chunks == 1
    assert json.loads(Path(out).read_text()) == [0, "second", {}]


@pytest.mark.parametrize(
    ("embedding", "module", "why"),
    [
        (Embedding(name="nobody"), None, "no embedding function 'nobody'"),
        (Embedding(name="openai", config={"model_name": "m", "api_key_env_var": "NOT_SET"}), None, "openai"),
        (Embedding(), "no.such.module", "No module named"),
        (Embedding(name="sentence_transformer", config={}), None, "sentence_transformer"),
    ],
    ids=["unknown", "no key", "no module", "bad config"],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_what_cannot_embed_is_told_before_any_work(
    workers: WorkerPool, embedding: Embedding, module: str | None, why: str
) -> None:
    """With what is missing."""
    with pytest.raises(InvalidRequest, match=why):
        await workers.load(embedding, module, {})


@pytest.mark.asyncio(loop_scope="module")
async def test_a_collection_is_configured_with_its_function(workers: WorkerPool) -> None:
    """As Chroma's own client would do it, with parameters of one's own."""
    said = await workers.load(Embedding(name="words_for_tests"), "tests.word_embedding", {"max_neighbors": 24})
    (vector,) = await workers.embed(["a word"])
    assert said["embedding_function"] == {"name": "words_for_tests", "type": "known", "config": {}}
    assert (said["hnsw"]["space"], said["hnsw"]["max_neighbors"]) == ("cosine", 24)
    assert isinstance(vector, str)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_function_without_its_configuration_gets_its_defaults(workers: WorkerPool) -> None:
    """What is missing then is named: the package or the key, and not that code should not be reached."""
    for name in ("openai", "cohere", "sentence_transformer", "google_generative_ai"):
        with pytest.raises(InvalidRequest, match=name) as refused:
            await workers.load(Embedding(name=name), None, {})
        assert "should not be reached" not in str(refused.value)
        assert any(word in str(refused.value) for word in ("not installed", "is not set", "config"))


class BadText(Exception):
    status_code = 400


def test_a_text_that_a_provider_refuses_is_told_apart() -> None:
    """It is not the provider that fails."""

    def function(texts: list[str]) -> Any:
        raise BadText("too long")

    with pytest.raises(TextRefused, match="too long"):
        embed(function, ["a"])


class RateLimitError(Exception):
    status_code = 429


class Refused(Exception):
    status_code = 401


def test_a_provider_that_says_later_is_asked_again() -> None:
    """With pauses that grow; another refusal is final."""
    pauses: list[float] = []
    answers = [RateLimitError(), RateLimitError(), ConnectionError(), np.ones((1, 3))]

    def function(_texts: list[str]) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert len(embed(function, ["a"], pauses.append)) == 1
    assert len(pauses) == 3
    assert pauses[0] < pauses[2]
    answers[:] = [Refused("wrong key")]
    with pytest.raises(NoEmbedding, match="wrong key"):
        embed(function, ["a"], pauses.append)
    answers[:] = [RateLimitError("always") for _ in range(10)]
    with pytest.raises(NoEmbedding, match="always"):
        embed(function, ["a"], pauses.append)
