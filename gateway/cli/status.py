"""`status`: what `GET /admin/status` says, on one screen."""

from collections.abc import Iterator
from typing import Any

import typer

from gateway.cli.client import connect
from gateway.cli.options import AsJson, Token, Url
from gateway.cli.output import age, print_json, size, table

_MAX_COLLECTIONS = 15


def status(url: Url = None, token: Token = None, as_json: AsJson = False) -> None:
    """Show the health, sizes, snapshots and collections of the running gateway."""
    with connect(url, token) as gateway:
        found = gateway.status()
    if as_json:
        print_json(found)
    else:
        typer.echo(screen(found))


def screen(found: dict[str, Any]) -> str:
    """The answer of `GET /admin/status` for people."""
    lines = [
        f"gateway {found['version']}, chromadb {found['chroma_version']}, up for {age(found['uptime_s'])}, "
        f"{size(found['memory']['gateway_bytes'])} of memory",
        "ready" if found["ready"] else f"NOT READY: {found['reason']}",
        *(f"WARNING: {each}" for each in found.get("warnings", [])),
        *(f"CANNOT BE READ: {name}: {why}" for name, why in found["chroma"].get("unreadable", {}).items()),
        _gate_and_chroma(found["gate"], found["chroma"]),
        _data_dir(found["data_dir"]),
        *_store(found["store"]),
        _journal(found["journal"]),
        _schedule(found["snapshots"]),
    ]
    if lease := found.get("lease"):
        known = {name.replace("_", " "): value for name, value in lease.items() if value is not None and value != []}
        lines.append("lease " + ", ".join(f"{name} {value}" for name, value in known.items()))
    if error := found["last_error"]:
        lines.append(f"LAST ERROR at {error['at']}: {error['message']}")
    return "\n".join([*lines, *_collections(found["collections"])])


def _gate_and_chroma(gate: dict[str, Any], chroma: dict[str, Any]) -> str:
    return (
        f"gate {gate['state']}, {gate['writes_under_way']} write(s) under way, {gate['writes_waiting']} waiting; "
        f"Chroma {'up' if chroma['up'] else 'DOWN'}, started {chroma['starts']} time(s)"
    )


def _data_dir(data: dict[str, Any]) -> str:
    return (
        f"data {data['path']}: {size(data['size_bytes'])}, {size(data['free_bytes'])} free, "
        f"SQLite {size(data['sqlite_bytes'])}, {data['log_backlog_records']} records in the log, "
        f"{data['orphaned_directories']} orphaned directories ({size(data['orphaned_bytes'])})"
    )


def _store(store: dict[str, Any]) -> Iterator[str]:
    if not store["reachable"]:
        yield f"store {store['url']}: NOT REACHABLE: {store['message']}"
        return
    count = "many, still being counted," if store["snapshots"] is None else store["snapshots"]
    yield f"store {store['url']}: {count} snapshot(s)"
    if last := store["last_snapshot"]:
        yield (
            f"last snapshot {last['id']}, {age(store['last_snapshot_age_s'])} ago, {last['state']}, "
            f"{size(last['size_bytes'])} ({size(last['uploaded_bytes'])} sent), took {last['duration_s']:.1f} s"
        )


def _journal(journal: dict[str, Any]) -> str:
    if not journal["on"]:
        return f"journal OFF: {journal['problem']}" if journal["problem"] else "journal off"
    since = f", any moment since {journal['restorable_from']}" if journal["restorable_from"] else ""
    problem = f"; CANNOT BE WRITTEN: {journal['problem']}" if journal["problem"] else ""
    return (
        f"journal {age(journal['lag_s'])} behind{since}; {journal['requests_last_hour']} request(s) in the last hour"
        f" ({journal['requests_last_hour_usd']:.4f} USD at S3), a restore would replay for"
        f" {age(journal['recovery_s'])}{problem}"
    )


def _schedule(schedule: dict[str, Any]) -> str:
    every = f"every {age(schedule['interval_s'])}" if schedule["interval_s"] else schedule["cron"] or "not scheduled"
    return f"snapshots {every}, {'a' if schedule['final'] else 'no'} final one"


def _collections(collections: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{len(collections)} collection(s)"
    rows = [
        [
            f"  {each['tenant']}/{each['database']}/{each['name']}",
            f"{each['records']} records",
            f"dim {'-' if each['dimension'] is None else each['dimension']}",
            size(each["hnsw_bytes"]),
        ]
        for each in collections[:_MAX_COLLECTIONS]
    ]
    yield from table(rows, right={1, 2, 3})
    if len(collections) > _MAX_COLLECTIONS:
        yield f"  … and {len(collections) - _MAX_COLLECTIONS} more: `chroma-gateway status --json` lists them"
