"""Chroma as a live restore wants it: stopped, and started and read, through supervisord."""

from gateway.chroma.watch import ChromaWatch
from gateway.errors import Unavailable
from gateway.supervisor.client import Supervisor

_STOP_TIMEOUT_S = 15.0
_START_TIMEOUT_S = 30.0
# Chroma answers about 2 s after its start; every index is loaded once before it counts as read.
_READ_TIMEOUT_S = 600.0


class ManagedChroma:
    """The Chroma that `supervisor` runs and `watch` follows. `supervisor` is None where nothing runs it."""

    def __init__(self, supervisor: Supervisor | None, watch: ChromaWatch) -> None:
        self._supervisor, self._watch = supervisor, watch

    def require_control(self) -> Supervisor:
        """Raise Unavailable where Chroma cannot be stopped and started."""
        if self._supervisor is None:
            raise Unavailable(
                "Chroma does not run under supervisord here, so it cannot be stopped for a restore",
                "start both with `chroma-gateway serve` (scripts/run)",
            )
        return self._supervisor

    async def stop(self) -> None:
        """Returns once its process has ended. Raises Unavailable."""
        await self.require_control().stop_chroma(_STOP_TIMEOUT_S)
        await self._watch.until(lambda watch: not watch.up, _STOP_TIMEOUT_S)

    async def start(self) -> dict[str, str]:
        """Start it and read every collection; return what could not be read, and why, by name.

        Raises Unavailable if it does not come up.
        """
        await self.require_control().start_chroma(_START_TIMEOUT_S)
        if not await self._watch.until(lambda watch: watch.warmed, _READ_TIMEOUT_S):
            raise Unavailable(f"Chroma was not ready within {_READ_TIMEOUT_S:g} s")
        return dict(self._watch.unreadable)

    async def ensure_running(self) -> None:
        """Start it if it is stopped, as it is when the gateway died in the middle of a restore."""
        if self._supervisor is not None and (await self._supervisor.chroma_state())[0] == "STOPPED":
            await self._supervisor.start_chroma(_START_TIMEOUT_S)
