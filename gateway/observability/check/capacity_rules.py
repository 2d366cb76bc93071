"""Memory, disk, log, versions, clients, and whether a person is told."""

from gateway.chroma.disk import least_free_bytes
from gateway.observability.check.answers import Answer, failed, named, passed, unknown, warned
from gateway.observability.check.facts import Facts, Missing, known

# docs.trychroma.com/guides/performance/single-node: the indexes must be in memory, and a gigabyte is for the rest.
_RESERVED_BYTES = 1 << 30
_NEARLY = 0.7
_LARGE_LOG_ROWS = 100_000
_SYNC_THRESHOLD = 1000
# As above: between 50 and 250 records a write are reasonable.
_FEW_RECORDS, _REASONABLE_RECORDS = 2, 100
_MANY_WRITES, _MANY_WRITES_A_MINUTE = 1000, 300
# docs/clients.md
_OLDEST_CLIENT = (1, 0)
_SCRAPED_WITHIN_S, _FIRST_SCRAPE_S = 600, 120


def memory(facts: Facts) -> Answer:
    """Whether the indexes of all collections fit in memory."""
    needed, has = known(facts.disk).index_bytes, known(facts.memory_bytes)
    room = max(has - _RESERVED_BYTES, has // 2)
    said = f"the indexes take about {_mib(needed)} of {_mib(has)} of memory, of which {_mib(room)} are for them"
    advice = "give the machine or the container more memory, or delete what is not needed"
    if needed > room:
        return failed(f"{said}: Chroma is killed, or everything becomes slow", advice)
    return warned(said, advice) if needed > _NEARLY * room else passed(said)


def disk(facts: Facts) -> Answer:
    """Whether the disk of the data has room for what comes, and for a restore."""
    found = known(facts.disk)
    said = f"{_mib(found.free_bytes)} are free beside {_mib(found.size_bytes)} of data"
    if found.free_bytes < least_free_bytes(found.sqlite_bytes):
        return failed(f"{said}: a full disk tears the index that is being written", "free some space, or give it more")
    if found.free_bytes < found.size_bytes:
        return warned(f"{said}: a restore needs room for a second copy", "give the disk more space")
    return passed(said)


def log_backlog(facts: Facts) -> Answer:
    """Whether Chroma's log is trimmed."""
    found = known(facts.disk)
    usual = _LARGE_LOG_ROWS + _SYNC_THRESHOLD * found.collections
    if not isinstance(facts.collections, Missing):
        usual += sum(each.settings.sync_threshold for each in facts.collections.looked_at)
    if found.log_rows > usual:
        return warned(
            f"Chroma's log has {found.log_rows} rows, more than {usual}: it is trimmed after snapshots, and the disk"
            " fills",
            "take a snapshot, and turn the journal on or schedule snapshots",
        )
    return passed(f"Chroma's log has {found.log_rows} rows")


def batches(facts: Facts) -> Answer:
    """Whether records are written one by one."""
    writes = known(facts.writes)
    if not writes.requests:
        return passed("no write of records was seen since Chroma's start")
    each = writes.rows / writes.requests
    most = "" if isinstance(facts.max_batch, Missing) else f"; Chroma takes {facts.max_batch} at once"
    said = (
        f"{each:.1f} records a write, in {writes.requests} writes since Chroma's start, up to {writes.busiest} in one"
        f" minute{most}"
    )
    if writes.requests >= _MANY_WRITES and writes.busiest >= _MANY_WRITES_A_MINUTE and each < _FEW_RECORDS:
        return warned(said, f"write about {_REASONABLE_RECORDS} records with one `add` or `upsert`")
    return passed(said)


def versions(facts: Facts) -> Answer:
    """Whether the installed chromadb is one that this gateway takes, and the one of the newest snapshot or newer."""
    installed, (oldest, first_not) = facts.versions.chroma, facts.versions.supported
    if not _numbers(oldest) <= _numbers(installed) < _numbers(first_not):
        return failed(
            f"chromadb {installed} is installed; this gateway is made for {oldest} and newer, before {first_not}",
            f"install chromadb>={oldest},<{first_not}",
        )
    snapshots = known(facts.snapshots)
    newest = next((each.chroma_version for each in snapshots if each.chroma_version), None)
    if newest and _numbers(newest) > _numbers(installed):
        return failed(
            f"the newest snapshot is of chromadb {newest}, and {installed} is installed: it may not read those data",
            f"install chromadb {newest} or a newer one",
        )
    return passed(f"chromadb {installed}")


def clients(facts: Facts) -> Answer:
    """Whether clients are too old for this Chroma."""
    found = facts.clients
    old = sorted(each for each in found.python if _numbers(each)[:2] < _OLDEST_CLIENT)
    if old or found.retired:
        what = [f"chromadb {named(old)}"] if old else []
        what += [f"{found.retired} request(s) to API v1, which is gone"] if found.retired else []
        return warned(f"clients are too old: {'; '.join(what)}", "install chromadb 1.0 or newer where they run")
    if found.python:
        return passed(f"seen: chromadb {named(sorted(found.python, key=_numbers, reverse=True))}")
    return passed("no client that is too old was seen since the gateway's start")


def alerts(facts: Facts) -> Answer:
    """Whether somebody hears of failures."""
    monitoring = facts.monitoring
    if monitoring.alert_url:
        return passed("GATEWAY_ALERT_URL is told of failures")
    if monitoring.scraped_s is not None and monitoring.scraped_s <= _SCRAPED_WITHIN_S:
        return passed(f"/metrics was read {monitoring.scraped_s:.0f} s ago")
    if facts.uptime_s < _FIRST_SCRAPE_S and monitoring.scraped_s is None:
        return unknown(
            "GATEWAY_ALERT_URL is not set, and /metrics was not read since the gateway's start",
            "set GATEWAY_ALERT_URL, or let Prometheus read /metrics with scripts/deploy/alerts.yml",
        )
    return warned(
        "nobody hears of failures: GATEWAY_ALERT_URL is not set, and nothing reads /metrics",
        "set GATEWAY_ALERT_URL, or let Prometheus read /metrics with scripts/deploy/alerts.yml",
    )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes >> 20:,} MiB"


def _numbers(version: str) -> tuple[int, ...]:
    """`1.5.9` as numbers that compare. What is no number ends it."""
    found = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        found.append(int(digits))
        if digits != part:
            break
    return tuple(found)


RULES = (memory, disk, log_backlog, batches, versions, clients, alerts)
