"""How far something long has come."""

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """What long work tells of itself."""

    def phase(self, name: str, total: int | None, unit: str = "bytes") -> None:
        """A new phase begins, of `total` units, None if that cannot be known."""
        ...

    def advance(self, count: int) -> None:
        """So many units more are done."""
        ...


def counted(progress: Progress, name: str) -> Callable[[int, int], None]:
    """`progress` as a callback for bytes done so far, and of how many; the phase begins with its first call."""
    seen: int | None = None

    def note(done: int, total: int) -> None:
        nonlocal seen
        if seen is None:
            progress.phase(name, total)
            seen = 0
        progress.advance(done - seen)
        seen = done

    return note


class Silent:
    """Progress that nobody watches."""

    def phase(self, name: str, total: int | None, unit: str = "bytes") -> None:
        pass

    def advance(self, count: int) -> None:
        pass
