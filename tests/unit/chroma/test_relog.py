"""Vectors that only Chroma's memory has are written to its log, and what it has not is named."""

import json
from contextlib import nullcontext

import httpx
import pytest

from gateway.chroma import relog
from gateway.chroma.relog import write_to_log
from gateway.chroma.segments import Segment
from gateway.errors import GatewayError

SEGMENT = Segment("s", "c", "notes", "default_tenant", "default_database", "m", 2, 0, 0, "l2", 16, 100)
IDS = [f"r{number}" for number in range(250)]
VECTORLESS = {"r3", "r4", "r120", "r249"}


class Chroma:
    """Answers as Chroma does where some records have no vector. `broken`: it answers nothing but 500."""

    def __init__(self, *, broken: bool = False, full: bool = False) -> None:
        self.broken, self.full, self.written = broken, full, list[str]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body, failed = json.loads(request.content), httpx.Response(500, json={"error": "InternalError"})
        if self.broken:
            return failed
        if request.url.path.endswith("/upsert"):
            self.written += body["ids"]
            return failed if self.full else httpx.Response(201, json={})
        there = [each for each in body["ids"] if each != "r10"]
        if "embeddings" not in body["include"]:
            return httpx.Response(200, json={"ids": there, "embeddings": None})
        if VECTORLESS & set(there):
            return failed
        return httpx.Response(200, json={"ids": there, "embeddings": [[1.0, 2.0] for _ in there]})


async def written(chroma: Chroma, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def client(url: str, timeout_s: float) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=url, transport=httpx.MockTransport(chroma))

    monkeypatch.setattr(relog, "http_client", client)
    return await write_to_log(1, SEGMENT, IDS, nullcontext)


@pytest.mark.parametrize("full", [False, True])
async def test_records_without_a_vector_are_named_and_the_others_are_written(
    monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """Chroma fails a whole request for one of them. A record that is gone is neither."""
    chroma = Chroma(full=full)
    assert set(await written(chroma, monkeypatch)) == VECTORLESS
    assert sorted(chroma.written) == sorted(set(IDS) - VECTORLESS - {"r10"})


async def test_a_chroma_that_answers_nothing_has_lost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of its database is no record without a vector: a snapshot or a repair ends here."""
    with pytest.raises(GatewayError, match="does not answer"):
        await written(Chroma(broken=True), monkeypatch)
