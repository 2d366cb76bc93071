"""The production check of a whole gateway: all is well, and then much is not."""

import json
import tempfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.commands import run_command
from tests.gateway_process import ADMIN_TOKEN, Gateway, gateway_process
from tests.keys import Keys
from tests.servers import S3Server

BASE = "/api/v2/tenants/default_tenant/databases/default_database/collections"
OPENAI = {"type": "known", "name": "openai", "config": {"model_name": "text-embedding-3-small"}}
QUERIES = 30


class Application:
    """A client behind a proxy that ends TLS."""

    def __init__(self, client: httpx.Client, token: str) -> None:
        self._client = client
        client.headers.update(
            {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https", "X-Chroma-Token": token}
        )

    def create(self, name: str, function: dict[str, Any], space: str) -> str:
        configuration = {"embedding_function": function, "hnsw": {"space": space}}
        made = self._client.post(BASE, json={"name": name, "configuration": configuration})
        return str(made.json()["id"])

    def add(self, collection_id: str, dimension: int, metadata: dict[str, str] | None) -> None:
        vectors = np.random.default_rng(0).normal(size=(120, dimension))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        ids = [str(number) for number in range(120)]
        body = {"ids": ids, "embeddings": vectors.tolist(), "documents": ids, "metadatas": [metadata] * 120}
        assert self._client.post(f"{BASE}/{collection_id}/add", json=body).status_code == 201

    def query(self, collection_id: str, dimension: int, where: dict[str, str]) -> int:
        """The number of records that a query finds."""
        include = ["metadatas", "documents", "distances"]
        body = {"query_embeddings": [[1.0] * dimension], "n_results": 3, "include": include, "where": where}
        return len(self._client.post(f"{BASE}/{collection_id}/query", json=body).json()["ids"][0])


def findings(gateway: Gateway, token: str) -> dict[str, dict[str, Any]]:
    """What a reader sees in a session of the console."""
    with httpx.Client(base_url=gateway.url, headers={"Sec-Fetch-Site": "same-origin"}) as browser:
        assert browser.post("/console/session", json={"key": token}).status_code == 200
        answer = browser.get("/admin/check")
    assert answer.status_code == 200, answer.text
    return {each["code"]: each for each in answer.json()["findings"]}


def test_a_gateway_for_production_passes_and_each_mistake_is_told(ministack: S3Server) -> None:
    """Keys, TLS, journal, a verified snapshot and good collections pass. Then come those that people are warned of."""
    with tempfile.TemporaryDirectory() as directory:
        keys = Keys(Path(directory) / "keys.json")
        settings = {
            "GATEWAY_STORE": f"s3://{ministack.new_bucket('checked')}",
            "GATEWAY_JOURNAL_INTERVAL_S": "1",
            "GATEWAY_SNAPSHOT_INTERVAL_S": "3600",
            "GATEWAY_KEEP_LAST": "10",
            "GATEWAY_KEYS_FILE": str(keys.path),
            "GATEWAY_LIMIT_IN_FLIGHT": "16",
            "GATEWAY_ALERT_URL": "http://127.0.0.1:9/",
        }
        app_token, reader_token = keys.add("app", "writer"), keys.add("operator", "reader")
        with gateway_process(**settings, **ministack.env) as gateway, httpx.Client(base_url=gateway.url) as client:
            gateway.start()
            app = Application(client, app_token)
            good = app.create("good", OPENAI, "cosine")
            app.add(good, 1536, {"source": "book"})
            assert app.query(good, 1536, {"source": "book"}) == 3
            snapshot_id = gateway.snapshot()["id"]
            assert gateway.admin("POST", f"/snapshot/{snapshot_id}/verify").json()["ok"]
            wrong = {
                code: each["message"]
                for code, each in findings(gateway, reader_token).items()
                if each["status"] != "pass"
            }
            assert wrong == {}
            command = run_command(gateway, "check", "--json", GATEWAY_ADMIN_TOKEN=ADMIN_TOKEN)
            assert (command.returncode, json.loads(command.stdout)["status"]) == (0, "pass"), command.stderr

            for number in range(QUERIES):
                assert app.query(good, 1536, {"sourse": f"{number}"}) == 0
            texts = app.create("texts", {"type": "known", "name": "default", "config": {}}, "l2")
            app.add(texts, 384, None)
            httpx.get(f"{gateway.url}/api/v1/collections", headers={"X-Chroma-Token": app_token})
            found = findings(gateway, reader_token)
            wrong = {code: each["status"] for code, each in found.items() if each["status"] != "pass"}
            assert wrong == {
                "embedding-function": "fail",
                "distance": "warn",
                "metadata": "warn",
                "filters": "warn",
                "clients": "warn",
            }
            assert found["embedding-function"]["where"] == "texts"
            assert found["batches"]["message"].startswith("120.0 records a write, in 2 writes since Chroma's start")
            assert found["batches"]["message"].endswith("; Chroma takes 5461 at once")
            assert "source" in found["filters"]["advice"]
            command = run_command(gateway, "check", GATEWAY_ADMIN_TOKEN=ADMIN_TOKEN, COLUMNS="300")
            assert command.returncode == 5
            assert "default embedding function" in " ".join(command.stdout.split())
