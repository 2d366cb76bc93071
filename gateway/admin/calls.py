"""One call of the admin API, and how one method becomes a blocking and an awaitable one. Does no I/O.

A *call* is what a method wants from the gateway. `Admin` performs calls and returns the results. `AsyncAdmin` returns
awaitables of them. So each method is written once, with `@call`, in `gateway.admin.routes`:

    @call
    def status(self) -> Call[dict[str, Any]]:
        return Call("GET", "/admin/status")

`Admin().status()` is then a `dict[str, Any]`, and `AsyncAdmin().status()` a coroutine that returns one.
"""

import functools
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from gateway.admin.answers import Job

_P = ParamSpec("_P")
_T = TypeVar("_T")

PIECE_BYTES = 1 << 20

OnJob = Callable[[Job], object]
"""Is called with the job whenever the gateway reports how far it is."""
OnBytes = Callable[[int, int | None], object]
"""Is called with the bytes done and their total, None if it is not known."""


def ignore(*_: object) -> None:
    """A callback that does nothing."""


def never() -> bool:
    """Jobs are cancelled when the waiting for them is interrupted."""
    return False


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a request: `size_bytes` in pieces, which are sent once."""

    pieces: Iterator[bytes]
    size_bytes: int

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """The bytes of a file. Raises OSError."""
        return cls(_read_pieces(path), path.stat().st_size)

    def counted(self, on_bytes: OnBytes) -> "Body":
        """The same body, which calls `on_bytes` before each piece is sent."""
        return Body(self._counted(on_bytes), self.size_bytes)

    def _counted(self, on_bytes: OnBytes) -> Iterator[bytes]:
        sent = 0
        for piece in self.pieces:
            sent += len(piece)
            on_bytes(sent, self.size_bytes)
            yield piece


def _read_pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


@dataclass(frozen=True, slots=True)
class Call(Generic[_T]):
    """A request, and what becomes of its answer: its JSON, the value of `key` in it, or bytes for the file `into`."""

    method: str
    path: str
    params: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    json: Any = None
    body: Body | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    on_job: OnJob | None = None
    """Set for a request that starts a job. The result of the job is what the method returns."""
    always_a_job: bool = False
    """Whether the route starts a job in any case, and so takes no parameter `wait`."""
    goes_on: Callable[[], bool] = never
    """Says whether the job is left running when the waiting for it is interrupted."""
    into: IO[bytes] | None = None
    on_bytes: OnBytes = ignore

    def result(self, answer: Any) -> _T:
        """What the method returns for the JSON of the answer."""
        result: _T = answer if self.key is None else answer[self.key]
        return result


class Blocking:
    """Methods return when the gateway has answered."""

    def __init__(self, perform: Callable[[Call[Any]], Any]) -> None:
        self._perform = perform


class Awaiting:
    """Methods are coroutines."""

    def __init__(self, perform: Callable[[Call[Any]], Coroutine[Any, Any, Any]]) -> None:
        self._perform = perform


class call(Generic[_P, _T]):  # noqa: N801  # a decorator
    """Makes a method that builds a `Call` one that performs it."""

    def __init__(self, build: Callable[Concatenate[Any, _P], Call[_T]]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, group: None, owner: type) -> Self: ...

    @overload
    def __get__(self, group: Blocking, owner: type) -> Callable[_P, _T]: ...

    @overload
    def __get__(self, group: Awaiting, owner: type) -> Callable[_P, Coroutine[Any, Any, _T]]: ...

    def __get__(self, group: Blocking | Awaiting | None, owner: type) -> Any:
        if group is None:
            return self

        @functools.wraps(self._build)
        def performed(*args: _P.args, **kwargs: _P.kwargs) -> Any:
            return group._perform(self._build(group, *args, **kwargs))

        return performed
