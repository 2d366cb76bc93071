"""The audit log: `gateway.auth.audit`."""

import json
from pathlib import Path

from gateway.auth.audit import Audit


def test_a_long_path_is_cut(tmp_path: Path) -> None:
    """Lines are written for refused requests, too, and long ones could fill the disk."""
    audit = Audit(tmp_path / "audit")
    for path in ("/api/v2/short", "/api/v2/" + "x" * 60_000):
        audit.record(
            who="crawler",
            role="reader",
            address="10.0.0.7",
            method="DELETE",
            path=path,
            action="unknown",
            status=403,
            request_id="1",
        )
    audit.close()
    short, long = map(json.loads, (tmp_path / "audit").read_text().splitlines())
    assert short["path"] == "/api/v2/short"
    assert long["path"].startswith("/api/v2/xxx")
    assert len(json.dumps(long)) < 3000
