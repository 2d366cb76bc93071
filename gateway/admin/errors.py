"""The errors of the client.

    GatewayError
    ├── ConfigError                     exit 2   the URL or the token cannot be used; nothing was sent
    ├── Unavailable                     exit 1   no gateway can be reached, or the connection broke
    ├── NotAGateway                     exit 1   what answers there is no Chroma Gateway
    └── AnsweredError                            the gateway answered an error, or a job failed with it
        ├── InvalidArgumentError   400  exit 1
        ├── AuthorizationError     401  exit 2   no token, or a wrong one
        ├── AuthError              403  exit 2   the key has not the role that is needed
        ├── NotFoundError          404  exit 1   for a snapshot: exit 4
        ├── UniqueConstraintError  409  exit 1   another operation is under way, or it exists already
        ├── RateLimitError         429  exit 1
        └── InternalError          500  exit 1   exit 5 for a damaged snapshot

The classes below AnsweredError have the names that `chromadb` gives the same statuses (`chromadb/errors.py`). An error
with another name, such as `StorageUnavailable` (exit 3), is an AnsweredError. `gateway.errors` lists all names.
"""

from gateway import errors
from gateway.errors import GatewayError, NothingToRestore, StorageError

_UNAUTHORIZED, _FORBIDDEN = 401, 403
_TRANSIENT = (429, 503)


class NotAGateway(GatewayError):
    """What answers at the URL is no Chroma Gateway."""


class AnsweredError(GatewayError):
    """An error that the gateway answered.

    `name` is the name that it gave, and `exit_code` what it means to a shell. `status` is the HTTP status, None for a
    job that failed. With `retryable` the same call may succeed later, after `retry_after_s` where that is given.
    """

    status: int | None  # type: ignore[assignment]  # a failed job has none

    def __init__(self, name: str, message: str, hint: str | None, exit_code: int, status: int | None = None) -> None:
        super().__init__(message, hint)
        self._name, self.exit_code, self.status = name, exit_code, status
        known = getattr(errors, name, None)
        is_transient = isinstance(known, type) and issubclass(known, GatewayError) and known.retryable
        self.retryable = status in _TRANSIENT or is_transient

    @property
    def name(self) -> str:
        return self._name


class InvalidArgumentError(AnsweredError):
    """400: the request has a mistake."""


class AuthorizationError(AnsweredError):
    """401: there was no token, or a wrong one."""


class AuthError(AnsweredError):
    """403: the key is known and has not the role that is needed."""


class NotFoundError(AnsweredError):
    """404: there is nothing of that name."""


class UniqueConstraintError(AnsweredError):
    """409: another operation is under way, or something of that name exists already."""


class RateLimitError(AnsweredError):
    """429: too many requests."""


class InternalError(AnsweredError):
    """500: the operation failed."""


_CLASSES = {each.__name__: each for each in AnsweredError.__subclasses__()}


def answered_error(
    name: str, message: str, hint: str | None, *, path: str, status: int | None = None, exit_code: int | None = None
) -> AnsweredError:
    """The error for what the gateway answered to a request for `path`. `exit_code` is what a failed job says."""
    told = _exit_code(name, status, path) or exit_code or GatewayError.exit_code
    return _CLASSES.get(name, AnsweredError)(name, message, hint, told, status)


def _exit_code(name: str, status: int | None, path: str) -> int | None:
    """What an error means to a shell by its name, its status and the route's path; None if they do not tell."""
    if name.startswith("Storage"):
        return StorageError.exit_code
    if status in (_UNAUTHORIZED, _FORBIDDEN):
        return errors.ConfigError.exit_code
    if name == NothingToRestore("").name and "/admin/snapshot/" in path:
        return NothingToRestore.exit_code
    return None
