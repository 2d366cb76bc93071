"""`restore`, `history` and `flush`: what the journal has, and back to any moment."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.admin import History, RestorePreview, Snapshot
from gateway.cli.client import connect
from gateway.cli.options import AsJson, StoreUrl, Token, Url, UserId
from gateway.cli.output import age, print_json, size, table
from gateway.cli.progress_bars import ProgressBars
from gateway.cli.snapshots import open_store, print_snapshot
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from datetime import datetime

_MOMENT_LENGTH = len("2026-11-26T20:15:03.123")


def restore(
    snapshot: Annotated[str | None, typer.Argument(help="A snapshot's id, or 'latest', the newest snapshot.")] = None,
    at: Annotated[
        str | None,
        typer.Option(help="A moment: 2026-11-26T20:15:03Z, or -15m for so long ago; 'latest' is the newest state."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be restored.")] = False,
    url: Url = None,
    token: Token = None,
    store: StoreUrl = None,
    user_id: UserId = None,
    data_dir: Annotated[Path | None, typer.Option(help="With --store: an empty directory to restore into.")] = None,
    as_json: AsJson = False,
) -> None:
    """Go back to a snapshot or a moment in the running gateway, or with --store in an empty directory."""
    if snapshot is not None and at is not None:
        raise ConfigError("a snapshot and --at were both given", "leave one of them out")
    if store is not None:
        _restore_offline(snapshot, at, store, user_id, data_dir, dry_run=dry_run, as_json=as_json)
        return
    if data_dir is not None:
        raise ConfigError(
            "--data-dir is only for --store: a running gateway restores into its own directory", "leave --data-dir out"
        )
    with connect(url, token) as gateway, ProgressBars.on_terminal(as_json=as_json) as bars:
        if dry_run:
            _print_preview(gateway.preview(at or snapshot or "latest", on_job=bars.show_job), as_json)
            return
        if at is None:
            restored = gateway.snapshots.restore(snapshot or "latest", on_job=bars.show_job)
            print_snapshot(restored, as_json)
            _print_undo(restored["undo"], as_json)
            return
        state = gateway.restore(at, on_job=bars.show_job)
    if as_json:
        print_json(state)
        return
    typer.echo(f"served is the state of {state['at']}")
    typer.echo(f"  snapshot {state['snapshot']}, and {state['entries']} entries of the journal")
    if not state["stored"]:
        typer.echo("  the store does not know that yet: until it does, a lost disk brings the data back as before")
    _print_undo(state["undo"], as_json)


def _restore_offline(
    snapshot: str | None,
    at: str | None,
    store: str,
    user_id: str | None,
    data_dir: Path | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    if dry_run:
        raise ConfigError("--dry-run asks a running gateway", "leave --store out")
    if data_dir is None:
        raise ConfigError("--store needs --data-dir", "name an empty directory with --data-dir")
    moment = _moment(at) if at is not None and at != "latest" else None
    with ProgressBars.on_terminal(as_json=as_json) as bars:
        repository = open_store(store, user_id)
        if at is not None:
            restored: Snapshot = repository.restore_at(moment, data_dir, bars.progress)
        else:
            restored = repository.restore(snapshot or "latest", data_dir, bars.progress)
    print_snapshot(restored, as_json)


def _moment(text: str) -> "datetime":
    from gateway.config import moment  # noqa: PLC0415  # the gateway reads it where one runs

    found = moment(text)
    if found is None:
        raise ConfigError(
            f"--at {text} is no moment", "use one with its time zone such as 2026-11-26T20:15:03Z, or -15m"
        )
    return found


def _print_undo(undo: str | None, as_json: bool) -> None:
    if not as_json:
        typer.echo(f"to go back: {undo}" if undo else "what was served before is in no journal: there is no way back")


def _print_preview(preview: RestorePreview, as_json: bool) -> None:
    if as_json:
        print_json(preview)
        return
    typer.echo(f"would restore the state of {preview['at']}")
    typer.echo(f"  snapshot {preview['snapshot']}, and {preview['entries']} entries of the journal")
    typer.echo(f"  {size(preview['fetched_bytes'])} to fetch, about {age(preview['duration_s'])}")
    for each in preview["collections"]:
        typer.echo(f"  {each['tenant']}/{each['database']}/{each['name']}: {each['records']} records")


def history(
    limit: Annotated[int, typer.Option(help="The most marks to show.", min=1, max=1000)] = 20,
    before: Annotated[int | None, typer.Option(help="Only marks before this number.", min=1)] = None,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Show which moments can be restored, and what happened in between."""
    with connect(url, token) as gateway:
        found = gateway.history(limit=limit, before=before)
    if as_json:
        print_json(found)
        return
    for line in _lines(found):
        typer.echo(line)


def _lines(found: History) -> list[str]:
    if found["oldest"] is None:
        lines = ["nothing can be restored yet"]
    else:
        lines = [
            f"any moment from {found['oldest']} to {found['newest']} can be restored",
            f"  to the cut since {found['full_since']}, before that to {found['merged_resolution_s']:.0f} s",
            f"  {found['entries']} entries, {size(found['stored_bytes'])}",
        ]
    lines += [f"MISSING: entries {gap['first']} to {gap['last']}" for gap in found["gaps"]]
    rows = [[each["at"], f"snapshot {each['id']}", each["label"] or ""] for each in found["snapshots"]]
    rows += [[mark["at"], _said(mark), mark["where"]] for mark in found["marks"]]
    lines += table([[row[0][:_MOMENT_LENGTH], *row[1:]] for row in sorted(rows, reverse=True)]) if rows else []
    if found["next"] is not None:
        lines.append(f"older marks: chroma-gateway history --before {found['next']}")
    return lines


def _said(mark: Any) -> str:
    if mark["kind"] == "seal":
        return f"a gateway took over, epoch {mark['epoch']}"
    if mark["kind"] == "restore":
        return f"restored to {mark['restored_to']}"
    return f"the journal began on snapshot {mark['snapshot']}"


def flush(
    position: Annotated[
        str | None, typer.Option(help="Wait for no more than this: the value of a header X-Gateway-Position.")
    ] = None,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Wait until everything that was written before is in the store."""
    with connect(url, token) as gateway:
        flushed = gateway.flush(position)
    if as_json:
        print_json(flushed)
    else:
        typer.echo(f"everything is stored up to {flushed['at']} (position {flushed['position']})")
