"""`snapshot`, `list`, `show`, `verify`, `delete` and `gc`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.admin import Snapshot
from gateway.cli.client import connect
from gateway.cli.options import AsJson, Scratch, SnapshotName, StoreUrl, Token, Url, UserId
from gateway.cli.output import print_json, size, table
from gateway.cli.progress_bars import ProgressBars
from gateway.errors import ConfigError, CorruptSnapshot

if TYPE_CHECKING:
    from gateway.cli.offline import OfflineRepository
    from gateway.snapshot.verify import Level


def open_store(store: str, user_id: str | None) -> "OfflineRepository":
    """The snapshots of `store`, without a gateway. Raises ConfigError if an option is not valid."""
    from gateway.cli.offline import OfflineRepository  # noqa: PLC0415  # the store's libraries take half a second

    return OfflineRepository(store, user_id)


def take_snapshot(
    label: Annotated[str | None, typer.Option(help="A label for people.")] = None,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Take a snapshot."""
    with connect(url, token) as gateway, ProgressBars.on_terminal(as_json=as_json) as bars:
        snapshot = gateway.snapshots.take(label, on_job=bars.show_job)
    print_snapshot(snapshot, as_json)


def list_snapshots(
    url: Url = None, token: Token = None, store: StoreUrl = None, user_id: UserId = None, as_json: AsJson = False
) -> None:
    """List snapshots, newest first."""
    if store is not None:
        snapshots = open_store(store, user_id).snapshots()
    else:
        with connect(url, token) as gateway:
            snapshots = list(gateway.snapshots.all())
    if as_json:
        print_json({"snapshots": snapshots})
        return
    for line in table([_row(snapshot) for snapshot in snapshots], right={1, 2}):
        typer.echo(line)
    if not snapshots:
        typer.echo("there is no snapshot yet", err=True)


def show_snapshot(
    snapshot: SnapshotName = "latest",
    url: Url = None,
    token: Token = None,
    store: StoreUrl = None,
    user_id: UserId = None,
    as_json: AsJson = False,
) -> None:
    """Show one snapshot with its collections."""
    if store is not None:
        found = open_store(store, user_id).snapshot(snapshot)
    else:
        with connect(url, token) as gateway:
            found = gateway.snapshots.get(snapshot)
    print_snapshot(found, as_json)


def verify_snapshot(
    snapshot: SnapshotName = "latest",
    level: Annotated[
        str, typer.Option(help="'data' reads every byte; 'boot' also starts a Chroma on a copy and reads it.")
    ] = "data",
    url: Url = None,
    token: Token = None,
    store: StoreUrl = None,
    user_id: UserId = None,
    scratch: Scratch = None,
    as_json: AsJson = False,
) -> None:
    """Verify a snapshot. The exit code is 5 if the snapshot is damaged."""
    wanted = _level(level)
    with ProgressBars.on_terminal(as_json=as_json) as bars:
        if store is not None:
            found = open_store(store, user_id).verify(snapshot, wanted, scratch or Path.cwd(), bars.progress)
        else:
            with connect(url, token) as gateway:
                found = gateway.snapshots.verify(snapshot, wanted, on_job=bars.show_job)
    if as_json:
        print_json(found)
    elif found["ok"]:
        typer.echo(f"snapshot {snapshot} is good ({wanted}, {found['duration_s']:.1f} s)")
    else:
        for problem in found["problems"]:
            typer.echo(problem, err=True)
    if not found["ok"]:
        raise CorruptSnapshot(
            f"snapshot {snapshot} is damaged", "restore another one; `chroma-gateway list` shows them"
        )


def delete_snapshot(
    snapshot: Annotated[str, typer.Argument(help="A snapshot's id.")],
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Delete a snapshot. Data that other snapshots share stays; moments that need it go."""
    with connect(url, token) as gateway, ProgressBars.on_terminal(as_json=as_json) as bars:
        gateway.snapshots.delete(snapshot, on_job=bars.show_job)
    if as_json:
        print_json({"deleted": snapshot})
    else:
        typer.echo(f"snapshot {snapshot} is deleted")


def collect_garbage(url: Url = None, token: Token = None, as_json: AsJson = False) -> None:
    """Apply the retention rules, then delete data that no snapshot needs."""
    with connect(url, token) as gateway, ProgressBars.on_terminal(as_json=as_json) as bars:
        result = gateway.gc(on_job=bars.show_job)
    print_json(result)


def print_snapshot(snapshot: Snapshot, as_json: bool) -> None:
    """Print one snapshot with its collections."""
    if as_json:
        print_json(snapshot)
        return
    typer.echo(f"snapshot {snapshot['id']}" + (f"  {snapshot['label']}" if snapshot["label"] else ""))
    typer.echo(f"  {size(snapshot['size_bytes'])}, chromadb {snapshot['chroma_version']}, {_verified(snapshot)}")
    for each in snapshot["collections"]:
        typer.echo(f"  {each['tenant']}/{each['database']}/{each['name']}: {each['records']} records")


def _row(snapshot: Snapshot) -> list[str]:
    records = sum(collection["records"] for collection in snapshot["collections"])
    size_bytes, label = size(snapshot["size_bytes"]), snapshot["label"] or ""
    return [snapshot["id"], size_bytes, f"{records} records", _verified(snapshot), label]


def _verified(snapshot: Snapshot) -> str:
    """What is known of a snapshot's health, for people."""
    verified = snapshot["verified"]
    if snapshot["state"] == "damaged":
        return "DAMAGED"
    if verified is None:
        return "never verified"
    return f"{'verified' if verified['ok'] else 'FAILED'} ({verified['level']}) {verified['at'][:10]}"


def _level(level: str) -> "Level":
    if level == "data":
        return "data"
    if level == "boot":
        return "boot"
    raise ConfigError(f"--level {level} is not a level", "use --level data or --level boot")
