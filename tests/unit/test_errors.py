"""Every error has a status, an exit code and a retry flag, and `chromadb`'s own client understands it."""

import inspect
import re
from typing import Any

import chromadb.errors
import httpx
import pytest
from chromadb.api.base_http_client import BaseHTTPClient

from gateway import errors
from gateway.errors import GatewayError

ERRORS = [each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, GatewayError)]
# "    │   ├── GateTimeout   503  retry  exit 3   what it is"
ROW = re.compile(
    r"^    ([│ ]*[├└]── )?(?P<name>\w+) +(?P<status>\d{3})(?P<retry>  retry)? *(exit (?P<exit>\d))?", re.MULTILINE
)
RAISED_AS = {
    400: chromadb.errors.InvalidArgumentError,
    401: chromadb.errors.AuthorizationError,
    404: chromadb.errors.NotFoundError,
    409: chromadb.errors.UniqueConstraintError,
    500: chromadb.errors.InternalError,
}


def drawn() -> dict[str, dict[str, Any]]:
    """The rows of the tree in the docstring by class name, with the depth each is drawn at."""
    rows = {}
    for row in ROW.finditer(errors.__doc__ or ""):
        rows[row["name"]] = {
            "depth": len(row[1] or "") // 4,
            "status": int(row["status"]),
            "retry": bool(row["retry"]),
            "exit": row["exit"],
        }
    return rows


def depth(error: type[GatewayError]) -> int:
    return error.__mro__.index(GatewayError)


def test_the_tree_in_the_docstring_has_every_error_once() -> None:
    """In the order in which the classes are written."""
    names = [row["name"] for row in ROW.finditer(errors.__doc__ or "")]
    assert names == [each.__name__ for each in ERRORS]


@pytest.mark.parametrize("error", ERRORS)
def test_the_tree_in_the_docstring_is_correct(error: type[GatewayError]) -> None:
    """The parent, the status, whether a retry may help, and the exit code where it is not 1."""
    row = drawn()[error.__name__]
    assert row["depth"] == depth(error)
    assert row["status"] == error.status
    assert row["retry"] == error.retryable
    assert int(row["exit"] or 1) == error.exit_code


@pytest.mark.parametrize("error", ERRORS)
def test_every_body_has_chromas_shape(error: type[GatewayError]) -> None:
    """`error` and `message`, both text; `hint` only where there is one."""
    assert error("what failed").body() == {"error": error("").name, "message": "what failed"}
    assert error("what failed", "the way out").body() == {
        "error": error("").name,
        "message": "what failed",
        "hint": "the way out",
    }
    assert str(error("what failed", "the way out")) == "what failed (the way out)"


@pytest.mark.parametrize("error", ERRORS)
def test_chromadb_raises_its_own_type(error: type[GatewayError]) -> None:
    """For every status that it has a type for. For others it raises some error with our message."""
    response = httpx.Response(
        error.status, json=error("what failed", "hint").body(), request=httpx.Request("GET", "http://gateway/api")
    )
    with pytest.raises(Exception, match="what failed") as caught:
        BaseHTTPClient._raise_chroma_error(response)
    if error.status in RAISED_AS:
        assert caught.type is RAISED_AS[error.status]


@pytest.mark.parametrize(("status", "name"), errors._CHROMA_NAMES.items())
def test_error_names_are_those_of_chromadb(status: int, name: str) -> None:
    """Each name has a type in `chromadb.errors` with the same status."""
    assert name in chromadb.errors.error_types
    if status == 413:
        return  # Chroma has no type of its own for it, and says what it says of any error
    code = chromadb.errors.error_types[name]("").code()
    assert code == status


@pytest.mark.parametrize("error", ERRORS)
def test_exit_codes_are_those_of_the_contract(error: type[GatewayError]) -> None:
    """1 to 5, and never 0."""
    assert error.exit_code in range(1, 6)
    expected = {
        "ConfigError": 2,
        "StorageUnavailable": 3,
        "StorageDenied": 3,
        "NothingToRestore": 4,
        "CorruptSnapshot": 5,
        "IncompatibleSnapshot": 5,
    }
    assert error.exit_code == expected.get(error.__name__, error.exit_code)


@pytest.mark.parametrize("error", ERRORS)
def test_retry_after_is_set_where_a_retry_may_help(error: type[GatewayError]) -> None:
    """And nowhere else."""
    assert (error.retry_after_s is not None) == error.retryable
    assert error.retryable == (error.status in (429, 503))
