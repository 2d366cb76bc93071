"""Manifests for tests."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from gateway.snapshot.model import FORMAT, File, Manifest, MigrationRow, Pack, Piece, Snapshot, SnapshotCollection

ID = "20261120T210455Z-3f9a1c"
OLDER = "20261119T000000Z-000000"
NEWER = "20261121T000000Z-ffffff"
SEGMENT = "8e2c5d0a-3b1f-4f1e-9d55-1f2a3b4c5d6e"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def manifest(snapshot_id: str = ID, packs: tuple[bytes, ...] = (b"database", b"index")) -> Manifest:
    """A manifest whose packs are one raw piece each. The first is the database, the others are files of an index."""
    names = ("chroma.sqlite3", *(f"{SEGMENT}/{name}" for name in ("header.bin", "data_level0.bin", "length.bin")))
    files = [
        File(
            path=name,
            size_bytes=len(data),
            sha256=sha(data),
            layout=(4096,),
            base=(Piece(len(data), number, 0, len(data), "raw"),),
        )
        for number, (name, data) in enumerate(zip(names, packs, strict=False))
    ]
    return Manifest(
        snapshot=Snapshot(
            id=snapshot_id,
            label="ünïcode \N{SNOWMAN}",
            created_at=datetime(2026, 11, 20, 21, 4, 55, 123456, UTC),
            size_bytes=sum(map(len, packs)),
            files=len(files),
            collections=(SnapshotCollection(tenant="t", database="d", name="n", id=SEGMENT, records=3, dimension=2),),
            chroma_version="1.5.9",
            duration_s=0.125,
            freeze_ms=1.0625,
        ),
        migrations=(MigrationRow(dir="sysdb", version=1, filename="00001-collections.sqlite.sql"),),
        segments={SEGMENT: 3},
        positions={SEGMENT: 2 if len(packs) > 1 else 0},
        packs=tuple(Pack(sha256=sha(data), size_bytes=len(data)) for data in packs),
        files=tuple(files),
    )


def forged(change: Any, snapshot_id: str = ID) -> bytes:
    """A manifest changed by `change(body)`, with the right digest. An attacker with write access can make it."""
    body = json.loads(manifest(snapshot_id).to_bytes())["manifest"]
    change(body)
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({"format": FORMAT, "digest": sha(canonical), "manifest": body}).encode()
