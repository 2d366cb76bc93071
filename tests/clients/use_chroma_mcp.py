"""chroma-mcp on a gateway with keys. It runs in the environment of chroma-mcp, with PORT, CHROMA_KEY and READ_ONLY."""

import asyncio
import os
import sys
from pathlib import Path

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

NAME = "mcp_notes"


async def main() -> None:
    server = StdioServerParameters(
        command=str(Path(sys.executable).with_name("chroma-mcp")),
        args=[
            *("--client-type", "http", "--host", "127.0.0.1", "--port", os.environ["PORT"], "--ssl", "false"),
            *("--custom-auth-credentials", f"me:{os.environ['CHROMA_KEY']}"),
        ],
        env=dict(os.environ),
    )
    async with stdio_client(server) as streams, ClientSession(*streams) as session:
        await session.initialize()

        async def call(tool: str, **arguments: object) -> str:
            answer = await session.call_tool(tool, arguments)
            said = " ".join(each.text for each in answer.content)
            return f"error: {said}" if answer.isError else said

        if "READ_ONLY" not in os.environ:
            print(await call("chroma_create_collection", collection_name=NAME))
        print(await call("chroma_list_collections"))
        print(await call("chroma_get_collection_count", collection_name=NAME))
        print(await call("chroma_modify_collection", collection_name=NAME, new_metadata={"seen": True}))


asyncio.run(main())
