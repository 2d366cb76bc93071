"""Conditional writes to Google Cloud Storage, whose conditions are generations and not ETags. Pure.

Its XML API, which speaks S3 at storage.googleapis.com, ignores or refuses `If-Match` and `If-None-Match` on
a PUT. It has `x-goog-if-generation-match` for both: a number that changes with every write, 0 for an
object that does not exist (https://cloud.google.com/storage/docs/xml-api/reference-headers).
Written from that page and not tested against the real service; the probe at the start says whether it holds.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

_HOST = "storage.googleapis.com"
_CONDITION = "x-goog-if-generation-match"
_GENERATION = "x-goog-generation"


def has_gcs_preconditions(endpoint_url: str) -> bool:
    """Return whether the server at `endpoint_url` is Google's."""
    host = urlsplit(endpoint_url).hostname or ""
    return host == _HOST or host.endswith(f".{_HOST}")


def translate(params: Mapping[str, Any], **_: object) -> None:
    """Translate the conditions of a PUT to Google's header. A handler of botocore's `before-call.s3.PutObject`."""
    headers: MutableMapping[str, str] = params["headers"]
    if headers.pop("If-None-Match", None):
        headers[_CONDITION] = "0"
    if generation := headers.pop("If-Match", None):
        headers[_CONDITION] = generation


def generation(headers: Mapping[str, str]) -> str | None:
    """Return the generation in the `headers` of an answer, or None."""
    return headers.get(_GENERATION)
