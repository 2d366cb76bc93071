"""Chroma's HTTP API, as much of it as this client needs. A gateway in front of it answers the same."""

import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from chroma.configuration import Configuration
from chroma.errors import Denied, Refused, Unavailable

_LATER = (429, 502, 503, 504)
_ANY = "*"


@dataclass
class Collection:
    """A collection as the server describes it."""

    id: str
    name: str
    dimension: int | None
    """None until it has a record."""
    space: str
    """How distances are computed: `cosine`, or `l2` for squared Euclidean ones."""
    metadata: dict[str, Any]


class Server:
    """Answers of one server.

    A request waits `timeout_s` for its answer. One that the server could not answer is sent again until `patience_s`
    are over. That is safe for all of them: each has the same result when it is sent twice. Methods raise Unavailable,
    Denied or Refused.
    """

    def __init__(
        self,
        configuration: Configuration,
        patience_s: float,
        *,
        timeout_s: float = 120,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = configuration.chroma_url.rstrip("/")
        self._configuration, self._patience_s = configuration, patience_s
        self._timeout_s, self._sleep = timeout_s, sleep
        self._client: httpx.Client | None = None
        self._process = 0
        self._database: str | None = None
        self._max_batch_size = 0
        self._without_journal = False

    def max_batch_size(self) -> int:
        """How many records the server takes at once. It is asked once."""
        if not self._max_batch_size:
            limits = self._json("GET", "/api/v2/pre-flight-checks")
            self._max_batch_size = max(1, int(limits.get("max_batch_size", 1000)))
        return self._max_batch_size

    def take_fewer(self, max_batch_size: int) -> None:
        """Remember that this server, or this key, takes no more records at once than that."""
        self._max_batch_size = max_batch_size

    def find_collection(self, name: str) -> Collection | None:
        """The collection of that name; None if there is none."""
        try:
            return _collection(self._json("GET", f"{self._collections()}/{quote(name, safe='')}"))
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def create_collection(self, name: str, space: str, metadata: Mapping[str, Any]) -> Collection:
        """Make it, or get the one that another process has just made."""
        content = {
            "name": name,
            "get_or_create": True,
            "metadata": metadata,
            "configuration": {"hnsw": {"space": space}},
        }
        try:
            return _collection(self._json("POST", self._collections(), content))
        except Refused as error:
            if error.status == 404:  # the gateway takes it for a get if the key is a reader's
                raise Denied(f"{error}. A reader's key does not make it") from error
            raise

    def set_metadata(self, collection: Collection, metadata: Mapping[str, Any]) -> None:
        """Replace the collection's metadata."""
        self._json("PUT", f"{self._collections()}/{collection.id}", {"new_metadata": metadata})

    def get(self, collection: Collection, **query: Any) -> dict[str, Any]:
        """Chroma's answer to `get`."""
        found: dict[str, Any] = self._json("POST", f"{self._collections()}/{collection.id}/get", query)
        return found

    def query(self, collection: Collection, embeddings: Sequence[Sequence[float]], **query: Any) -> dict[str, Any]:
        """Chroma's answer to `query`: for each embedding a list of what is near, the nearest first."""
        content = {"query_embeddings": embeddings, **query}
        found: dict[str, Any] = self._json("POST", f"{self._collections()}/{collection.id}/query", content)
        return found

    def upsert(self, collection: Collection, content: Mapping[str, Any], *, stored: bool = False) -> bool:
        """Write records. With `stored`, wait until a gateway has them, and everything before, in its store.

        Returns whether they are stored in that sense. Chroma itself, or a gateway without a journal, has no such store.
        """
        path = f"{self._collections()}/{collection.id}/upsert"
        if not stored or self._without_journal:
            self._request("POST", path, content)
            return False
        try:
            answer = self._request("POST", path, content, {"X-Gateway-Ack": "stored"})
        except Refused as error:
            if error.status != 400:
                raise
            # The gateway's journal is off, or the request is wrong, which the answer to the next one says.
            self._request("POST", path, content)
            self._without_journal = True
            return False
        return "X-Gateway-Position" in answer.headers

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None and self._process == os.getpid():
            self._client.close()
        self._client = None

    # ------------------------------------------------------------------ requests

    def _collections(self) -> str:
        """The path of collections, in the tenant and the database that the key is for."""
        if self._database is None:
            tenant, database = "default_tenant", "default_database"
            identity = self._json("GET", "/api/v2/auth/identity")
            if identity.get("tenant") not in (None, "", _ANY):
                tenant = identity["tenant"]
            databases = identity.get("databases") or []
            if len(databases) == 1 and _ANY not in databases[0]:
                database = databases[0]
            self._database = f"/api/v2/tenants/{quote(tenant, safe='')}/databases/{quote(database, safe='')}"
        return f"{self._database}/collections"

    def _json(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> Any:
        answer = self._request(method, path, content)
        try:
            return answer.json()
        except ValueError as error:
            raise Refused(f"{self.url} answers {path} with something that is not JSON", answer.status_code) from error

    def _request(
        self, method: str, path: str, content: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        body = None if content is None else json.dumps(content, separators=(",", ":")).encode()
        all_headers = {**({} if body is None else {"Content-Type": "application/json"}), **(headers or {})}
        give_up_at = time.monotonic() + self._patience_s
        pause_s = 0.1
        while True:
            try:
                answer = self._connections().request(method, self.url + path, content=body, headers=all_headers)
            except httpx.TransportError as error:
                problem = f"cannot reach {self.url}: {error or type(error).__name__}"
                wait_s = pause_s
            except httpx.InvalidURL as error:
                raise Refused(f"{self.url} is not a URL: {error}", 0) from error
            else:
                if answer.status_code not in _LATER:
                    return self._checked(answer)
                problem = f"{self.url} answers {answer.status_code}: {_message(answer)}"
                wait_s = max(pause_s, _retry_after_s(answer))
            # Of many clients, not all come back at the same moment.
            wait_s *= random.uniform(1, 1.5)  # noqa: S311
            if time.monotonic() + wait_s > give_up_at:
                raise Unavailable(f"{problem}. Nothing is lost: do the same again later")
            self._sleep(wait_s)
            pause_s = min(pause_s * 2, 10)

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        status = answer.status_code
        if status in (401, 403):
            raise Denied(f"{self.url} answers {status}: {_message(answer)}. The key is the setting api_key")
        if not 200 <= status < 300:
            raise Refused(f"{self.url} answers {status}: {_message(answer)}", status)
        return answer

    def _connections(self) -> httpx.Client:
        """A forked process has connections of its own."""
        if self._client is None or self._process != os.getpid():
            key = self._configuration.api_key
            self._client = httpx.Client(
                proxy=self._configuration.http_proxy,
                headers={"X-Chroma-Token": key} if key else {},
                timeout=httpx.Timeout(self._timeout_s, connect=10),
            )
            self._process = os.getpid()
        return self._client


def _collection(described: Mapping[str, Any]) -> Collection:
    configuration = (described.get("configuration_json") or {}).get("hnsw") or {}
    return Collection(
        described["id"],
        described["name"],
        described.get("dimension"),
        configuration.get("space", "l2"),
        described.get("metadata") or {},
    )


def _message(answer: httpx.Response) -> str:
    try:
        body = answer.json()
        hint = f" ({body['hint']})" if body.get("hint") else ""
        return f"{body['message']}{hint}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return answer.text[:200]


def _retry_after_s(answer: httpx.Response) -> float:
    try:
        return float(answer.headers.get("Retry-After", 0))
    except ValueError:
        return 0
