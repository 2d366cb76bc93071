"""The watch outlives whatever a dying Chroma does to it."""

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

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
        return await get(self, *args, **kwargs)  # type: ignore[arg-type]

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
