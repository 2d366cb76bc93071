"""Where snapshots and documents outlive the container: one protocol, a directory or a bucket behind it.

Vocabulary: an *object* is bytes under a *key*; a *version* is a token of the bytes an object has, for
writing only if nobody else did; a *prefix* is what a set of keys starts with. `gateway.storage.protocol`
is the contract and `tests/contract` asks it of every implementation:

    FileStore    a directory: fsync and atomic rename       (`gateway.storage.file`)
    S3Store      a bucket, at AWS or anything like it       (`gateway.storage.s3`)
    Prefixed     one folder of either                       (`gateway.storage.prefixed`)
    Undeletable  either, and nothing is ever deleted        (`gateway.storage.no_delete`)

1. `open_storage(GATEWAY_STORE)` makes one; nothing is touched yet.
2. `PrefixedStorage(store, "users/{user_id}/vectorstore/")` is what one gateway owns of it.
3. The first call connects. What cannot be read raises: it is never taken for empty.
"""

import re
from pathlib import Path
from typing import Literal

from gateway.errors import ConfigError, InvalidRequest
from gateway.storage.file import FileStorage
from gateway.storage.no_delete import NoDeleteStorage
from gateway.storage.prefixed import PrefixedStorage
from gateway.storage.protocol import ObjectInfo, Storage, Versioned, check_key
from gateway.storage.s3 import S3Storage

__all__ = [
    "FileStorage",
    "NoDeleteStorage",
    "ObjectInfo",
    "PrefixedStorage",
    "S3Storage",
    "Storage",
    "Versioned",
    "check_key",
    "open_storage",
]

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def open_storage(url: str, *, addressing: Literal["auto", "path", "virtual"] = "auto") -> Storage:
    """The store at `url`: `file:///path`, `file://./relative/path` or `s3://bucket[/prefix]`.

    Paths are taken as they are written, without percent-escapes. Raises ConfigError; whether the
    store can be reached shows with the first call.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "file" and re.match(r"\.{0,2}/", rest) and rest.strip("./"):
        return FileStorage(Path(rest).absolute())
    bucket, _, prefix = rest.partition("/")
    if separator and scheme == "s3" and _BUCKET.fullmatch(bucket):
        try:
            return S3Storage(bucket, prefix, addressing=addressing)
        except InvalidRequest as error:
            raise ConfigError(f"GATEWAY_STORE: {error.message}") from None
    # What stands before an "@" may be a password.
    shown = repr(url) if "@" not in url else "a URL with '@'"
    raise ConfigError(
        f"GATEWAY_STORE: {shown} is not a store",
        "use s3://bucket[/prefix], file:///absolute/path or file://./relative/path; "
        "credentials go into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    )
