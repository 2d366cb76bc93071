"""An instrumented store counts every call once."""

from pathlib import Path

import pytest

from gateway.errors import ObjectMissing
from gateway.observability.metrics import Metrics
from gateway.storage import FileStorage, InstrumentedStorage


async def test_requests_bytes_and_errors_are_counted(tmp_path: Path) -> None:
    """Stored bytes count up, fetched bytes down. A failure counts as a request and, by our name of it, as an error."""
    metrics = Metrics()
    store = InstrumentedStorage(FileStorage(tmp_path / "store"), metrics)

    def value(name: str, **labels: str) -> float:
        return metrics.registry.get_sample_value(f"chroma_gateway_store_{name}_total", labels) or 0

    await store.put("a", b"12345")
    assert await store.put_if_absent("b", b"678")
    assert await store.get("a") == b"12345"
    assert await store.get_range("a", 1, 2) == b"23"
    assert [info.key async for info in store.list("")] == ["a", "b"]
    with pytest.raises(ObjectMissing):
        await store.get("absent")
    assert (value("bytes", direction="up"), value("bytes", direction="down")) == (8, 7)
    assert (value("requests", operation="put"), value("requests", operation="list")) == (1, 1)
    assert (value("requests", operation="get"), value("errors", operation="get", error="ObjectMissing")) == (2, 1)
    await store.close()
