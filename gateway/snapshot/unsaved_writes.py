"""Whether the newest snapshot lacks something. Pure."""

from collections.abc import Callable


class UnsavedWrites:
    """Compares a count of writes, which only grows, with what it was at the last cut.

    Data that were there when this gateway started count as changed. `look` is to be called often: it notes when writes
    came.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        """`count` returns how many writes were let through so far."""
        self._count = count
        self._at_cut: int | None = None
        self._saved: int | None = None
        self._since_s: float | None = None
        self._since_cut_s: float | None = None

    def cut(self) -> None:
        """The cut of a snapshot is being made. No write is under way at this moment."""
        self._at_cut, self._since_cut_s = self._count(), None

    def saved(self) -> None:
        """The snapshot of the last cut was published."""
        self._saved, self._since_s = self._at_cut, self._since_cut_s

    def nothing_is_saved(self) -> None:
        """No snapshot is known to hold the data any more: they were replaced, or the newest snapshot is broken."""
        self._saved = None

    @property
    def any(self) -> bool:
        """Whether the newest snapshot may lack something. Exact for all writes that came through the gateway."""
        return self._saved is None or self._count() != self._saved

    @property
    def writes(self) -> int | None:
        """How many writes came since the cut of the newest snapshot, None if unknown."""
        return None if self._saved is None else self._count() - self._saved

    def look(self, now_s: float) -> None:
        """Note that it is `now_s`, by a clock that is never set."""
        if self.any and self._since_s is None:
            self._since_s = now_s
        if self._at_cut is not None and self._count() != self._at_cut and self._since_cut_s is None:
            self._since_cut_s = now_s

    def age_s(self, now_s: float) -> float:
        """Seconds since the oldest write that the newest snapshot lacks was noted by a `look`; 0 if it lacks none."""
        return now_s - self._since_s if self.any and self._since_s is not None else 0.0
