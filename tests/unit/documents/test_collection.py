"""What training asks of Chroma goes through the gate as what it is."""

import httpx
import pytest

from gateway.documents import collection
from gateway.documents.collection import ChromaClient
from gateway.errors import LeaseLost
from gateway.proxy.gate import Gate

ID = "11111111-2222-3333-4444-555555555555"
RECORD = {"id": "a", "embedding": "AACAPw==", "document": "text", "metadata": {"n": 1}}


@pytest.fixture
def gate() -> Gate:
    return Gate(1)


@pytest.fixture
def chroma(gate: Gate) -> ChromaClient:
    made = ChromaClient("http://chroma", gate.admitted, "t", "d")
    answer = {"max_batch_size": 100, "ids": [], "metadatas": []}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
    made._client = httpx.AsyncClient(base_url="http://chroma", transport=transport)
    made.batch_size = 100
    return made


async def test_every_write_counts_as_one(gate: Gate, chroma: ChromaClient) -> None:
    """A record that is not counted is in no final snapshot, when one was taken in the middle of the training."""
    async with chroma:
        for number, write in enumerate(
            (chroma.upsert(ID, [RECORD]), chroma.delete(ID, ["a"]), chroma.set_metadata(ID, {"n": 1})), 1
        ):
            await write
            assert gate.admitted_writes == number
        assert [each async for each in chroma.records(ID)] == []
        assert gate.admitted_writes == 3


async def test_nothing_is_written_where_another_gateway_is_the_writer(
    gate: Gate, chroma: ChromaClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be in no snapshot; what is read is still read."""
    monkeypatch.setattr(collection, "_RETRY_FOR_S", -1)
    gate.refuse_writes("another gateway has taken over")
    async with chroma:
        for write in (chroma.upsert(ID, [RECORD]), chroma.delete(ID, ["a"]), chroma.set_metadata(ID, {"n": 1})):
            with pytest.raises(LeaseLost):
                await write
        assert [each async for each in chroma.records(ID)] == []
