"""What a deployment must do before it counts: see scripts/smoke.

Writes to a collection of its own, takes a snapshot, has it verified, reads everything back, and leaves nothing behind.
"""

import argparse
import os
import secrets
import sys
import time
from urllib.parse import urlsplit

import chromadb
import httpx

RECORDS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="for instance https://chroma-gateway-abc.a.run.app")
    parser.add_argument("--ready-timeout", type=float, default=600, metavar="SECONDS")
    options = parser.parse_args()
    token = os.environ.get("GATEWAY_ADMIN_TOKEN") or sys.exit("GATEWAY_ADMIN_TOKEN is not set")
    try:
        smoke(options.url.rstrip("/"), token, options.ready_timeout)
    except Exception as error:
        sys.exit(f"smoke: FAILED: {type(error).__name__}: {error}")


def smoke(url: str, token: str, ready_timeout_s: float) -> None:
    """Raises whatever is wrong with the gateway at `url`."""
    begun = time.monotonic()
    until_ready(url, token, ready_timeout_s)
    print(f"smoke: ready after {time.monotonic() - begun:.1f} s")
    headers = {"Authorization": f"Bearer {token}"}
    parts = urlsplit(url)
    client = chromadb.HttpClient(
        host=parts.hostname or "",
        port=parts.port or (443 if parts.scheme == "https" else 80),
        ssl=parts.scheme == "https",
        headers=headers,
    )
    name = f"smoke-{secrets.token_hex(6)}"
    collection = client.create_collection(name, embedding_function=None)
    snapshot = None
    try:
        ids = [str(number) for number in range(RECORDS)]
        vectors = [[float(number), 1.0, -0.5 * number] for number in range(RECORDS)]
        collection.add(ids=ids, embeddings=vectors, documents=[f"record {number}" for number in ids])
        with httpx.Client(base_url=f"{url}/admin", headers=headers, timeout=300) as admin:
            answer = admin.post("/snapshot", json={"label": name})
            answer.raise_for_status()
            snapshot = answer.json()
            within = [each for each in snapshot["collections"] if each["name"] == name]
            if len(within) != 1 or within[0]["records"] != RECORDS:
                raise RuntimeError(f"snapshot {snapshot['id']} does not have what was written: {within}")
            verified = admin.post(f"/snapshot/{snapshot['id']}/verify", json={"level": "data"})
            verified.raise_for_status()
            if not verified.json()["ok"]:
                raise RuntimeError(f"snapshot {snapshot['id']}: {verified.json()['problems']}")
        found = collection.get(include=["embeddings", "documents"])
        if sorted(found["ids"]) != sorted(ids):
            raise RuntimeError(f"{len(found['ids'])} of {RECORDS} records came back")
        nearest = collection.query(query_embeddings=[vectors[17]], n_results=1)["ids"][0]
        if nearest != ["17"]:
            raise RuntimeError(f"the nearest to 17 is {nearest}")
        print(f"smoke: {RECORDS} records, snapshot {snapshot['id']} of {snapshot['size_bytes']} bytes: all is well")
    finally:
        client.delete_collection(name)
        if snapshot:
            httpx.delete(f"{url}/admin/snapshot/{snapshot['id']}", headers=headers, timeout=60)


def until_ready(url: str, token: str, timeout_s: float) -> None:
    """Wait until the gateway says that it is ready. Raises TimeoutError with what it said last.

    Cloud Run keeps some paths that end with z for itself and answers 404: `/admin/status` says the same then.
    """
    deadline = time.monotonic() + timeout_s
    headers = {"Authorization": f"Bearer {token}"}
    while True:
        try:
            answer = httpx.get(f"{url}/readyz", timeout=10)
            if answer.status_code == 404:
                answer = httpx.get(f"{url}/admin/status", headers=headers, timeout=10)
                is_ready = answer.status_code == 200 and answer.json()["ready"]
            else:
                is_ready = answer.status_code == 200
            if is_ready:
                return
            last = f"{answer.status_code} {answer.text[:500]}"
        except httpx.TransportError as error:
            last = str(error)
        if time.monotonic() > deadline:
            raise TimeoutError(f"not ready within {timeout_s:.0f} s: {last}")
        time.sleep(1)


if __name__ == "__main__":
    main()
