"""Conditional writes to Google Cloud Storage have the headers that its reference names."""

from typing import Any

import pytest

from gateway.errors import StorageUnavailable
from gateway.storage.gcs_preconditions import has_gcs_preconditions
from gateway.storage.s3 import S3Storage


@pytest.mark.parametrize(
    ("endpoint_url", "expected"),
    [
        ("https://storage.googleapis.com", True),
        ("https://my-bucket.storage.googleapis.com/", True),
        ("https://s3.eu-central-1.amazonaws.com", False),
        ("https://storage.googleapis.com.example.org", False),
        ("http://127.0.0.1:9000", False),
    ],
)
def test_only_google_gets_generation_conditions(endpoint_url: str, expected: bool) -> None:
    """Recognized by the host name of the endpoint."""
    assert has_gcs_preconditions(endpoint_url) is expected


class Sent(Exception):
    """Instead of sending it."""


@pytest.mark.parametrize(
    ("endpoint_url", "expected"),
    [
        ("https://storage.googleapis.com", [{"x-goog-if-generation-match": "0"}, {"x-goog-if-generation-match": "17"}]),
        ("http://127.0.0.1:9000", [{"if-none-match": "*"}, {"if-match": "17"}]),
    ],
)
async def test_the_condition_is_signed_and_sent(
    endpoint_url: str, expected: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request that botocore is about to send has exactly the one condition, and the signature covers it."""
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "ENDPOINT_URL_S3": endpoint_url}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    store, seen = S3Storage("bucket"), list[dict[str, str]]()

    def stop(request: Any, **_: object) -> None:
        seen.append({name.lower(): str(request.headers[name]) for name in request.headers})
        raise Sent

    _, once = await store._clients()
    once.meta.events.register("before-send.s3.PutObject", stop)
    try:
        with pytest.raises(StorageUnavailable, match="Sent"):
            await store.put_if_absent("key", b"data")
        with pytest.raises(StorageUnavailable, match="Sent"):
            await store.put_if_match("key", b"data", "17")
    finally:
        await store.close()
    for headers, condition in zip(seen, expected, strict=True):
        conditions = {
            name: value.strip("b'") for name, value in headers.items() if name.endswith(("match", "none-match"))
        }
        assert conditions == condition
        assert next(iter(condition)) in headers["authorization"]
