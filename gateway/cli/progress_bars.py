"""Progress bars on stderr. Apart from what other commands print, because drawing takes long to import."""

import sys
import time
from typing import Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gateway.admin import Job
from gateway.cli.output import size
from gateway.jobs import Progress as WorkProgress

_LINE_EVERY_S = 5.0


class ProgressBars:
    """One bar for each phase of some work, on stderr.

    Work in this process reports to `progress`. The statuses of a job of the gateway go to `show_job`.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self.shown = shown
        self._bars = Progress(
            TextColumn("{task.description:<32}"),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._next_line_at = time.monotonic() + _LINE_EVERY_S
        self._phase: str | None = None
        self._bar: TaskID | None = None
        self.progress = WorkProgress(self._show_progress)

    @classmethod
    def on_terminal(cls, *, as_json: bool) -> Self:
        """Bars that are shown only to people: where stderr is a terminal, and not with `--json`."""
        return cls(shown=not as_json and sys.stderr.isatty())

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self._complete()
        self.stop()

    def stop(self) -> None:
        """Draw no more, so that something else can be shown. Safe to repeat."""
        self._bars.stop()

    def show_job(self, job: Job) -> None:
        """Show how far a job is."""
        if (phase := job.get("phase")) is not None:
            self._show(phase, job["done"], job["total"], job["unit"], job["rate_per_s"])

    def _show_progress(self) -> None:
        progress = self.progress
        if progress.name is not None:
            self._show(progress.name, progress.done, progress.total, progress.unit, progress.rate_per_s)

    def _show(self, phase: str, done: int, total: int | None, unit: str, rate_per_s: float | None) -> None:
        if self._bar is None or phase != self._phase:
            self._complete()
            self._phase, self._bar = phase, self._bars.add_task(phase, total=total, amount="")
        amount = _amount(done, total, unit, rate_per_s)
        self._bars.update(self._bar, total=total, completed=done, amount=amount)
        if self.shown and not self._bars.console.is_terminal and time.monotonic() >= self._next_line_at:
            # Bars are drawn on a terminal only. In a log, a line now and then shows that the work goes on.
            self._next_line_at = time.monotonic() + _LINE_EVERY_S
            typer.echo(f"{phase}: {amount}", err=True)

    def _complete(self) -> None:
        if self._bar is not None:
            self._bars.update(self._bar, total=1, completed=1)


def _amount(done: int, total: int | None, unit: str, rate_per_s: float | None) -> str:
    if unit != "bytes":
        return f"{done}" if total is None else f"{done} of {total}"
    amount = size(done) if total is None else f"{size(done)} of {size(total)}"
    return f"{amount}, {size(rate_per_s)}/s" if rate_per_s else amount
