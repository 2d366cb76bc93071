"""Every error that the gateway raises on purpose, with its HTTP status, its exit code and whether a retry may help.

    GatewayError                      500         exit 1
    ├── ConfigError                   500         exit 2   a wrong setting, a taken port, a second gateway
    ├── InvalidRequest                400
    ├── Unauthorized                  401                  no key, or an unknown one
    ├── Forbidden                     403                  a known key without the permission
    ├── NotFound                      404
    ├── NotAllowed                    405                  the route has other methods only
    ├── ClientTooSlow                 408                  a request did not arrive in time
    ├── Conflict                      409                  another operation is under way
    ├── PreconditionFailed            412                  If-Match or If-None-Match does not match
    ├── BodyTooLarge                  413                  the body is larger than the limit
    ├── RangeNotSatisfiable           416                  the range begins past the end of a document
    ├── RateLimited                   429  retry           a key has used up its quota
    ├── HeadTooLarge                  431                  the head of a request is larger than the limit
    ├── Unavailable                   503  retry           the data are not being served now
    │   ├── Overloaded                503  retry           too many requests are waiting for Chroma
    │   ├── GateTimeout               503  retry           a write waited too long for the gate
    │   ├── QuiesceTimeout            503  retry           Chroma did not finish its writes in time
    │   ├── LeaseLost                 503  retry           another gateway writes to this store now
    │   └── NotStored                 503  retry           a write was applied, and the store does not have it yet
    ├── BadUpstream                   502                  Chroma closed the connection, or its answer is not HTTP
    ├── UpstreamTimeout               504                  Chroma did not answer a read in time
    ├── DiskFull                      507                  the data directory or a file:// store is full
    ├── StorageError                  502         exit 3
    │   ├── StorageUnavailable        503  retry  exit 3   cannot be reached, or answers "later"
    │   ├── StorageDenied             502         exit 3   credentials, bucket or permission are wrong
    │   │   └── ObjectArchived        502         exit 3   the object is in an archive and must be brought back first
    │   └── ObjectMissing             502         exit 5   an object that must exist does not
    └── SnapshotError                 500         exit 5
        ├── NothingToRestore          404         exit 4   a restore was demanded and there is no snapshot
        ├── CorruptSnapshot           500         exit 5   bytes are missing, or have the wrong digest
        └── IncompatibleSnapshot      500         exit 5   made by a newer gateway or a newer Chroma

`retryable` means that the same call may succeed later although nobody has changed anything. In HTTP an error
is `{"error", "message"}` as Chroma has it, plus `"hint"` where we know what to do next. For the statuses
that `chromadb` has exception types for, `error` is the name that its client looks up
(`chromadb/errors.py`, `error_types`).
"""

from typing import Any

_CHROMA_NAMES = {
    400: "InvalidArgumentError",
    401: "AuthorizationError",
    403: "AuthError",
    404: "NotFoundError",
    409: "UniqueConstraintError",
    413: "ChromaError",
    429: "RateLimitError",
    500: "InternalError",
}


class GatewayError(Exception):
    """The root of the tree. `message` says what failed and why, `hint` says what to do about it."""

    status = 500
    exit_code = 1
    retryable = False
    retry_after_s: int | None = None

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def name(self) -> str:
        """The name of `chromadb`'s exception for this status, or else of our own class."""
        return _CHROMA_NAMES.get(self.status, type(self).__name__)

    def body(self) -> dict[str, Any]:
        """The JSON body of the answer: `error`, `message` and, where known, `hint`."""
        body = {"error": self.name, "message": self.message}
        return body | {"hint": self.hint} if self.hint else body

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(GatewayError):
    exit_code = 2


class InvalidRequest(GatewayError):
    status = 400


class Unauthorized(GatewayError):
    status = 401


class Forbidden(GatewayError):
    status = 403


class NotFound(GatewayError):
    status = 404


class NotAllowed(GatewayError):
    status = 405


class ClientTooSlow(GatewayError):
    status = 408


class Conflict(GatewayError):
    status = 409


class PreconditionFailed(GatewayError):
    status = 412


class BodyTooLarge(GatewayError):
    status = 413


class RangeNotSatisfiable(GatewayError):
    status = 416


class RateLimited(GatewayError):
    status = 429
    retryable = True
    retry_after_s = 1

    def __init__(self, message: str, hint: str | None = None, *, retry_after_s: int = 1) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


class HeadTooLarge(GatewayError):
    status = 431


class Unavailable(GatewayError):
    status = 503
    retryable = True
    retry_after_s = 1


class Overloaded(Unavailable):
    pass


class GateTimeout(Unavailable):
    retry_after_s = 5


class QuiesceTimeout(Unavailable):
    retry_after_s = 5


class LeaseLost(Unavailable):
    retry_after_s = 5


class NotStored(Unavailable):
    retry_after_s = 5


class BadUpstream(GatewayError):
    status = 502


class UpstreamTimeout(GatewayError):
    status = 504


class DiskFull(GatewayError):
    status = 507


class StorageError(GatewayError):
    status = 502
    exit_code = 3


class StorageUnavailable(StorageError):
    status = 503
    retryable = True
    retry_after_s = 10


class StorageDenied(StorageError):
    pass


class ObjectArchived(StorageDenied):
    pass


class ObjectMissing(StorageError):
    exit_code = 5


class SnapshotError(GatewayError):
    exit_code = 5


class NothingToRestore(SnapshotError):
    status = 404
    exit_code = 4


class CorruptSnapshot(SnapshotError):
    pass


class IncompatibleSnapshot(SnapshotError):
    pass
