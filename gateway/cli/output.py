"""What commands print: JSON, tables, sizes, ages and errors; and the files that they write."""

import contextlib
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import typer

from gateway.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import ValidationError


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


def validation_problems(error: "ValidationError") -> str:
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
