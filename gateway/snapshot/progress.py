"""How far something long has come."""

from typing import Protocol


class Progress(Protocol):
    """What long work tells of itself."""

    def phase(self, name: str, total: int | None, unit: str = "bytes") -> None:
        """A new phase begins, of `total` units, None if that cannot be known."""
        ...

    def advance(self, count: int) -> None:
        """So many units more are done."""
        ...


class Silent:
    """Progress that nobody watches."""

    def phase(self, name: str, total: int | None, unit: str = "bytes") -> None:
        pass

    def advance(self, count: int) -> None:
        pass
