"""The table of findings that `doctor` and `check` print."""

from collections.abc import Iterable
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table

_STYLES = {
    "error": "bold red",
    "fail": "bold red",
    "warning": "yellow",
    "warn": "yellow",
    "note": "cyan",
    "unknown": "cyan",
    "pass": "green",
}


class Row(NamedTuple):
    """One finding. `level` is its severity or status; `mark` stands behind it."""

    level: str
    code: str
    where: str
    message: str
    advice: str
    mark: str = ""


def findings_table(findings: Iterable[Row]) -> Table:
    """A table of `findings`, in their order."""
    table = Table(box=None, pad_edge=False)
    for name in ("", "where", "what", "what to do"):
        table.add_column(name, overflow="fold")
    for each in findings:
        table.add_row(
            f"[{_STYLES[each.level]}]{each.level}[/]{each.mark}",
            escape(each.where),
            f"{escape(each.message)} [dim]({each.code})[/]",
            escape(each.advice),
        )
    return table
