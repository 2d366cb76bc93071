"""`chroma-gateway status`: what `GET /admin/status` says, on one screen."""

from typing import Any

import httpx
import typer

from gateway.auth.admin_token import TOKEN_FILE
from gateway.config import Settings
from gateway.errors import Forbidden, GatewayError, Unauthorized

_TIMEOUT_S = 30.0
_MAX_COLLECTIONS = 15


def show_status(settings: Settings) -> None:
    """Print what the running gateway says of itself. Raises GatewayError where none answers."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104  # only looked for
    url = f"http://{host if ':' not in host or host.startswith('[') else f'[{host}]'}:{settings.port}/admin/status"
    if settings.admin_token:
        token = settings.admin_token.get_secret_value()
    else:
        try:
            token = TOKEN_FILE.read_text().strip()
        except OSError as error:
            raise Unauthorized(
                f"there is no admin token: {TOKEN_FILE}: {error.strerror}",
                "run where the gateway runs, or set GATEWAY_ADMIN_TOKEN",
            ) from None
    try:
        answer = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError as error:
        raise GatewayError(f"no gateway answers at {url}: {error}", "is it running? see HOST and PORT") from None
    if answer.status_code != httpx.codes.OK:
        raise Forbidden(f"{url} answers {answer.status_code}: {answer.text[:500]}")
    typer.echo(screen(answer.json()))


def screen(found: dict[str, Any]) -> str:
    """The answer of `/admin/status` for people."""
    gate, chroma, data, store = found["gate"], found["chroma"], found["data_dir"], found["store"]
    lines = [
        f"gateway {found['version']}, chromadb {found['chroma_version']}, up for {_age(found['uptime_s'])}, "
        f"{_size(found['memory']['gateway_bytes'])} of memory",
        "ready" if found["ready"] else f"NOT READY: {found['reason']}",
        f"gate {gate['state']}, {gate['writes_under_way']} write(s) under way, {gate['writes_waiting']} waiting; "
        f"Chroma {'up' if chroma['up'] else 'DOWN'}, started {chroma['starts']} time(s)",
        f"data {data['path']}: {_size(data['size_bytes'])}, {_size(data['free_bytes'])} free, "
        f"SQLite {_size(data['sqlite_bytes'])}, {data['log_backlog_records']} records in the log, "
        f"{data['orphaned_directories']} orphaned directories ({_size(data['orphaned_bytes'])})",
    ]
    if store["reachable"]:
        last = store["last_snapshot"]
        lines.append(f"store {store['url']}: {store['snapshots']} snapshot(s)")
        if last:
            lines.append(
                f"last snapshot {last['id']}, {_age(store['last_snapshot_age_s'])} ago, {last['state']}, "
                f"{_size(last['size_bytes'])} ({_size(last['uploaded_bytes'])} sent), took {last['duration_s']:.1f} s"
            )
    else:
        lines.append(f"store {store['url']}: NOT REACHABLE: {store['message']}")
    schedule = found["snapshots"]
    every = f"every {_age(schedule['interval_s'])}" if schedule["interval_s"] else schedule["cron"] or "not scheduled"
    fits = {True: ", which fits", False: ", which does NOT FIT", None: ""}[found["final_snapshot"]["fits"]]
    budget_s = found["final_snapshot"]["budget_s"]
    final = f"a final one within {budget_s:g} s{fits}" if schedule["final"] else "no final one"
    lines.append(f"snapshots {every}, {final}")
    if lease := found.get("lease"):
        lines.append("lease " + ", ".join(f"{name} {value}" for name, value in lease.items()))
    if found["last_error"]:
        lines.append(f"LAST ERROR at {found['last_error']['at']}: {found['last_error']['message']}")
    collections = found["collections"]
    lines.append(f"{len(collections)} collection(s)")
    for each in collections[:_MAX_COLLECTIONS]:
        name = f"{each['tenant']}/{each['database']}/{each['name']}"
        dimension = each["dimension"] if each["dimension"] is not None else "-"
        lines.append(f"  {name:50} {each['records']:>10} records  dim {dimension:>5}  {_size(each['hnsw_bytes']):>9}")
    if len(collections) > _MAX_COLLECTIONS:
        lines.append(f"  … and {len(collections) - _MAX_COLLECTIONS} more: GET /admin/status has them")
    return "\n".join(lines)


def _size(number: float | None) -> str:
    if number is None:
        return "?"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for limit, unit in ((120, 1), (7200, 60), (172_800, 3600)):
        if seconds < limit:
            return f"{seconds / unit:.0f} {({1: 's', 60: 'min', 3600: 'h'})[unit]}"
    return f"{seconds / 86_400:.0f} d"
