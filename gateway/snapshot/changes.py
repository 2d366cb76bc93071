"""What was written since the last snapshot. Pure."""

from collections.abc import Callable


class Changes:
    """Follows a count of writes that only ever grows. What was there when this gateway started counts as changed."""

    def __init__(self, count: Callable[[], int]) -> None:
        """`count` tells how many writes were let through so far."""
        self._count = count
        self._cut: int | None = None
        self._saved: int | None = None

    def cut(self) -> None:
        """A snapshot is being cut: no write is under way at this moment."""
        self._cut = self._count()

    def saved(self) -> None:
        """The snapshot that was cut last was published."""
        self._saved = self._cut

    def exchanged(self) -> None:
        """The data are others than before."""
        self._saved = None

    @property
    def any(self) -> bool:
        """Whether the newest snapshot may lack something. Exact for all that came through the gateway."""
        return self._saved is None or self._count() != self._saved

    @property
    def writes(self) -> int | None:
        """How many writes came since the newest snapshot; None if that is not known."""
        return None if self._saved is None else self._count() - self._saved
