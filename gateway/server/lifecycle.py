"""In which order everything starts and stops.

Start: refuse writes → listen → restore and start Chroma (`VectorStore.open`), with all that runs beside it.
Stop:  no snapshot is begun any more → jobs end → final snapshot → lease given back → the rest ends → close.
"""

import asyncio
import contextlib
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import datetime
from typing import Any

import structlog

from gateway.aio import poll_until
from gateway.auth.admin_token import TOKEN_FILE
from gateway.errors import GatewayError, NotFound, SnapshotError
from gateway.server.container import Gateway
from gateway.snapshot.schedule import Cron, Every, Jittered, Schedule
from gateway.snapshot.scheduler import DeadMansSwitch, local_zone, run_schedule, steady_clock
from gateway.vectorstore import Phase

log = structlog.get_logger()

_JOBS_END_S = 2.0
_LOOK_S = 0.2
_LEAST_FOR_ALERTS_S, _MOST_FOR_ALERTS_S = 0.5, 2.0


class Lifecycle:
    """Runs one gateway. `failure` is what it ends with, None if it ended well."""

    def __init__(self, gateway: Gateway, stop: Callable[[], None], on_ready: Callable[[], None] = lambda: None) -> None:
        """`stop` asks the server to end, as SIGTERM does. `on_ready` is called once, when data is served."""
        self._gateway, self._stop, self._on_ready = gateway, stop, on_ready
        ping_url = gateway.settings.snapshot_ping_url
        self._switch = DeadMansSwitch(ping_url.get_secret_value() if ping_url else None)
        self.failure: GatewayError | None = None
        self._stop_by: float | None = None

    def stopping(self) -> None:
        """SIGTERM came: the time that is left for the end runs from now. Consoles are not waited for."""
        self._gateway.feed.close()
        self._stop_by = self._stop_by or time.monotonic() + self._gateway.settings.exit_budget_s

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run what runs beside requests; at the end take the final snapshot. Raises GatewayError if it cannot begin."""
        gateway, vectorstore = self._gateway, self._gateway.vectorstore
        await vectorstore.begin()
        lasting = [
            self._run(vectorstore.watch.run()),
            self._run(vectorstore.watch_data_dir()),
            self._run(vectorstore.probe_disk()),
            self._run(vectorstore.look_at_store()),
            self._run(vectorstore.journal.run()),
            self._run(vectorstore.keep_recovery_short()),
            self._run(vectorstore.keep_history()),
            self._run(vectorstore.watch_history()),
            self._run(gateway.data_path.watch_the_clock()),
            self._run(vectorstore.operations.snapshotter.keep_bounded()),
            self._run(gateway.keyring.run()),
            self._run(self._note_last_snapshot()),
            self._run(self._tell_when_ready()),
            self._run(gateway.alerts.watch(lambda: vectorstore.problems)),
        ]
        opening = self._run(self._open())
        deciding = [opening, self._run(vectorstore.lead()), *map(self._run, self._schedules())]
        # Their first steps: an interrupted restore refuses requests before there can be one.
        await asyncio.sleep(0)
        log.info("gateway is listening", host=gateway.settings.host, port=gateway.settings.port)
        try:
            yield
        finally:
            await _end(*deciding)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_JOBS_END_S):
                    # A snapshot under way goes on: it holds what the final one would.
                    await gateway.jobs.close(spare="snapshot")
            if self.failure is None and (failure := await vectorstore.save_final(self._left_s)):
                gateway.alerts.send_error("final-snapshot-failed", failure)
                self.failure = failure
            # At the same time: each may need the least that there is when nothing is left.
            await asyncio.gather(vectorstore.release_lease(self._left_s), self._end_alerts())
            await _end(*lasting)
            await self._close()

    async def _open(self) -> None:
        """Start Chroma and keep it running."""
        await self._gateway.vectorstore.open()
        await self._gateway.vectorstore.chroma.keep_running()

    async def _tell_when_ready(self) -> None:
        """Log once, as the last line of a start, what people need who want to use it."""
        settings = self._gateway.settings

        async def is_ready() -> bool:
            return self._gateway.vectorstore.readiness().phase is Phase.READY

        await poll_until(is_ready, every_s=_LOOK_S, timeout_s=math.inf)
        self._on_ready()
        token_in = "GATEWAY_ADMIN_TOKEN" if settings.admin_token else str(TOKEN_FILE.absolute())
        url = settings.local_url
        log.info("ready", url=url, admin_token_in=token_in, console=f"{url}/console", docs=f"{url}/docs")

    def fail(self, error: GatewayError) -> None:
        """End the process with `error`."""
        if self.failure is None:
            self._gateway.alerts.send_error("gateway-failed", error)
        self.failure = self.failure or error
        self._stop()

    async def _end_alerts(self) -> None:
        await self._gateway.alerts.close(max(_LEAST_FOR_ALERTS_S, min(_MOST_FOR_ALERTS_S, self._left_s())))

    async def _close(self) -> None:
        gateway = self._gateway
        await self._switch.close()
        await gateway.alerts.close(0)
        gateway.data_path.close()
        await asyncio.to_thread(gateway.audit.close)
        if gateway.tracing is not None:
            await asyncio.to_thread(gateway.tracing.close)
        await gateway.vectorstore.close()

    async def _note_last_snapshot(self) -> None:
        """Tell the metrics how old the latest good snapshot is, which an earlier process took."""
        repository, metrics = self._gateway.vectorstore.repository, self._gateway.metrics
        try:
            async for snapshot_id in repository.newest_first():
                with contextlib.suppress(SnapshotError, NotFound):  # damaged, or deleted since
                    latest = (await repository.manifest(snapshot_id)).snapshot
                    if metrics.last_good_s is None:
                        metrics.last_good_snapshot(latest.created_at.timestamp())
                    return
        except GatewayError as error:
            log.warning("the store's snapshots cannot be listed", cause=str(error))

    def _schedules(self) -> list[Coroutine[Any, Any, None]]:
        settings, operations = self._gateway.settings, self._gateway.vectorstore.operations
        schedules = list[tuple[Schedule, Callable[[], datetime]]]()
        if settings.snapshot_interval_s:
            now = steady_clock()
            schedules.append((Every(now(), settings.snapshot_interval_s), now))
        if settings.snapshot_cron:
            zone = local_zone()
            schedules.append((Cron(settings.snapshot_cron), lambda: datetime.now(zone)))
        jitter = random.Random().random  # noqa: S311  # not a secret
        return [
            run_schedule(
                Jittered(schedule, settings.snapshot_jitter_s, jitter),
                operations.unsaved_writes,
                operations.snapshot,
                self._gateway.vectorstore.tidy,
                self._switch.ping,
                now=now,
            )
            for schedule, now in schedules
        ]

    def _left_s(self) -> float:
        """Seconds until the platform kills this process."""
        return (self._stop_by or time.monotonic() + self._gateway.settings.exit_budget_s) - time.monotonic()

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.create_task(self._lasting(work))

    async def _lasting(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, on which the process depends: if it fails, the process ends."""
        try:
            await work
        except GatewayError as error:
            self.fail(error)
        except Exception:
            log.exception("a background task failed")
            self.fail(GatewayError("the gateway failed unexpectedly", "the lines before say why"))


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancel `tasks` and wait until they have ended, not for ever: one may be at what must not be left halfway."""
    for task in tasks:
        task.cancel()
    await asyncio.wait([asyncio.gather(task, return_exceptions=True) for task in tasks], timeout=_JOBS_END_S)
