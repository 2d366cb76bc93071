"""A gateway that others can reach: limits, browsers, the audit, what is closed by default, and what is measured."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from chromadb.errors import RateLimitError
from prometheus_client.parser import text_string_to_metric_families

from tests.commands import run_command, run_process
from tests.documentation import DOCS, blocks
from tests.gateway_process import ADMIN_TOKEN, Gateway, gateway_process
from tests.keys import Keys

BASE = "/api/v2/tenants/default_tenant/databases/default_database"
ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
PAGE = "https://app.example.com"


class Served:
    def __init__(self, built: Gateway, keys: Keys, audit: Path) -> None:
        self.gateway_process, self.keys, self.audit = built, keys, audit

    def ask(self, who: str | None, method: str, path: str, **kwargs: Any) -> httpx.Response:
        headers = (self.keys.bearer(who) if who else {}) | kwargs.pop("headers", {})
        return httpx.request(method, self.gateway_process.url + path, headers=headers, timeout=30, **kwargs)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    keys = Keys(tmp_path_factory.mktemp("keys") / "keys.json")
    keys.add("writer", "writer")
    keys.add("reader", "reader")
    keys.add("part", "reader", tenants=["acme"])
    keys.add("slow", "writer", limits={"requests_per_s": 2})
    keys.add("single", "writer", limits={"in_flight": 1})
    keys.add("small", "writer", limits={"body_bytes": 2000, "records": 3})
    audit = keys.path.with_name("audit")
    with gateway_process(
        GATEWAY_KEYS_FILE=str(keys.path),
        GATEWAY_AUDIT_FILE=str(audit),
        GATEWAY_CORS_ORIGINS=f"{PAGE}, http://localhost:3000",
        GATEWAY_LOG_FORMAT="json",
        GATEWAY_LIMIT_REQUESTS_PER_S="1000",
        GATEWAY_TRUSTED_PROXIES="127.0.0.1",
        RUST_LOG="error,chroma=trace",  # as Chroma does without a gateway
    ) as built:
        yield Served(built.start(), keys, audit)
        assert built.stop() == 0


@pytest.fixture(scope="module")
def open_gateway() -> Iterator[Gateway]:
    """A gateway that asks for no key, in an environment with a proxy that does not answer."""
    proxy = "http://127.0.0.1:9"
    with gateway_process(GATEWAY_CORS_ORIGINS=PAGE, HTTP_PROXY=proxy, http_proxy=proxy) as built:
        yield built.start()
        assert built.stop() == 0


# ---------------------------------------------------------------------- limits


def test_requests_a_second(served: Served) -> None:
    """More get 429 and when to come back; other keys do not feel it."""
    answers = [served.ask("slow", "GET", f"{BASE}/collections") for _ in range(6)]
    assert [answer.status_code for answer in answers[:2]] == [200, 200]
    late = [answer for answer in answers if answer.status_code == 429]
    assert len(late) >= 3
    assert late[0].headers["retry-after"] == "1"
    assert late[0].json()["error"] == "RateLimitError"
    assert served.ask("writer", "GET", f"{BASE}/collections").status_code == 200
    client = served.gateway_process.client(headers={"X-Chroma-Token": served.keys.tokens["writer"]})
    client.set_tenant("default_tenant")
    client._server._session.headers["X-Chroma-Token"] = served.keys.tokens["slow"]  # type: ignore[attr-defined]

    def hurry() -> None:
        for _ in range(6):
            client.list_collections()

    with pytest.raises(RateLimitError, match="2 requests a second"):
        hurry()


def test_requests_in_flight(served: Served) -> None:
    """One more than allowed is refused while the others are under way, and only then."""
    made = served.ask("writer", "POST", f"{BASE}/collections", json={"name": "in-flight", "get_or_create": True})
    path = f"{BASE}/collections/{made.json()['id']}/add"
    body = json.dumps({"ids": ["1"], "embeddings": [[1, 2, 3]]}).encode()
    token = served.keys.tokens["single"]
    with socket.create_connection(("127.0.0.1", served.gateway_process.port), 10) as wire:
        wire.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Chroma-Token: {token}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body[:-1]
        )
        served.gateway_process.until(
            lambda: served.ask("single", "GET", f"{BASE}/collections").status_code == 429, "it counts"
        )
        wire.sendall(body[-1:])
        assert wire.recv(100).startswith(b"HTTP/1.1 201")
    assert served.ask("single", "GET", f"{BASE}/collections").status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_records_and_bytes_of_one_write(served: Served, chunked: bool) -> None:
    """However the body is framed; what is refused leaves no record behind."""
    made = served.ask("writer", "POST", f"{BASE}/collections", json={"name": f"small-{chunked}"})
    path = f"{BASE}/collections/{made.json()['id']}"

    def add(records: int, document: str = "", verb: str = "upsert") -> httpx.Response:
        body = json.dumps(
            {
                "ids": [str(number) for number in range(records)],
                "embeddings": [[1, 2, 3]] * records,
                "documents": [document] * records,
            }
        ).encode()
        content = iter([body[:10], body[10:]]) if chunked else body
        return served.ask(
            "small", "POST", f"{path}/{verb}", content=content, headers={"Content-Type": "application/json"}
        )

    for verb in ("add", "upsert", "update"):
        refused = add(4, verb=verb)
        assert (refused.status_code, refused.json()["error"]) == (413, "ChromaError")
        assert "4 records at once" in refused.json()["message"]
    assert add(1, "x" * 2000).status_code == 413
    assert served.ask("reader", "GET", f"{path}/count").text == "0"
    assert add(3).status_code == 200
    assert served.ask("reader", "GET", f"{path}/count").text == "3"
    broken = served.ask(
        "small", "POST", f"{path}/add", content=b'{"ids": [', headers={"Content-Type": "application/json"}
    )
    assert broken.status_code == 400


# ---------------------------------------------------------------------- browsers


def test_pages_of_our_origins_may_ask(served: Served) -> None:
    """The question before, the answer, and the refusal can all be read by the page; the key is wanted as ever."""
    asked = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    before = served.ask(None, "OPTIONS", f"{BASE}/collections", headers=asked)
    assert before.status_code == 204
    assert before.headers["access-control-allow-origin"] == PAGE
    assert "Authorization" in before.headers["access-control-allow-headers"]
    assert "POST" in before.headers["access-control-allow-methods"]
    for who, status in (("reader", 200), (None, 401), ("part", 200)):
        answer = served.ask(who, "GET", f"{BASE}/collections", headers={"Origin": PAGE})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["https://evil.example.com", "https://app.example.com.evil.com", "http://app.example.com", "null", ""]
)
def test_pages_of_others_may_not(served: Served, origin: str) -> None:
    """One exact origin and nothing like it."""
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert served.ask(None, "OPTIONS", f"{BASE}/collections", headers=asked).status_code == 401
    answer = served.ask("reader", "GET", f"{BASE}/collections", headers={"Origin": origin})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_others_change_nothing_where_no_key_is_needed(open_gateway: Gateway, site: str) -> None:
    """A browser sends what any page wants, without a question before, if it has no Content-Type; Chroma takes that."""
    told = {"Origin": "https://evil.example.com", "Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
    collections = f"{open_gateway.url}{BASE}/collections"

    def make(name: str, headers: dict[str, str]) -> int:
        content = json.dumps({"name": f"{name}-{site}"}).encode()
        return httpx.post(collections, content=content, headers=headers).status_code

    assert make("theirs", told) == 403
    assert f"theirs-{site}" not in [each["name"] for each in httpx.get(collections).json()]
    # A link that is clicked, a page of ours, a page that came from here, and a client that is no browser.
    assert httpx.get(f"{open_gateway.url}/api/v2/version", headers=told).status_code == 200
    assert make("ours", told | {"Origin": PAGE}) == 200
    assert make("from-here", told | {"Origin": "http://behind-a-proxy", "Sec-Fetch-Site": "same-origin"}) == 200
    assert make("mine", {}) == 200


# ---------------------------------------------------------------------- the audit


def notes(served: Served, **wanted: Any) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in served.audit.read_text().splitlines()]
    return [line for line in lines if wanted.items() <= line.items()]


def test_what_was_done_is_written_down(served: Served) -> None:
    """Who, from where (as our proxy says), what and how it ended; refused or not; never what was in it."""
    headers = {"X-Forwarded-For": "6.6.6.6, 8.8.4.4", "X-Request-Id": "deed-1"}
    name = "secret-body"
    served.ask("writer", "POST", f"{BASE}/collections", json={"name": "doomed", "get_or_create": True})
    served.ask("writer", "DELETE", f"{BASE}/collections/doomed", headers=headers)
    served.ask("reader", "DELETE", f"{BASE}/collections/doomed", headers=headers)
    served.ask(None, "DELETE", f"{BASE}/collections/doomed", headers=headers)
    httpx.post(
        f"{served.gateway_process.url}/admin/snapshot", json={"label": name}, headers=ADMIN | headers, timeout=60
    )
    served.gateway_process.until(lambda: bool(notes(served, who="admin")), "it is written", 10)
    (deleted,) = notes(served, action="delete_collection", status=200)
    assert (deleted["who"], deleted["role"], deleted["address"]) == ("writer", "writer", "8.8.4.4")
    assert (deleted["method"], deleted["path"]) == ("DELETE", f"{BASE}/collections/doomed")
    assert deleted["request_id"] == "deed-1"
    assert [note["who"] for note in notes(served, action="delete_collection", status=403)] == ["reader"]
    (snapshot,) = notes(served, who="admin", path="/admin/snapshot")
    assert (snapshot["status"], snapshot["address"], snapshot["request_id"]) == (201, "8.8.4.4", "deed-1")
    assert httpx.post(f"{served.gateway_process.url}/admin/gc", headers=served.keys.bearer("reader")).status_code == 403
    served.gateway_process.until(lambda: bool(notes(served, who="reader", path="/admin/gc")), "it is written", 10)
    assert [note["status"] for note in notes(served, who="reader", path="/admin/gc")] == [403]
    text = served.audit.read_text()
    assert name not in text
    assert not any(token in text for token in (*served.keys.tokens.values(), ADMIN_TOKEN))
    assert served.audit.stat().st_mode & 0o777 == 0o600


# ---------------------------------------------------------------------- metrics, status, logs


def test_who_may_scrape(served: Served) -> None:
    """Whoever sees everything; names of keys and collections are not for others."""
    statuses = {who: served.ask(who, "GET", "/metrics").status_code for who in (None, "part", "reader", "writer")}
    assert statuses == {None: 401, "part": 403, "reader": 200, "writer": 200}


def test_what_was_asked_is_counted(served: Served) -> None:
    """By route, method, status and key; a stranger adds no label."""
    for number in range(20):
        headers = {"Authorization": f"Bearer wrong-{number}"}
        assert served.ask(None, "GET", f"/api/v2/tenants/strange-{number}", headers=headers).status_code == 401
    served.ask("reader", "GET", f"{BASE}/collections/absent")
    families = text_string_to_metric_families(served.ask("reader", "GET", "/metrics").text)
    counted = {
        (each.labels["route"], each.labels["status"], each.labels["key"]): each.value
        for family in families
        for each in family.samples
        if each.name == "chroma_gateway_requests_total"
    }
    assert counted["get_tenant", "401", "none"] >= 20
    assert counted["get_collection", "404", "reader"] >= 1
    assert not any("strange" in word or "wrong" in word for label in counted for word in label)


def test_one_screen(served: Served) -> None:
    """`chroma-gateway status` says what an operator asks first, and ends with an error where nobody answers."""

    served.ask("writer", "POST", f"{BASE}/collections", json={"name": "on-the-screen", "get_or_create": True})
    shown = run_process(served.gateway_process, "status")
    assert shown.returncode == 0, shown.stderr
    for words in ("ready", "gate open", "Chroma up", "free", "store file://", "collection(s)"):
        assert words in shown.stdout
    assert len(shown.stdout.splitlines()) < 40
    nobody = run_command(served.gateway_process, "status", PORT="1")
    assert nobody.returncode == 1
    assert "no gateway answers" in nobody.stderr


def test_every_line_of_the_log_is_an_object(served: Served) -> None:
    """Ours and Chroma's, with Google Cloud's words; supervisord's own lines aside."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "X-Request-Id": "asked-1"}
    answer = httpx.get(f"{served.gateway_process.url}/admin/status", headers=ADMIN | headers, timeout=30)
    assert answer.headers["x-request-id"] == "asked-1"
    served.gateway_process.until_logged('"asked-1"')
    lines = served.gateway_process.output().splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert all(event["severity"] and event["message"] and event["timestamp"] for event in events)
    assert not any("event" in event for event in events)
    assert not any("((((" in event["message"] or "Saving data to" in event["message"] for event in events)
    others = [line for line in lines if not line.startswith("{")]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARN)", line) for line in others), others
    assert any("Frontend server listening" in event["message"] for event in events if event["program"] == "chroma")
    (mine,) = [event for event in events if event.get("request_id") == "asked-1"]
    assert (mine["trace_id"], mine["logging.googleapis.com/trace"]) == (trace, trace)


def test_a_request_id_goes_in_and_out(served: Served) -> None:
    """The client's own comes back, on both sides of the gateway; else there is a new one."""
    for path in (f"{BASE}/collections", "/healthz", "/api/v2/nonsense"):
        assert served.ask("reader", "GET", path, headers={"X-Request-Id": "mine"}).headers["x-request-id"] == "mine"
        assert served.ask("reader", "GET", path).headers["x-request-id"]


# ---------------------------------------------------------------------- docs/security.md


def test_the_documented_commands_make_keys_that_work(tmp_path: Path) -> None:
    """`key new` prints what the file wants, as the page shows it, and the key alone on the other stream."""
    ((_, shown),) = blocks(DOCS / "security.md", "bash")
    commands = re.findall(r"^chroma-gateway (key new .*) >> keys\.toml$", shown, re.MULTILINE)
    assert len(commands) == 2
    tokens, file = [], tmp_path / "keys.toml"
    ((_, code),) = blocks(DOCS / "security.md", "python")
    with gateway_process() as built:
        built.start()
        for command in (*commands, commands[0]):  # the last time the tenant is there
            made = subprocess.run(
                [sys.executable, "-m", "gateway", *shlex.split(command)],
                capture_output=True,
                text=True,
                check=True,
                cwd=built.directory,
                env=built.env,
            )
            with file.open("a") as opened:
                opened.write(made.stdout.replace("crawler", f"crawler{len(tokens)}"))
            tokens += re.findall(r"cgw_\S+", made.stderr)
            assert "cgw_" not in made.stdout
        assert built.stop() == 0
        built.env["GATEWAY_KEYS_FILE"] = str(file)
        built.start()
        for token in tokens:
            found: dict[str, Any] = {"key": token}
            exec(code.replace("port=8000", f"port={built.port}"), found)
            assert found["client"].list_collections() == []
        assert built.stop() == 0


# ---------------------------------------------------------------------- open, closed, reset


def test_reset_is_refused_unless_it_is_allowed(open_gateway: Gateway) -> None:
    """In Chroma's words; allowed, it is an admin's, and Chroma does it."""
    refused = httpx.post(f"{open_gateway.url}/api/v2/reset")
    assert (refused.status_code, refused.json()["error"]) == (403, "ChromaError")
    assert refused.json()["message"] == "Reset is disabled by config"
    with gateway_process(GATEWAY_ALLOW_RESET="true") as built:
        built.start()
        built.client().create_collection("doomed", embedding_function=None)
        assert httpx.post(f"{built.url}/api/v2/reset").status_code == 200
        assert built.client().list_collections() == []
        assert built.stop() == 0


def test_nobody_listens_to_the_world_by_accident() -> None:
    """The start ends with status 2 and says what to set."""
    with gateway_process(HOST="0.0.0.0") as built:
        del built.env["GATEWAY_ADMIN_TOKEN"]
        built.start(ready=False)
        assert built.wait() == 2
        assert "GATEWAY_KEYS_FILE" in built.output()
        assert "GATEWAY_ALLOW_ANONYMOUS=true" in built.output()


def test_the_admin_token_alone_closes_the_gateway() -> None:
    """Beyond loopback it is the one key; Chroma itself listens to this machine only."""
    with gateway_process(HOST="0.0.0.0") as built:
        built.start()
        path = f"{built.url}{BASE}/collections"
        assert httpx.get(path).status_code == 401
        assert httpx.get(path, headers=ADMIN).status_code == 200
        with socket.socket() as probe:
            probe.settimeout(1)
            assert probe.connect_ex(("127.0.0.2", built.chroma_port)) != 0
        assert built.stop() == 0


def test_who_allows_anybody_gets_anybody() -> None:
    """And strange tokens are ignored, as nobody gave them out."""
    with gateway_process(HOST="0.0.0.0", GATEWAY_ALLOW_ANONYMOUS="true") as built:
        built.start()
        for headers in ({}, {"Authorization": "Bearer whatever"}, {"Authorization": "Basic x"}):
            assert httpx.get(f"{built.url}{BASE}/collections", headers=headers).status_code == 200
            assert httpx.get(f"{built.url}/admin/snapshot", headers=headers).status_code == 401
        assert built.stop() == 0


def test_readyz_says_how_far_it_is(open_gateway: Gateway) -> None:
    """While Chroma is down: the phase, in words for machines too."""
    pid = open_gateway.pid("chroma")
    assert pid
    seen: list[dict[str, Any]] = []
    stop = threading.Event()

    def look() -> None:
        # One connection: Chroma is back within 0.2 s.
        with httpx.Client(base_url=open_gateway.url) as client:
            while not stop.is_set():
                answer = client.get("/readyz")
                if answer.status_code == 503:
                    seen.append(answer.json())

    thread = threading.Thread(target=look)
    thread.start()
    os.kill(pid, signal.SIGKILL)
    open_gateway.until(lambda: bool(seen), "it is not ready", 20)
    open_gateway.wait_until_ready()
    stop.set()
    thread.join()
    assert all(each["error"] == "Unavailable" and each["message"] for each in seen)
    assert {each["phase"] for each in seen} <= {"preparing", "starting", "reading"}


def test_the_age_of_the_last_snapshot_outlives_the_gateway(open_gateway: Gateway) -> None:
    """A gateway that starts anew knows it from the store, so that an alert on it does not cry wolf."""
    age = re.compile(r"^chroma_gateway_last_snapshot_age_seconds (.*)$", re.MULTILINE)

    def told() -> float:
        (found,) = age.findall(httpx.get(f"{open_gateway.url}/metrics").text)
        return float(found)

    assert told() == float("inf")
    open_gateway.snapshot()
    assert 0 <= told() < 60
    text = httpx.get(f"{open_gateway.url}/metrics").text
    assert 'chroma_gateway_snapshots_total{outcome="ok"} 1.0' in text
    assert re.search(r'chroma_gateway_store_bytes_total\{direction="up"\} [1-9]', text)
    assert open_gateway.stop() == 0
    open_gateway.start()
    open_gateway.until(lambda: 0 <= told() < 60, "it is known again", 20)


def test_a_proxy_of_the_environments_gets_nothing_of_this_machines(open_gateway: Gateway) -> None:
    """The gateway reaches its Chroma, and commands the gateway, without it: they carry data and the admin token."""
    for command in (["list"], ["documents", "avatars"], ["status"]):
        shown = run_command(open_gateway, *command)
        assert shown.returncode == 0, shown.stderr
