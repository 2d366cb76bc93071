"""The screen of `chroma-gateway status`."""

from typing import Any

from gateway.cli.status import screen

ANSWER: dict[str, Any] = {
    "version": "0.1.0",
    "chroma_version": "1.5.9",
    "uptime_s": 300,
    "ready": True,
    "reason": None,
    "memory": {"gateway_bytes": 50 << 20},
    "gate": {"state": "open", "writes_under_way": 1, "writes_waiting": 0},
    "chroma": {"up": True, "starts": 1},
    "data_dir": {
        "path": "/data",
        "size_bytes": 3 << 20,
        "free_bytes": 9 << 30,
        "sqlite_bytes": 1 << 20,
        "log_backlog_records": 5,
        "orphaned_directories": 0,
        "orphaned_bytes": 0,
    },
    "store": {
        "url": "s3://bucket",
        "reachable": True,
        "snapshots": 2,
        "last_snapshot": {
            "id": "20261120T210455Z-3f9a1c",
            "state": "complete",
            "size_bytes": 3 << 20,
            "uploaded_bytes": 1 << 20,
            "duration_s": 0.5,
        },
        "last_snapshot_age_s": 600,
    },
    "journal": {
        "on": True,
        "lag_s": 0.4,
        "recovery_s": 3.2,
        "requests_last_hour": 1200,
        "requests_last_hour_usd": 0.006,
        "problem": None,
        "restorable_from": "2026-11-20T21:04:55Z",
    },
    "snapshots": {"interval_s": 3600, "cron": None, "final": False},
    "lease": {"state": "held", "epoch": 3},
    "last_error": None,
    "collections": [
        {"tenant": "t", "database": "d", "name": f"c{n}", "records": n, "dimension": 3 if n else None, "hnsw_bytes": 0}
        for n in range(2)
    ],
}


def test_a_healthy_gateway() -> None:
    """Everything that an operator asks first, a line each."""
    assert screen(ANSWER).splitlines() == [
        "gateway 0.1.0, chromadb 1.5.9, up for 5 min, 50.0 MiB of memory",
        "ready",
        "gate open, 1 write(s) under way, 0 waiting; Chroma up, started 1 time(s)",
        "data /data: 3.0 MiB, 9.0 GiB free, SQLite 1.0 MiB, 5 records in the log, 0 orphaned directories (0 B)",
        "store s3://bucket: 2 snapshot(s)",
        "last snapshot 20261120T210455Z-3f9a1c, 10 min ago, complete, 3.0 MiB (1.0 MiB sent), took 0.5 s",
        "journal 0 s behind, any moment since 2026-11-20T21:04:55Z; 1200 request(s) in the last hour"
        " (0.0060 USD at S3), a restore would replay for 3 s",
        "snapshots every 60 min, no final one",
        "lease state held, epoch 3",
        "2 collection(s)",
        "  t/d/c0  0 records  dim -  0 B",
        "  t/d/c1  1 records  dim 3  0 B",
    ]


def test_what_is_wrong_is_in_capitals() -> None:
    """It is not to be overlooked."""
    store = {"url": "s3://bucket", "reachable": False, "message": "no answer within 5 s"}
    wrong = {
        "ready": False,
        "reason": "Chroma is starting",
        "warnings": ["the disk is nearly full"],
        "chroma": {"up": False, "starts": 4, "unreadable": {"t/d/c0": "torn"}},
        "store": store,
        "journal": ANSWER["journal"] | {"problem": "the store is away"},
        "snapshots": {"interval_s": 0, "cron": None, "final": True},
        "last_error": {"at": "2026-11-20T21:04:55Z", "message": "the disk is full"},
        "lease": None,
    }
    shown = screen(ANSWER | wrong)
    assert "NOT READY: Chroma is starting" in shown
    assert "WARNING: the disk is nearly full" in shown
    assert "CANNOT BE READ: t/d/c0: torn" in shown
    assert "Chroma DOWN, started 4 time(s)" in shown
    assert "store s3://bucket: NOT REACHABLE: no answer within 5 s" in shown
    assert "LAST ERROR at 2026-11-20T21:04:55Z: the disk is full" in shown
    assert "CANNOT BE WRITTEN: the store is away" in shown
    assert "snapshots not scheduled, a final one" in shown
    off = {"on": False, "problem": None}
    assert "\njournal off\n" in screen(ANSWER | {"journal": off})
    assert "\njournal OFF: no shared memory\n" in screen(ANSWER | {"journal": off | {"problem": "no shared memory"}})
    assert "lease" not in shown


def test_many_collections_are_cut() -> None:
    """The last line says how many more there are, and where."""
    collections = [ANSWER["collections"][1] | {"name": f"c{n}"} for n in range(40)]
    *_, before, last = screen(ANSWER | {"collections": collections}).splitlines()
    assert "c14" in before
    assert last == "  … and 25 more: `chroma-gateway status --json` lists them"
