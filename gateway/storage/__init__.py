"""Where snapshots and documents are stored so that they outlive the container: a directory or a bucket.

Vocabulary: an *object* is a sequence of bytes under a *key*. A *prefix* is what a set of keys starts with. A
*version* is a token of the bytes that an object has: a conditional write gives it back. A *tag* is what a
listing tells of an object, and changes with its bytes too.

- `protocol`  the contract, in prose; `tests/contract` asks it of every implementation
- `file`      FileStorage: a directory, with fsync and atomic rename
- `s3`        S3Storage: a bucket, at AWS or anything that speaks S3, with `gcs_preconditions` for Google's, `s3_hints`
              for what to do about errors, and `s3_permissions` for what must be allowed
- `options`   StoreOptions: what an operator can set about requests
- `wrappers`  PrefixedStorage, InstrumentedStorage, NoDeleteStorage: stores round a store
- `registry`  from the URL in GATEWAY_STORE to a store: `open_storage`

1. `open_storage(GATEWAY_STORE)` makes a store. Nothing is touched yet.
2. `PrefixedStorage(store, "users/{user_id}/vectorstore/")` is the part of it that one gateway owns.
3. The first call connects. A store that cannot be read raises an error: it is never taken for an empty one.
"""

from gateway.storage.file import FileStorage
from gateway.storage.protocol import ObjectInfo, Storage, Versioned, check_key
from gateway.storage.registry import open_storage
from gateway.storage.wrappers import InstrumentedStorage, NoDeleteStorage, PrefixedStorage

# Not S3Storage: importing its SDK takes most of a second, which a gateway with another store need not wait for.
__all__ = [
    "FileStorage",
    "InstrumentedStorage",
    "NoDeleteStorage",
    "ObjectInfo",
    "PrefixedStorage",
    "Storage",
    "Versioned",
    "check_key",
    "open_storage",
]
