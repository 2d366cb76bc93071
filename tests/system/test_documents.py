"""Documents in a whole gateway: stored, flagged, trained and found, on a directory and on a real S3 server."""

import contextlib
import hashlib
import http.client
import http.server
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

import tests.word_embedding  # registers the embedding function with the client, too
from tests.documentation import DOCS, blocks
from tests.gateway_process import ADMIN_TOKEN, Gateway, gateway_process
from tests.servers import S3Server

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")

EMBEDDING = {"GATEWAY_EMBEDDING": "words_for_tests", "GATEWAY_EMBEDDING_MODULE": tests.word_embedding.__name__}
AVATAR = "/users/default/avatars/ada"
DATA = f"{AVATAR}/vectorstore_data"
AUTH = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


@contextmanager
def running(kind: str, ministack: S3Server) -> Iterator[Gateway]:
    store = {}
    if kind == "s3":
        bucket = ministack.new_bucket("documents")
        store = {"GATEWAY_STORE": f"s3://{bucket}/some/prefix", "GATEWAY_SNAPSHOT_ON_EXIT": "false", **ministack.env}
    with gateway_process(**EMBEDDING, **store) as built:
        yield built.start()


@pytest.fixture(scope="module", params=[pytest.param("file", marks=pytest.mark.soak), "s3"])
def shared(request: pytest.FixtureRequest, ministack: S3Server) -> Iterator[Gateway]:
    with running(request.param, ministack) as built:
        yield built


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """A gateway with no documents."""
    yield shared
    for avatar in shared.admin("GET", "/users/default/avatars").json()["avatars"]:
        job(shared, "DELETE", f"/users/default/avatars/{avatar}", json={"avatar_id": avatar})


def done(gateway: Gateway, started: httpx.Response, timeout_s: float = 120) -> dict[str, Any]:
    """Wait for the end of a job."""
    assert started.status_code == 202, started.text
    give_up_at = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at:
        status: dict[str, Any] = gateway.admin("GET", f"/jobs/{started.json()['id']}").json()
        if status["state"] != "running":
            return status
        time.sleep(0.02)
    raise AssertionError(f"still running: {status}")


def job(gateway: Gateway, method: str, path: str, **options: Any) -> dict[str, Any]:
    """The result of a job that must succeed."""
    status = done(gateway, gateway.admin(method, path, **options))
    assert status["state"] == "succeeded", status
    result: dict[str, Any] = status["result"]
    return result


def train(gateway: Gateway, **asked: Any) -> dict[str, Any]:
    return job(gateway, "POST", f"{AVATAR}/vectorstore/train", json=asked)


def put(gateway: Gateway, name: str, data: bytes | str, **params: Any) -> dict[str, Any]:
    answer = gateway.admin("PUT", f"{DATA}/{name}", content=data, params=params)
    assert answer.status_code in (200, 201), answer.text
    body: dict[str, Any] = answer.json()
    return body


def listed(gateway: Gateway, path: str = DATA, **params: Any) -> dict[str, dict[str, Any]]:
    answer = gateway.admin("GET", path, params=params)
    assert answer.status_code == 200, answer.text
    return {each["name"]: each for each in answer.json()["documents"]}


def records(gateway: Gateway, name: str = "avatar-ada") -> dict[str, list[str]]:
    """The chunks of each document, in order."""
    got = gateway.client().get_collection(name).get(include=["metadatas", "documents"])
    found: dict[str, dict[int, str]] = {}
    for metadata, text in zip(got["metadatas"] or [], got["documents"] or [], strict=True):
        found.setdefault(str(metadata["document"]), {})[int(str(metadata["chunk"]))] = text
    return {document: [chunks[n] for n in sorted(chunks)] for document, chunks in found.items()}


def test_a_document_lives(gateway: Gateway) -> None:
    """Created, read, listed, replaced, copied and deleted; every answer says what it should."""
    data = os.urandom(100_000)
    digest = hashlib.sha256(data).hexdigest()
    created = gateway.admin("PUT", f"{DATA}/a/b%20%C3%BC.bin", content=data, params={"sha256": digest})
    assert created.status_code == 201
    body = created.json()
    assert (body["name"], body["size_bytes"], body["digest"], body["used"]) == (
        "a/b ü.bin",
        100_000,
        f"sha256:{digest}",
        True,
    )
    assert listed(gateway)["a/b ü.bin"] | {"modified_at": ""} == body | {"modified_at": ""}
    url = f"{DATA}/a/b ü.bin"
    got = gateway.admin("GET", url)
    assert (got.content, got.headers["etag"], got.headers["content-length"]) == (data, body["etag"], "100000")
    assert "attachment" in got.headers["content-disposition"]
    assert gateway.admin("HEAD", url).headers["content-length"] == "100000"
    assert gateway.admin("GET", url, extra={"If-None-Match": body["etag"]}).status_code == 304
    for asked, part in {"bytes=5-9": data[5:10], "bytes=99990-": data[99990:], "bytes=-3": data[-3:]}.items():
        ranged = gateway.admin("GET", url, extra={"Range": asked})
        assert (ranged.status_code, ranged.content) == (206, part)
    for ignored in ("bytes=0-1,5-9", "bytes=0-" + "9" * 5000, "pages=1-2"):
        assert gateway.admin("GET", url, extra={"Range": ignored}).status_code == 200
    changed = gateway.admin("GET", url, extra={"Range": "bytes=5-9", "If-Range": '"another"'})
    assert (changed.status_code, changed.content) == (200, data)
    past = gateway.admin("GET", url, extra={"Range": "bytes=100000-"})
    assert (past.status_code, past.headers["content-range"]) == (416, "bytes */100000")
    assert gateway.admin("PUT", url, content=b"x", extra={"If-None-Match": "*"}).status_code == 412
    assert gateway.admin("PUT", url, content=b"x", extra={"If-Match": '"another"'}).status_code == 412
    replaced = gateway.admin("PUT", url, content=b"new", extra={"If-Match": body["etag"]})
    assert (replaced.status_code, gateway.admin("GET", url).content) == (200, b"new")
    copied = gateway.admin("POST", url, json={"path": "media/original/text/c.txt", "avatar_id": "bob"})
    assert copied.status_code == 201, copied.text
    assert gateway.admin("GET", "/users/default/avatars/bob/media/original/text/c.txt").content == b"new"
    assert gateway.admin("GET", "/users/default/avatars").json() == {"avatars": ["ada", "bob"]}
    assert gateway.admin("DELETE", url, extra={"If-Match": body["etag"]}).status_code == 412
    assert gateway.admin("DELETE", url).status_code == 204
    assert gateway.admin("GET", url).status_code == gateway.admin("DELETE", url).status_code == 404
    assert listed(gateway) == {}


def test_another_body_than_declared_is_not_stored(gateway: Gateway) -> None:
    """However the digest is declared, and however late it shows; the old document stays."""
    put(gateway, "a.txt", b"old")
    wrong = hashlib.sha256(b"other").hexdigest()
    for options in (
        {"params": {"sha256": wrong}},
        {"extra": {"Content-Digest": "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"}},
        {"extra": {"Content-MD5": "1B2M2Y8AsgTpgAmY7PhCfg=="}},
    ):
        answer = gateway.admin("PUT", f"{DATA}/a.txt", content=b"n" * 9_000_000, **options)
        assert (answer.status_code, "nothing was stored" in answer.json()["message"]) == (400, True)
    assert gateway.admin("GET", f"{DATA}/a.txt").content == b"old"


def test_a_link_where_the_store_has_them(gateway: Gateway) -> None:
    """With S3 anybody can download by it; a directory has none, and says so."""
    put(gateway, "a.txt", b"linked")
    answer = gateway.admin("GET", f"{DATA}/a.txt", params={"link_s": 60})
    if "GATEWAY_STORE" in gateway.env:
        assert httpx.get(answer.json()["url"]).content == b"linked"
    else:
        assert answer.status_code == 400


def test_no_flip_is_lost(gateway: Gateway) -> None:
    """20 clients flip flags of their own documents at once, and all of them are as each said last."""
    names = [f"{n}.txt" for n in range(20)]
    for name in names:
        put(gateway, name, name)

    def flip(name: str) -> None:
        for used in (False, True, False):
            assert gateway.admin("PATCH", f"{DATA}/{name}", json={"used": used}).status_code == 200

    with ThreadPoolExecutor(20) as clients:
        list(clients.map(flip, names))
    assert {name: each["used"] for name, each in listed(gateway).items()} == dict.fromkeys(names, False)


def test_training_follows_documents_and_flags(gateway: Gateway) -> None:
    """Added, changed, unflagged and deleted documents; what is unchanged costs nothing; a broken one fails alone."""
    put(gateway, "a.md", "# Apples\n\nApples are red. " * 200)
    put(gateway, "b.txt", "Bananas are yellow.")
    put(gateway, "c.txt", "Cherries are dark.", used=False)
    put(gateway, "broken.pdf", b"%PDF-1.4 no")
    plan = train(gateway, dry_run=True)
    assert (plan["added"], plan["written"]) == (["a.md", "b.txt", "broken.pdf"], 0)
    first = train(gateway)
    assert (first["added"], list(first["failed"])) == (["a.md", "b.txt"], ["broken.pdf"])
    found = records(gateway)
    assert sorted(found) == ["a.md", "b.txt"]
    assert found["b.txt"] == ["Bananas are yellow."]
    assert len(found["a.md"]) > 3
    gateway.admin("DELETE", f"{DATA}/broken.pdf")
    again = train(gateway)
    assert (again["added"], again["changed"], again["unchanged"], again["written"]) == ([], [], 2, 0)
    put(gateway, "a.md", "Apples are green now.")
    gateway.admin("PATCH", f"{DATA}/b.txt", json={"used": False})
    gateway.admin("PATCH", DATA, json={"flags": {"c.txt": True}})
    third = train(gateway, metadata={"course": "fruit"})
    assert (third["added"], third["changed"], third["removed"]) == (["c.txt"], ["a.md"], ["b.txt"])
    assert records(gateway) == {"a.md": ["Apples are green now."], "c.txt": ["Cherries are dark."]}
    got = gateway.client().get_collection("avatar-ada").query(query_texts=["apples"], n_results=1)
    assert (got["documents"] or [[]])[0] == ["Apples are green now."]
    says = (got["metadatas"] or [[{}]])[0][0]
    assert (says["document"], says["chunk"], says["position"], says["course"]) == ("a.md", 0, 0, "fruit")
    assert says["digest"] == hashlib.sha256(b"Apples are green now.").hexdigest()


@contextmanager
def listening() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server of somebody's, and the headers of what it was sent."""
    heard: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(dict(self.headers))
            texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
            answer = json.dumps([[1.0, 2.0, 3.0]] * len(texts)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", heard
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", ["huggingface_server", "words_for_tests"])
def test_a_collection_does_not_say_what_training_runs(gateway: Gateway, name: str) -> None:
    """Whoever may write to it could have keys of the gateway's sent anywhere, or run a model of theirs."""
    put(gateway, "a.txt", "A text.")
    if name == "words_for_tests":
        train(gateway)
    base = f"{gateway.url}/api/v2/tenants/default_tenant/databases/default_database/collections"
    with listening() as (url, heard):
        function = {"type": "known", "name": name, "config": {"url": url, "api_key_env_var": "GATEWAY_ADMIN_TOKEN"}}
        if name == "words_for_tests":
            collection_id = httpx.get(f"{base}/avatar-ada").json()["id"]
            body = {"new_configuration": {"embedding_function": function}}
            assert httpx.put(f"{base}/{collection_id}", json=body).status_code == 200
        else:
            body = {"name": "avatar-ada", "configuration": {"embedding_function": function}}
            assert httpx.post(base, json=body).status_code == 200
        put(gateway, "b.txt", "Another text.")
        status = done(gateway, gateway.admin("POST", f"{AVATAR}/vectorstore/train"))
        assert (status["state"], status["error"]["error"]) == ("failed", "UniqueConstraintError"), status
        assert "is embedded with" in status["error"]["message"]
        # Not by a request either, for who may train need not know the gateway's keys.
        for config in (function["config"], {"url": url, "kwargs": {"trust_remote_code": True}}):
            asked = {"embedding": {"name": "huggingface_server", "config": config}, "collection": "another"}
            refused = gateway.admin("POST", f"{AVATAR}/vectorstore/train", json=asked)
            assert (refused.status_code, "embedding" in refused.json()["message"]) == (400, True)
        assert not heard
    assert httpx.delete(f"{base}/avatar-ada").status_code == 200


def test_a_collection_is_trained_again_with_what_it_was_trained_with(gateway: Gateway) -> None:
    """Whoever trains says it each time, unless the settings do; another one, or another configuration, is refused."""
    put(gateway, "a.txt", "A text.")
    with listening() as (url, heard):
        embedding = {"name": "huggingface_server", "config": {"url": url}}
        assert train(gateway, embedding=embedding)["added"] == ["a.txt"]
        put(gateway, "b.txt", "Another text.")
        assert train(gateway, embedding=embedding)["added"] == ["b.txt"]
        assert heard
        put(gateway, "c.txt", "A third text.")
        elsewhere = embedding | {"config": {"url": f"{url}elsewhere"}}
        for asked in ({}, {"embedding": elsewhere}):
            status = done(gateway, gateway.admin("POST", f"{AVATAR}/vectorstore/train", json=asked))
            assert (status["state"], status["error"]["error"]) == ("failed", "UniqueConstraintError"), status
        assert sorted(records(gateway)) == ["a.txt", "b.txt"]


def test_deleting_an_avatar_deletes_everything_of_it_and_nothing_else(gateway: Gateway) -> None:
    """It asks for the id once more, takes the collection along, and may be repeated."""
    put(gateway, "a.txt", "A text.")
    gateway.admin("PUT", f"{AVATAR}/adapters/weights.bin", content=b"w")
    gateway.admin("PUT", "/users/default/avatars/ada2/vectorstore_data/a.txt", content=b"stays")
    train(gateway)
    refused = gateway.admin("DELETE", AVATAR, json={"avatar_id": "ada2"})
    assert refused.status_code == 400
    result = job(gateway, "DELETE", AVATAR, json={"avatar_id": "ada"})
    assert (result["objects"], result["collection"]) == (3, "avatar-ada")
    assert gateway.admin("GET", "/users/default/avatars").json() == {"avatars": ["ada2"]}
    assert "avatar-ada" not in [each.name for each in gateway.client().list_collections()]
    assert gateway.admin("DELETE", AVATAR, json={"avatar_id": "ada"}).status_code == 404


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../x",
        "../../x",
        "a/../../../x",
        "%2e%2e/x",
        "a//b",
        "a/",
        ".",
        "a%00b",
        "a%0Ab",
        "a%FFb",
        "a%5Cb",
        "x" * 1100,
    ],
)
def test_no_name_leads_out(gateway: Gateway, name: str) -> None:
    """A name that could is refused by every method, and nothing appears anywhere; sent as it is, not made plain."""
    before = everything(gateway)
    for method in ("PUT", "GET", "DELETE", "PATCH", "POST"):
        body = {"PATCH": b'{"used": true}', "POST": b'{"path": "vectorstore_data/c"}'}.get(method, b"")
        status = raw(gateway, method, f"/admin{DATA}/{name}", body)
        assert status in (400, 404, 405), (method, status)
    assert raw(gateway, "PUT", f"/admin/users/another/avatars/ada/vectorstore_data/{'x'}", b"x") == 404
    assert raw(gateway, "PUT", "/admin/users/default/avatars/ada/adapters/training_data", b"x") == 405
    assert raw(gateway, "PUT", "/admin/users/default/avatars/ada/adapters/metadata/metadata.json", b"{}") == 405
    assert raw(gateway, "PUT", "/admin/users/default/avatars/..%2Fvectorstore/vectorstore_data/x", b"x") in (400, 404)
    assert raw(gateway, "PUT", "/admin/users/default/image/..%2Fvectorstore/repository.json", b"x") == 400
    assert everything(gateway) == before


@pytest.mark.parametrize("name", ["ü", "u\u0308", "日本語/😀.txt", " a ", "a?b#c&d+e%2F", "...", "'\"<>|*"])
def test_names_are_kept_exactly(gateway: Gateway, name: str) -> None:
    """Both forms of an umlaut are two documents."""
    body = put(gateway, quote(name, safe=""), name.encode())
    assert body["name"] == name
    assert list(listed(gateway)) == [name]
    assert gateway.admin("GET", f"{DATA}/{quote(name, safe='')}").content == name.encode()
    assert train_names(gateway) >= {name} if name.endswith(".txt") else True


def raw(gateway: Gateway, method: str, target: str, body: bytes) -> int:
    """The status of a request whose target nobody has touched."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)) as connection:
        connection.putrequest(method, target, skip_accept_encoding=True)
        for key, value in (AUTH | {"Content-Type": "application/json", "Content-Length": str(len(body))}).items():
            connection.putheader(key, value)
        connection.endheaders(body)
        return connection.getresponse().status


def everything(gateway: Gateway) -> list[str]:
    """The names of all documents of all folders, by the API, and all files of a store that is a directory."""
    files = [str(path) for path in gateway.directory.rglob("*") if path.is_file() and "store" in str(path)]
    return sorted([*files, *gateway.admin("GET", "/users/default/avatars").json()["avatars"]])


def train_names(gateway: Gateway) -> set[str]:
    train(gateway)
    return set(records(gateway))


def test_pages_are_complete(gateway: Gateway) -> None:
    """In pages of any size every document comes once, in order."""
    names = [f"{n:02}/x" for n in range(7)]
    for name in names:
        put(gateway, name, b"x")
    for limit in (1, 3, 7, 100):
        found: list[str] = []
        after: str | None = ""
        while after is not None:
            page = gateway.admin("GET", DATA, params={"limit": limit, "after": after}).json()
            found += [each["name"] for each in page["documents"]]
            after = page["next"]
        assert found == names
    assert list(listed(gateway, prefix="03")) == ["03/x"]


def test_flags_that_were_edited_by_hand(gateway: Gateway) -> None:
    """A missing file and stale entries are repaired; one that cannot be read is an error and stays as it is."""
    if "GATEWAY_STORE" in gateway.env:
        pytest.skip("the file is edited in the directory")
    put(gateway, "a.txt", b"a", used=False)
    put(gateway, "b.txt", b"b")
    file = gateway.store_dir / "users/default/avatars/ada/vectorstore_metadata/metadata.json"
    assert json.loads(file.read_text()) == {"a.txt": False, "b.txt": True}
    file.write_text('{"a.txt": "no", "gone.txt": true}')
    assert {name: each["used"] for name, each in listed(gateway).items()} == {"a.txt": False, "b.txt": True}
    train(gateway)
    assert json.loads(file.read_text()) == {"a.txt": False, "b.txt": True}
    file.unlink()
    train(gateway)
    assert json.loads(file.read_text()) == {"a.txt": True, "b.txt": True}
    file.write_text("{oops")
    for answer in (
        gateway.admin("GET", DATA),
        gateway.admin("PATCH", f"{DATA}/a.txt", json={"used": True}),
    ):
        assert (answer.status_code, "metadata.json" in answer.json()["message"]) == (409, True)
    status = done(gateway, gateway.admin("POST", f"{AVATAR}/vectorstore/train"))
    assert (status["state"], "metadata.json" in status["error"]["message"]) == ("failed", True)
    assert file.read_text() == "{oops"
    file.unlink()


def test_a_cancelled_training_is_finished_by_the_next(gateway: Gateway) -> None:
    """Whatever was done when it was cancelled stays right, and is not done again."""
    for n in range(40):
        put(gateway, f"{n:02}.txt", f"document number {n} " * 400)
    started = gateway.admin("POST", f"{AVATAR}/vectorstore/train")
    assert gateway.admin("POST", f"{AVATAR}/vectorstore/train").status_code in (202, 409)
    path = f"/jobs/{started.json()['id']}"
    while gateway.admin("GET", path).json()["phase"] != "train" or gateway.admin("GET", path).json()["done"] < 3:
        time.sleep(0.01)
    assert gateway.admin("DELETE", path).json()["state"] == "cancelled"
    result = train(gateway)
    assert result["unchanged"] >= 3
    assert result["unchanged"] + len(result["added"]) + len(result["changed"]) == 40
    found = records(gateway)
    assert sorted(found) == [f"{n:02}.txt" for n in range(40)]
    assert all(f"number {int(name[:2])} " in chunk for name, chunks in found.items() for chunk in chunks)


def test_a_training_does_not_claim_what_a_restore_took_away(ministack: S3Server) -> None:
    """One during which a snapshot was restored fails, or has done it all; the next is right in any case."""
    with running("file", ministack) as gateway:
        for n in range(5):
            put(gateway, f"{n:02}.txt", f"document number {n}")
        train(gateway)
        snapshot = gateway.snapshot()
        for n in range(5, 10):
            put(gateway, f"{n:02}.txt", f"document number {n}")
        train(gateway)
        for n in range(10, 30):
            put(gateway, f"{n:02}.txt", f"document number {n} " * 500)
        started = gateway.admin("POST", f"{AVATAR}/vectorstore/train")
        path = f"/jobs/{started.json()['id']}"
        gateway.until(lambda: gateway.admin("GET", path).json()["phase"] in ("train", "remove"), "it trains")
        assert gateway.admin("POST", f"/snapshot/{snapshot['id']}/restore").status_code in (200, 202)
        status = done(gateway, started)
        whole = sorted(records(gateway)) == [f"{n:02}.txt" for n in range(30)]
        assert whole or status["state"] == "failed", status
        train(gateway)
        assert sorted(records(gateway)) == [f"{n:02}.txt" for n in range(30)]


@pytest.mark.parametrize("kind", [pytest.param("file", marks=pytest.mark.soak), "s3"])
def test_a_killed_gateway_leaves_nothing_half(ministack: S3Server, kind: str) -> None:
    """Killed in an upload, in a training and in the deletion of an avatar; each is right when done again."""
    with running(kind, ministack) as gateway:
        put(gateway, "a.txt", b"old")

        def pieces() -> Iterator[bytes]:
            for n in range(60):
                if n == 40:
                    gateway.kill_gateway()
                yield b"n" * 500_000

        with contextlib.suppress(httpx.TransportError):
            gateway.admin("PUT", f"{DATA}/a.txt", content=pieces())
        gateway.wait_until_ready()
        assert gateway.admin("GET", f"{DATA}/a.txt").content == b"old"
        for n in range(15):
            put(gateway, f"{n:02}.txt", f"document number {n} " * 300)
        started = gateway.admin("POST", f"{AVATAR}/vectorstore/train").json()
        while gateway.admin("GET", f"/jobs/{started['id']}").json()["done"] < 5:
            time.sleep(0.01)
        gateway.kill_gateway()
        gateway.wait_until_ready()
        result = train(gateway)
        assert result["unchanged"] >= 4
        assert len(records(gateway)) == 16
        gateway.admin("DELETE", AVATAR, json={"avatar_id": "ada"})
        gateway.kill_gateway()
        gateway.wait_until_ready()
        again = gateway.admin("DELETE", AVATAR, json={"avatar_id": "ada"})
        if again.status_code != 404:  # the kill was early enough
            assert done(gateway, again)["state"] == "succeeded"
        assert gateway.admin("GET", "/users/default/avatars").json() == {"avatars": []}
        assert "avatar-ada" not in [each.name for each in gateway.client().list_collections()]


LONG_UPLOAD_MIB = int(os.environ.get("LONG_UPLOAD_MIB", "384"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("size_mib", [160, pytest.param(LONG_UPLOAD_MIB, marks=pytest.mark.soak)])
def test_a_long_upload_takes_no_memory(gateway: Gateway, size_mib: int) -> None:
    """However much goes up and comes down again, the gateway stays under 200 MB. `LONG_UPLOAD_MIB=2048` for 2 GB."""
    size, piece = size_mib << 20, os.urandom(1 << 20)
    peak = 0

    def memory() -> int:
        status = Path(f"/proc/{gateway.pid('gateway')}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def pieces() -> Iterator[bytes]:
        for _ in range(size >> 20):
            yield piece

    answer = httpx.put(
        f"{gateway.url}/admin{DATA}/long.bin",
        content=pieces(),
        headers=AUTH | {"Content-Length": str(size)},
        timeout=500,
    )
    assert (answer.status_code, answer.json()["size_bytes"]) == (201, size), answer.text
    peak = memory()
    if "GATEWAY_STORE" not in gateway.env:  # the S3 server for tests holds it all in memory
        with httpx.stream("GET", f"{gateway.url}/admin{DATA}/long.bin", headers=AUTH, timeout=170) as got:
            assert sum(len(each) for each in got.iter_raw()) == size
        peak = max(peak, memory())
    gateway.admin("DELETE", f"{DATA}/long.bin")
    print(f"peak {peak >> 20} MiB")
    assert peak < 200 << 20


@pytest.mark.parametrize("documents", [50, pytest.param(300, marks=pytest.mark.soak)])
def test_unchanged_documents_cost_next_to_nothing(gateway: Gateway, documents: int) -> None:
    """Training documents that did not change takes a fraction of the time that the first training took."""
    with ThreadPoolExecutor(8) as clients:
        list(clients.map(lambda n: put(gateway, f"{n:04}.txt", f"document {n} " * 50, used=True), range(documents)))
    began = time.monotonic()
    train(gateway)
    trained = time.monotonic()
    assert train(gateway)["unchanged"] == documents
    assert time.monotonic() - trained < (trained - began) / 2


def test_the_documented_commands_work(gateway: Gateway, tmp_path: Path) -> None:
    """Those of docs/training-documents.md, as they are written there."""
    block = "".join(each for _, each in blocks(DOCS / "training-documents.md", "bash"))
    done = subprocess.run(
        ["bash", "-euc", block.replace("http://127.0.0.1:8000", gateway.url)],
        cwd=tmp_path,
        env={**os.environ, "GATEWAY_ADMIN_TOKEN": ADMIN_TOKEN},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"notes.md"') == 3
    refused = gateway.admin("DELETE", AVATAR, json={"avatar_id": "ada"})
    assert refused.status_code in (202, 404, 409)
    gateway.until(
        lambda: all(each["state"] != "running" for each in gateway.admin("GET", "/jobs").json()["jobs"]), "it is idle"
    )
