"""The watch outlives whatever a dying Chroma does to it."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import pytest

from gateway.chroma import watch as watch_module
from gateway.chroma.database import Collection, open_database
from gateway.chroma.disk import DATABASE, LEVEL0
from gateway.chroma.quarantine import DIED_TWICE, Quarantine
from gateway.chroma.segments import read_segments
from gateway.chroma.watch import ChromaWatch
from tests.bare_chroma import bare_chroma


@asynccontextmanager
async def admitted(what: str, collection_id: str):
    yield


async def test_it_sees_chroma_come_go_and_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when connecting fails in a way that no documentation mentions."""
    gone: list[int] = []
    surprises = iter(
        [AttributeError("'NoneType' object has no attribute 'getpeername'"), RuntimeError("odd"), OSError()]
    )
    get = httpx.AsyncClient.get

    async def surprising(self: httpx.AsyncClient, *args: object, **kwargs: object) -> httpx.Response:
        for error in surprises:
            raise error
        return await get(self, *args, **kwargs)

    monkeypatch.setattr(httpx.AsyncClient, "get", surprising)
    with bare_chroma(tmp_path) as chroma:
        watch = ChromaWatch(tmp_path, chroma.port, admitted, lambda: gone.append(1))
        watching = asyncio.create_task(watch.run())
        assert await watch.until(lambda watch: watch.warmed, 20)
        assert watch.require_served() == 1
        await watch.require_same_run(1)
        chroma.process.kill()
        assert await watch.until(lambda watch: not watch.up, 20)
        assert gone == [1]
        assert not watching.done()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_suspects_are_read_last_and_alone(tmp_path: Path) -> None:
    """Chroma ends whenever one collection is read: at the second time it is known which one, and left alone."""
    quarantine, read = Quarantine(), list[str]()
    with bare_chroma(tmp_path) as chroma:
        made = [chroma.client().create_collection(f"notes{each}", embedding_function=None) for each in range(6)]
        for collection in made:
            collection.add(ids=["a"], embeddings=[[1.0, 0.0]])
    doomed = str(made[0].id)

    async def run() -> dict[str, str]:
        """Start Chroma, read everything, and return what could not be read; it is empty if Chroma ended."""
        with bare_chroma(tmp_path) as chroma:

            @asynccontextmanager
            async def deadly(_what: str, collection_id: str) -> AsyncIterator[None]:
                read.append(collection_id)
                if collection_id == doomed:
                    chroma.process.kill()
                yield

            read.clear()
            watch = ChromaWatch(tmp_path, chroma.port, deadly, lambda: None, quarantine)
            watching = asyncio.create_task(watch.run())
            assert await watch.until(lambda watch: watch.warmed or (watch.starts > 0 and not watch.up), 20)
            unreadable = watch.unreadable
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            return unreadable

    assert await run() == {}
    suspects = quarantine.suspects
    assert doomed in suspects
    assert await run() == {}
    assert (suspects & set(read), read[-1]) == ({doomed}, doomed)
    assert len(read) == 6 - len(suspects) + 1
    assert await run() == {"default_tenant/default_database/notes0": DIED_TWICE}
    assert (len(read), doomed in read) == (5, False)
    assert not quarantine.suspects


async def test_what_chroma_fails_for_is_read_again_and_its_files_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chroma reads from its memory what it cannot write any more. Other collections are not read again."""
    monkeypatch.setattr(watch_module, "_PROBE_AGAIN_S", 0.05)
    quarantine, read = Quarantine(), list[str]()

    @asynccontextmanager
    async def noted(what: str, _collection_id: str) -> AsyncIterator[None]:
        read.append(what)
        yield

    with bare_chroma(tmp_path) as chroma:
        configuration = {"hnsw": {"sync_threshold": 20, "batch_size": 10}}
        for name in ("notes", "other"):
            made = chroma.client().create_collection(name, embedding_function=None, configuration=configuration)
            made.add(ids=[str(each) for each in range(30)], embeddings=[[1.0, each] for each in range(30)])
        notes = chroma.client().get_collection("notes", embedding_function=None)
        watch = ChromaWatch(tmp_path, chroma.port, noted, lambda: None, quarantine)
        watching = asyncio.create_task(watch.run())
        assert await watch.until(lambda watch: watch.warmed, 20)
        index = index_of(tmp_path, str(notes.id))
        whole = (index / LEVEL0).read_bytes()
        os.truncate(index / LEVEL0, len(whole) // 10)  # it has room for a hundred, and thirty are there
        read.clear()
        quarantine.doubt(str(notes.id))
        assert await watch.until(lambda watch: bool(watch.unreadable), 20)
        assert "torn on the disk" in watch.unreadable["default_tenant/default_database/notes"]
        assert (watch.refused, quarantine.refuses(str(notes.id))) == (frozenset(), False)
        (index / LEVEL0).write_bytes(whole)
        assert await watch.until(lambda watch: not watch.unreadable, 20)
        assert set(read) == {"warming default_tenant/default_database/notes"}
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def index_of(data_dir: Path, collection_id: str) -> Path:
    with closing(open_database(data_dir / DATABASE)) as connection:
        (segment,) = [each for each in read_segments(connection) if each.collection_id == collection_id]
    return data_dir / segment.id


@pytest.mark.parametrize(("fails", "refused"), [("embeddings", False), ("count", True)])
async def test_what_chroma_can_answer_in_part_is_passed_on(tmp_path: Path, fails: str, refused: bool) -> None:
    """One record without a vector fails some requests of its collection. It does not take away the others."""

    def answer(request: httpx.Request) -> httpx.Response:
        if fails in f"{request.url.path} {request.content.decode()}":
            return httpx.Response(500, json={"error": "InternalError", "message": "vector missing"})
        return httpx.Response(200, json={"ids": []})

    quarantine = Quarantine()
    watch = ChromaWatch(tmp_path, 1, admitted, lambda: None, quarantine)
    notes = Collection("tenant", "database", "notes", "00000000-0000-0000-0000-00000000000a", 1, 2)
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://chroma") as client:
        await watch._warm(client, [notes, notes._replace(name="other", id="b")], {"tenant/database/notes"})
    assert watch.unreadable.keys() == {"tenant/database/notes"}
    assert watch.refused == (frozenset(watch.unreadable) if refused else frozenset())
    assert quarantine.refuses(notes.id) is refused
    assert not watch.serves_nothing
