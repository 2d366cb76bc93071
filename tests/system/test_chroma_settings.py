"""What an operator sets for Chroma reaches Chroma."""

import json
import sqlite3
from contextlib import closing

import httpx

from tests.gateway_process import gateway_process

COLLECTIONS = "/api/v2/tenants/default_tenant/databases/default_database/collections"


def test_a_larger_body_and_chromas_own_settings_reach_chroma() -> None:
    """An add of 50 MB passes with GATEWAY_MAX_BODY_BYTES alone, and a setting that only Chroma knows takes effect."""
    env = {"GATEWAY_MAX_BODY_BYTES": str(60 << 20), "GATEWAY_CHROMA_CONFIG": "chroma.yaml"}
    with gateway_process(**env, GATEWAY_LOG_LEVEL="debug") as built:
        (built.directory / "chroma.yaml").write_text("cors_allow_origins: ['https://app.example.com']\n")
        built.start()
        notes = built.client().create_collection("notes", embedding_function=None)
        add = json.dumps({"ids": ["a"], "embeddings": [[1, 2]]}).encode()
        large = add[:-1] + b" " * 50_000_000 + b"}"
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(f"{built.url}{COLLECTIONS}/{notes.id}/add", content=large, headers=headers, timeout=60)
        assert answer.status_code == 201, answer.text
        assert notes.count() == 1
        too_large = large[:-1] + b" " * 20_000_000 + b"}"
        answer = httpx.post(f"{built.url}{COLLECTIONS}/{notes.id}/add", content=too_large, headers=headers, timeout=60)
        assert answer.status_code == 413
        heartbeat = f"http://127.0.0.1:{built.chroma_port}/api/v2/heartbeat"
        allowed = httpx.get(heartbeat, headers={"Origin": "https://app.example.com"}).headers
        assert allowed["access-control-allow-origin"] == "https://app.example.com"
        assert '"program": "chroma"' not in built.output()
        # What fails is written, with its request.
        with closing(sqlite3.connect(built.data_dir / "chroma.sqlite3")) as database:
            database.execute("alter table embedding_metadata rename to gone")
            assert httpx.post(f"{built.url}{COLLECTIONS}/{notes.id}/get", json={}, timeout=60).status_code == 500
            database.execute("alter table gone rename to embedding_metadata")
        built.until_logged('"program": "chroma"')
        (line,) = [line for line in built.output().splitlines() if '"program": "chroma"' in line]
        assert json.loads(line)["level"] == "error"
        assert json.loads(line)["in"].startswith("HTTP request with http.method: POST")
        assert built.stop() == 0
        (built.directory / "chroma.yaml").write_text("port: 1\n")
        built.start(ready=False)
        assert built.wait() == 2
        assert "GATEWAY_CHROMA_CONFIG sets port to 1" in built.output()
