"""`check`: what production asks for, looked up on the running gateway."""

from typing import TYPE_CHECKING

import typer
from rich.console import Console

from gateway.cli.client import connect
from gateway.cli.findings import Row, findings_table
from gateway.cli.options import AsJson, Token, Url
from gateway.cli.output import print_json

if TYPE_CHECKING:
    from gateway.admin import CheckReport

# By the worst finding, as `doctor` has it.
_EXIT_CODES = {"pass": 0, "unknown": 1, "warn": 1, "fail": 5}


def check(url: Url = None, token: Token = None, as_json: AsJson = False) -> None:
    """Look up on the running gateway what production asks for: see docs/production-checklist.md.

    Exit status: 0 everything passes, 1 warnings or something that could not be looked up, 5 failures.
    """
    with connect(url, token) as gateway:
        report = gateway.check()
    if as_json:
        print_json(report)
    else:
        _show(Console(), report)
    raise typer.Exit(_EXIT_CODES[report["status"]])


def _show(console: Console, report: "CheckReport") -> None:
    findings = report["findings"]
    console.print(
        findings_table(
            Row(each["status"], each["code"], each["where"], each["message"], each["advice"]) for each in findings
        )
    )
    counts = ", ".join(
        f"{sum(each['status'] == status for each in findings)} {status}"
        for status in ("fail", "warn", "unknown", "pass")
    )
    total = "?" if report["collections"] is None else report["collections"]
    looked_at = f"{report['collections_looked_at']} of {total} collection(s) looked at"
    console.print(f"{counts}; {looked_at}, in {report['duration_s']:.1f} s", highlight=False)
