"""`chroma-gateway doctor PATH`: what is wrong with a Chroma data directory, and `--repair`."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.cli.findings import Row, findings_table
from gateway.cli.output import print_json, size

if TYPE_CHECKING:
    from gateway.chroma.doctor import Diagnosis, Finding, Treatment
    from gateway.chroma.repair import Repair

# By the worst finding that is left. 2 is a wrong path, or a directory in use.
_EXIT_CODES = {None: 0, "note": 0, "warning": 1, "error": 5}
_MAX_ROWS = 40


def doctor(
    path: Annotated[Path, typer.Argument(help="Chroma's persist directory. Nothing may be running on it.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair what can be repaired, after a copy of what that changes.")
    ] = False,
    backup: Annotated[
        Path | None, typer.Option(help="Where the copy goes; default: beside PATH, with the time in its name.")
    ] = None,
    drop_lost: Annotated[
        bool,
        typer.Option(
            "--drop-lost",
            help="With --repair: delete records that have no vector any more; the copy gets their documents.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Examine a Chroma data directory, of chromadb 0.4 to 1.5; needs no gateway and no store.

    Exit status: 0 nothing worse than notes, 1 warnings, 5 errors, 2 the directory cannot be examined.
    """
    # These load much that other commands do not need.
    from gateway.chroma.directory import refuse_links  # noqa: PLC0415
    from gateway.chroma.doctor import diagnose, has_lost_records, treat  # noqa: PLC0415

    told = Console(stderr=True)
    with told.status("examining") as status:

        def progress(what: str) -> None:
            status.update(f"examining {escape(what)}")

        found = diagnose(path, progress)
        treatment = None
        can_repair = any(each.can_repair for each in found.findings)
        if repair and (can_repair or (drop_lost and has_lost_records(found))):
            refuse_links(path)  # The copy would lack what SQLite keeps beside the file that a link leads to.
            before, target = found, backup or _beside(path)
            treatment = treat(
                path, before, target, lambda what: status.update(f"repairing {escape(what)}"), drop_lost=drop_lost
            )
            found = diagnose(path, progress)
    if as_json:
        print_json(_document(found, treatment))
    else:
        _show(Console(), found, treatment, wanted=repair)
    raise typer.Exit(1 if treatment and treatment.failures and not _code(found) else _code(found))


def _code(found: "Diagnosis") -> int:
    return _EXIT_CODES[found.worst]


def _beside(path: Path) -> Path:
    resolved = path.resolve()
    return resolved.with_name(f"{resolved.name}-before-repair-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")


def _document(found: "Diagnosis", treatment: "Treatment | None") -> dict[str, Any]:
    document = {**dataclasses.asdict(found), "worst": found.worst}
    if treatment:
        document["repair"] = {
            "backup": treatment.backup,
            "actions": treatment.actions,
            "failures": treatment.failures,
            "collections": [_repair(each) for each in treatment.repairs],
        }
    return document


def _repair(repair: "Repair") -> dict[str, Any]:
    from gateway.chroma.doctor import describe  # noqa: PLC0415

    return {
        "collection": repair.segment.name,
        "segment_id": repair.segment.id,
        "way": repair.way,
        "said": describe(repair),
        "problems": [dataclasses.asdict(each) for each in repair.before.problems],
        "is_sound": repair.after.is_sound,
        "salvaged": repair.salvaged,
        "replayed": repair.replayed,
        "lost_ids": repair.lost_ids,
        "doubtful_ids": repair.doubtful_ids,
        "unscaled_ids": repair.unscaled_ids,
        "duration_s": round(repair.duration_s, 3),
    }


def _show(console: Console, found: "Diagnosis", treatment: "Treatment | None", *, wanted: bool) -> None:
    console.print(
        f"{escape(found.path)}: {len(found.collections)} collections, database {size(found.database_bytes)}, "
        f"log {found.log_rows} rows, {size(found.free_bytes)} free; examined in {found.duration_s:.1f} s",
        highlight=False,
    )
    if found.collections:
        console.print(_collections(found))
        if len(found.collections) > _MAX_ROWS:
            console.print(f"… and {len(found.collections) - _MAX_ROWS} more: --json has them", highlight=False)
    if treatment:
        for said in treatment.actions:
            console.print(f"[green]repaired[/] {escape(said)}", highlight=False)
        for said in treatment.failures:
            console.print(f"[bold red]not repaired[/] {escape(said)}", highlight=False)
        _name_ids(console, treatment)
        console.print(f"what was changed is in {escape(treatment.backup)} as it was", highlight=False)
    elif wanted:
        console.print("there is nothing that can be repaired", highlight=False)
    if found.findings:
        console.print(findings_table(map(_row, found.findings[: 2 * _MAX_ROWS])))
        if any(each.can_repair for each in found.findings) and not wanted:
            console.print("`--repair` repairs what is marked *, after a copy of it", highlight=False)
    else:
        console.print("[green]nothing is wrong[/]")


def _name_ids(console: Console, treatment: "Treatment") -> None:
    for repair in treatment.repairs:
        for what, ids in (
            ("lost", repair.lost_ids),
            ("perhaps outdated", repair.doubtful_ids),
            ("of length 1", repair.unscaled_ids),
        ):
            if ids:
                named = ", ".join(ids[:_MAX_ROWS]) + (" …: --json has all" if len(ids) > _MAX_ROWS else "")
                console.print(f"  {escape(repair.segment.name)}: {what}: {escape(named)}", highlight=False)


def _collections(found: "Diagnosis") -> Table:
    table = Table(box=None, pad_edge=False)
    for name, right in (("collection", False), ("records", True), ("vectors", True), ("index", True), ("state", False)):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    # What is wrong first: of many collections only some are shown.
    for each in sorted(found.collections, key=lambda each: each.is_sound)[:_MAX_ROWS]:
        state = "[green]sound[/]" if each.is_sound else "[bold red]damaged[/]"
        table.add_row(
            escape(each.name),
            str(each.records),
            str(each.vectors) if each.is_synced else "in the log",
            size(each.index_bytes),
            state,
        )
    return table


def _row(finding: "Finding") -> Row:
    mark = "*" if finding.can_repair else ""
    return Row(finding.severity, finding.code, finding.where, finding.message, finding.advice, mark)
