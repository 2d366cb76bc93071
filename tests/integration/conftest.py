"""What integration tests share."""

from collections.abc import AsyncIterator

import pytest_asyncio

from gateway.documents.worker_pool import WorkerPool


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def workers() -> AsyncIterator[WorkerPool]:
    """Workers for all tests of a file: to start some takes longer than most of what they do there."""
    async with WorkerPool() as worker_pool:
        yield worker_pool
