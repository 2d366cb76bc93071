"""The gateway's responses are Chroma's: a few thousand requests are sent to both, and the responses are compared.

Reads and invalid requests go to one Chroma, directly and through a data path in front of it. Writes go to two Chromas
with the same data; ids and times, which always differ, are masked. Chroma writes the keys of maps in another order each
time (they are hash maps), so the order of keys in JSON is not compared, but the length is. All else is compared byte
for byte.
"""

import json
import random
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.bare_chroma import BareChroma, bare_chroma
from tests.front import Front, Wire, front

BASE = "/api/v2/tenants/default_tenant/databases/default_database"

# The gateway adds the first of these headers; the second is a time.
NOT_COMPARED = {"x-request-id", "date"}
_MOMENT = re.compile(rb'(?<="nanosecond heartbeat":)\d+')
# A map in a message of Chroma's validation.
_MAP = re.compile(rb"\[\{[^}]*\}\](?=\")")
_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

JSON_VALUES = [
    *(None, True, 0, -1, 1.5, 10**30, 1e308, -(2**63), 2**64, "", "a", "é\u2028\U0001f600", "a" * 5000, [], {}, [[]]),
    *([1, 2, 3], ["1"], [[1.0, 2.0, 3.0]], [[1e39, 0, 0]], [[1.0]], [None], {"a": 1}, {"$and": []}, {"n": {"$gt": 1}}),
]
BROKEN_BODIES = [
    *(b"", b"{", b"{x}", b"null", b"[]", b"\xff\xfe", b'{"ids": ["1"]} trailing', b'{"a":1,"a":2}', b"nan"),
    *(b'{"ids": NaN}', b"[" * 300, b'"\\ud800"', b"{" + b" " * 3000 + b"}", b'{"query_embeddings": [[1e999]]}'),
]
NAMES = [
    *("notes", "nothing", "a%2Fb", "%C3%A9", "%ff", "%00", "%", "..", ".", "a%20b", "no+tes", "NOTES", "a" * 600),
    *("notes%2F..", "n;x=1", "n,o", "~", "%zz", "*", "default_tenant", "1"),
]
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND"]
TYPES = ["application/json", "application/json; charset=utf-8", "text/plain", "application/x-www-form-urlencoded", ""]
READS = ["get", "query", "search", "count"]


class Sent(NamedTuple):
    method: str
    target: str
    headers: tuple[str, ...]
    body: bytes | None

    def wire(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1", "Host: chroma", *self.headers]
        if self.body is not None:
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (self.body or b"")


def reads(collection_id: str, count: int) -> Iterator[Sent]:
    """Valid, unusual and invalid requests that change nothing. The same in every run."""
    dice = random.Random(4)
    paths = [
        *(
            "/api/v2/heartbeat",
            "/api/v2",
            "/api/v1",
            "/api/",
            "/api/v3/x",
            "/api/v2/version",
            "/api/v2/pre-flight-checks",
        ),
        *("/api/v2/auth/identity", "/api/v2/healthcheck", "/api/v2/reset", "/api/v2/tenants", "/api/v2/tenants/"),
        *(
            "/api/v2//heartbeat",
            "/api/v2/heartbeat/",
            "/api/v2/./heartbeat",
            "/api/v2/%68eartbeat",
            "/api/v2/heartbeat?x=%",
        ),
        *(f"{BASE}", f"{BASE}/collections", f"{BASE}/collections_count", f"{BASE}/collections?limit=1&offset=0"),
        *(f"{BASE}/collections?limit={value}" for value in ("-1", "x", "", "99999999999999999999", "1&limit=2", "%31")),
        *(f"/api/v2/tenants/{name}" for name in NAMES),
        *(f"/api/v2/tenants/{name}/databases/default_database" for name in NAMES),
        *(f"/api/v2/tenants/default_tenant/databases/{name}" for name in NAMES),
        *(f"{BASE}/collections/{name}" for name in NAMES),
        *(f"{BASE}/collections/{name}/{verb}" for name in NAMES for verb in READS),
        *(f"{BASE}/collections/{collection_id}/{verb}" for verb in READS * 30),
        *(f"{BASE}/collections/{collection_id.upper()}/{verb}" for verb in READS),
    ]
    for path in paths:
        if not any(verb in path for verb in READS):
            yield Sent("GET", path, (), None)
    for number in range(count):
        path = dice.choice(paths)
        of_records = path.rsplit("/", 1)[-1] in READS[:3]
        method = dice.choice(["GET", "HEAD", "OPTIONS", "TRACE"])
        body = None
        if of_records and dice.random() < 0.9:
            method, body = "POST", read_body(dice)
        elif dice.random() < 0.1:
            body = dice.choice(BROKEN_BODIES)
        headers = [f"X-Odd-{number}: {dice.choice(['a', 'é', ' ', '  b  ', ''])}"]
        if body is not None:
            headers.append(f"Content-Type: {dice.choice([TYPES[0], TYPES[0], TYPES[0], *TYPES])}")
        if dice.random() < 0.1:
            headers.append(
                dice.choice(["Accept-Encoding: gzip", "Origin: http://chroma", "Range: bytes=0-1", "Accept: text/html"])
            )
        yield Sent(method, path, tuple(headers), body)


def read_body(dice: random.Random) -> bytes:
    if dice.random() < 0.15:
        return dice.choice(BROKEN_BODIES)
    body: dict[str, object] = {}
    if dice.random() < 0.6:
        body["query_embeddings"] = [[round(dice.random(), 3) for _ in range(3)] for _ in range(dice.randint(1, 2))]
        body["n_results"] = dice.randint(1, 5)
    else:
        body["ids"] = [str(dice.randint(0, 25)) for _ in range(dice.randint(1, 4))]
    if dice.random() < 0.5:
        body["include"] = dice.sample(
            ["documents", "embeddings", "metadatas", "distances", "uris", "odd"], dice.randint(0, 3)
        )
    if dice.random() < 0.3:
        body["where"] = dice.choice([{"n": 3}, {"n": {"$gte": 5}}, {"$or": [{"n": 1}, {"n": 2}]}, {"n": {"$no": 1}}])
    if dice.random() < 0.4:
        field = dice.choice([*body, "limit", "offset", "where", "where_document", "unknown"])
        body[field] = dice.choice(JSON_VALUES)
    return json.dumps(body).encode()


def writes(collection_id: str, count: int) -> Iterator[Sent]:
    """Valid, unusual and invalid writes to collections, databases and tenants. The same in every run."""
    dice = random.Random(44)
    here = f"{BASE}/collections/{collection_id}"
    json_type = ("Content-Type: application/json",)
    for number in range(count):
        kind = dice.randrange(8)
        if kind <= 3:
            ids = [str(dice.randint(0, 60)) for _ in range(dice.randint(1, 4))]
            body: dict[str, object] = {"ids": ids, "embeddings": [[dice.random(), 1.0, 2.0] for _ in ids]}
            if dice.random() < 0.5:
                body["documents"] = [f"text {number}"] * len(ids)
                body["metadatas"] = [{"n": number, "odd": dice.choice(["é", 1.5, True])}] * len(ids)
            if dice.random() < 0.3:
                body[dice.choice(["ids", "embeddings", "documents", "metadatas", "uris", "odd"])] = dice.choice(
                    JSON_VALUES
                )
            verb = dice.choice(["add", "upsert", "update", "delete"])
            yield Sent("POST", f"{here}/{verb}", json_type, json.dumps(body).encode())
        elif kind == 4:
            created = {
                "name": dice.choice([*NAMES[:6], f"new-{number}"]),
                "get_or_create": dice.choice([True, False, 1]),
            }
            yield Sent("POST", f"{BASE}/collections", json_type, json.dumps(created).encode())
        elif kind == 5:
            path = dice.choice(
                [f"{BASE}/collections/{dice.choice(NAMES)}", f"/api/v2/tenants/{dice.choice(NAMES)}", "/api/v2/x"]
            )
            yield Sent(
                dice.choice(METHODS[1:5]), path, json_type, dice.choice([*BROKEN_BODIES, b'{"name":"x"}', b"{}"])
            )
        elif kind == 6:
            made = json.dumps({"name": dice.choice(["tenant-a", "tenant-b", "", "x", 5])}).encode()
            yield Sent("POST", dice.choice(["/api/v2/tenants", "/api/v2/tenants/tenant-a/databases"]), json_type, made)
        else:
            yield Sent(
                "POST",
                f"{here}/{dice.choice(['add', 'delete', 'upsert', 'fork'])}",
                json_type,
                dice.choice(BROKEN_BODIES),
            )
        if number % 10 == 0:
            yield Sent("POST", f"{here}/get", json_type, b'{"include": ["documents", "metadatas", "embeddings"]}')
            yield Sent("GET", f"{here}/count", (), None)


class Received(NamedTuple):
    status: bytes
    headers: tuple[str, ...]
    body: bytes
    closed: bool


class Sender:
    """Sends requests to one server, on one connection until the server closes it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._wire: Wire | None = None

    def send(self, request: Sent) -> Received:
        if self._wire is None:
            self._wire = Wire(socket.create_connection(("127.0.0.1", self._port), 30))
        self._wire.send(request.wire())
        said = self._wire.answer(request.method.encode())
        head, _, body = said.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        kept = [line for line in lines if line.split(":")[0].lower() not in NOT_COMPARED]
        closed = "connection: close" in kept
        if closed:
            self.close()
        return Received(status.encode(), tuple(kept), body, closed)

    def close(self) -> None:
        if self._wire is not None:
            self._wire.raw.close()
            self._wire = None


def comparable(body: bytes, masked: re.Pattern[bytes]) -> bytes:
    """`body` without what differs between two responses of Chroma: what is masked, and the order of keys."""
    body = _MAP.sub(lambda match: b", ".join(sorted(match[0].strip(b"[{}]").split(b", "))), masked.sub(b"1", body))
    try:
        return b"%d " % len(body) + json.dumps(json.loads(body), sort_keys=True).encode()
    except ValueError:
        return body


def compare(direct: Sender, through: Sender, requests: Iterator[Sent], masked: re.Pattern[bytes]) -> dict[bytes, int]:
    """Send `requests` to both. Return how often each status came. Fails with the first five differences."""
    seen: dict[bytes, int] = {}
    different = []
    for each in requests:
        one, other = (
            answer._replace(body=comparable(answer.body, masked)) for answer in (direct.send(each), through.send(each))
        )
        seen[one.status] = seen.get(one.status, 0) + 1
        if one != other:
            different.append(f"{each}\n  Chroma:  {one}\n  gateway: {other}")
    direct.close()
    through.close()
    assert not different, f"{len(different)} of {sum(seen.values())}:\n" + "\n".join(different[:5])
    return seen


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A data directory with a collection that was read, and the collection's id."""
    path = tmp_path_factory.mktemp("chroma")
    with bare_chroma(path) as chroma:
        notes = chroma.client().create_collection("notes", embedding_function=None)
        ids = [str(i) for i in range(20)]
        vectors = [[i / 7, i / 3, 1.0] for i in range(20)]
        notes.add(
            ids=ids, embeddings=vectors, documents=[f"né {i}" for i in ids], metadatas=[{"n": i} for i in range(20)]
        )
        notes.count()
    return path, str(notes.id)


def start(stack: ExitStack, prepared: Path, to: Path) -> tuple[BareChroma, Front]:
    shutil.copytree(prepared, to)
    chroma = stack.enter_context(bare_chroma(to))
    return chroma, stack.enter_context(front(chroma.port))


@pytest.mark.parametrize("count", [1000, pytest.param(2000, marks=pytest.mark.soak)])
def test_reads_and_invalid_requests_get_the_same_response(
    prepared: tuple[Path, str], tmp_path: Path, count: int
) -> None:
    """Status, headers and body are Chroma's, byte for byte, for requests that change nothing."""
    with ExitStack() as stack:
        chroma, gateway = start(stack, prepared[0], tmp_path / "one")
        seen = compare(Sender(chroma.port), Sender(gateway.port), reads(prepared[1], count), _MOMENT)
    assert sum(seen.values()) >= count
    assert {status.split()[1] for status in seen} >= {b"200", b"400", b"404", b"405"}, "the requests are too uniform"
    assert seen[b"HTTP/1.1 200 OK"] > count / 10


@pytest.mark.parametrize("count", [300, pytest.param(800, marks=pytest.mark.soak)])
def test_writes_get_the_same_response(prepared: tuple[Path, str], tmp_path: Path, count: int) -> None:
    """The same writes to two Chromas, one of them behind the gateway. The data afterwards are the same, too."""
    with ExitStack() as stack:
        chroma, _ = start(stack, prepared[0], tmp_path / "one")
        _, gateway = start(stack, prepared[0], tmp_path / "other")
        seen = compare(Sender(chroma.port), Sender(gateway.port), writes(prepared[1], count), _UUID)
    assert sum(seen.values()) >= count
    assert {status.split()[1] for status in seen} >= {b"200", b"201", b"400", b"404", b"409"}, (
        "the requests are too uniform"
    )
