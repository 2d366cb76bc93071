"""A receiver of alerts."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def webhook(*statuses: int) -> AsyncIterator[tuple[str, "asyncio.Queue[dict[str, Any]]"]]:
    """An HTTP server that answers with these in turn, 0 by closing; and what was posted to it."""
    posted: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    answers = list(statuses)

    async def serve(reader: asyncio.StreamReader, stream: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("POST /secret HTTP/1.1")
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        assert length
        posted.put_nowait(json.loads(await reader.readexactly(int(length[1]))))
        if status := answers.pop(0) if answers else 200:
            stream.write(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        stream.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/secret", posted
    finally:
        server.close()
        await server.wait_closed()
