"""What commands print: JSON, tables, sizes, ages, progress bars and errors; and the files that they write."""

import contextlib
import json
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Self

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gateway.errors import ConfigError
from gateway.jobs import JobStatus
from gateway.jobs import Progress as WorkProgress

_LINE_EVERY_S = 5.0


def print_json(value: Any) -> None:
    """Print `value` on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_error(name: str, message: str, hint: str | None, *, as_json: bool) -> None:
    """Print an error on stderr: two lines for people, or one JSON object `{"error", "message", "hint"}`."""
    if as_json:
        typer.echo(json.dumps({"error": name, "message": message, "hint": hint}, ensure_ascii=False), err=True)
        return
    typer.echo(f"error: {message}", err=True)
    if hint:
        typer.echo(f"try: {hint}", err=True)


def validation_problems(error: ValidationError) -> str:
    """What is wrong with a value, in one line: each wrong field with the cause."""
    problems = error.errors(include_url=False, include_input=False)
    return "; ".join(
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}" for problem in problems
    )


def table(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """The lines of a table without a head. The columns in `right` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return lines


def size(size_bytes: float | None) -> str:
    """A number of bytes for people, such as `1.5 GiB`; `?` for None."""
    if size_bytes is None:
        return "?"
    if size_bytes < 1024:
        return f"{size_bytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size_bytes /= 1024
        if size_bytes < 1024:
            return f"{size_bytes:.1f} {unit}"
    return f"{size_bytes / 1024:.1f} TiB"


def age(seconds: float | None) -> str:
    """A duration for people, such as `5 min`; `?` for None."""
    if seconds is None:
        return "?"
    for limit_s, unit_s, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


class ProgressBars:
    """One bar for each phase of some work, on stderr.

    Work in this process reports to `progress`. The statuses of a job of the gateway go to `show_job`.
    """

    def __init__(self, *, shown: bool = True) -> None:
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
        self._bars.stop()

    def show_job(self, job: JobStatus) -> None:
        """Show how far a job is."""
        if job.phase is not None:
            self._show(job.phase, job.done, job.total, job.unit, job.rate_per_s)

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
        if not self._bars.disable and not self._bars.console.is_terminal and time.monotonic() >= self._next_line_at:
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


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open `path` for writing; it appears only when all of it is written. `-` is stdout.

    Raises ConfigError if the file cannot be written.
    """
    if str(path) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
