"""Documents in a whole house: stored, flagged, trained and found, on a directory and on a real S3 server."""

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

import tests.word_embedding  # registers the embedding function with the client, too
from tests import servers
from tests.house import ADMIN_TOKEN, House, house

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")

EMBEDDING = {"GATEWAY_EMBEDDING": "words_for_tests", "GATEWAY_EMBEDDING_MODULE": tests.word_embedding.__name__}
AVATAR = "/users/default/avatars/ada"
DATA = f"{AVATAR}/vectorstore_data"
AUTH = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


@contextmanager
def running(kind: str) -> Iterator[House]:
    if kind == "file":
        with house(**EMBEDDING) as built:
            yield built.start()
        return
    with servers.ministack() as server:
        server.make_bucket("documents")
        store = {"GATEWAY_STORE": "s3://documents/some/prefix", "GATEWAY_SNAPSHOT_ON_EXIT": "false"}
        with house(**EMBEDDING, **server.env, **store) as built:
            yield built.start()


@pytest.fixture(scope="module", params=["file", "s3"])
def shared(request: pytest.FixtureRequest) -> Iterator[House]:
    with running(request.param) as built:
        yield built


@pytest.fixture
def home(shared: House) -> Iterator[House]:
    """A house with no documents."""
    yield shared
    for avatar in shared.admin("GET", "/users/default/avatars").json()["avatars"]:
        job(shared, "DELETE", f"/users/default/avatars/{avatar}", json={"avatar_id": avatar})


def done(home: House, started: httpx.Response, timeout_s: float = 120) -> dict[str, Any]:
    """Wait for the end of a job."""
    assert started.status_code == 202, started.text
    give_up_at = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at:
        status: dict[str, Any] = home.admin("GET", f"/jobs/{started.json()['id']}").json()
        if status["state"] != "running":
            return status
        time.sleep(0.02)
    raise AssertionError(f"still running: {status}")


def job(home: House, method: str, path: str, **options: Any) -> dict[str, Any]:
    """The result of a job that must succeed."""
    status = done(home, home.admin(method, path, **options))
    assert status["state"] == "succeeded", status
    result: dict[str, Any] = status["result"]
    return result


def train(home: House, **asked: Any) -> dict[str, Any]:
    return job(home, "POST", f"{AVATAR}/vectorstore/train", json=asked)


def put(home: House, name: str, data: bytes | str, **params: Any) -> dict[str, Any]:
    answer = home.admin("PUT", f"{DATA}/{name}", content=data, params=params)
    assert answer.status_code in (200, 201), answer.text
    body: dict[str, Any] = answer.json()
    return body


def listed(home: House, path: str = DATA, **params: Any) -> dict[str, dict[str, Any]]:
    answer = home.admin("GET", path, params=params)
    assert answer.status_code == 200, answer.text
    return {each["name"]: each for each in answer.json()["documents"]}


def records(home: House, name: str = "avatar-ada") -> dict[str, list[str]]:
    """The chunks of each document, in order."""
    got = home.client().get_collection(name).get(include=["metadatas", "documents"])
    found: dict[str, dict[int, str]] = {}
    for metadata, text in zip(got["metadatas"] or [], got["documents"] or [], strict=True):
        found.setdefault(str(metadata["document"]), {})[int(str(metadata["chunk"]))] = text
    return {document: [chunks[n] for n in sorted(chunks)] for document, chunks in found.items()}


def test_a_document_lives(home: House) -> None:
    """Created, read, listed, replaced, copied and deleted; every answer says what it should."""
    data = os.urandom(100_000)
    digest = hashlib.sha256(data).hexdigest()
    created = home.admin("PUT", f"{DATA}/a/b%20%C3%BC.bin", content=data, params={"sha256": digest})
    assert created.status_code == 201
    body = created.json()
    assert (body["name"], body["size_bytes"], body["digest"], body["used"]) == (
        "a/b ü.bin",
        100_000,
        f"sha256:{digest}",
        True,
    )
    assert listed(home)["a/b ü.bin"] | {"modified_at": ""} == body | {"modified_at": ""}
    url = f"{DATA}/a/b ü.bin"
    got = home.admin("GET", url)
    assert (got.content, got.headers["etag"], got.headers["content-length"]) == (data, body["etag"], "100000")
    assert "attachment" in got.headers["content-disposition"]
    assert home.admin("HEAD", url).headers["content-length"] == "100000"
    assert home.admin("GET", url, extra={"If-None-Match": body["etag"]}).status_code == 304
    for asked, part in {"bytes=5-9": data[5:10], "bytes=99990-": data[99990:], "bytes=-3": data[-3:]}.items():
        ranged = home.admin("GET", url, extra={"Range": asked})
        assert (ranged.status_code, ranged.content) == (206, part)
    past = home.admin("GET", url, extra={"Range": "bytes=100000-"})
    assert (past.status_code, past.headers["content-range"]) == (416, "bytes */100000")
    assert home.admin("PUT", url, content=b"x", extra={"If-None-Match": "*"}).status_code == 412
    assert home.admin("PUT", url, content=b"x", extra={"If-Match": '"another"'}).status_code == 412
    replaced = home.admin("PUT", url, content=b"new", extra={"If-Match": body["etag"]})
    assert (replaced.status_code, home.admin("GET", url).content) == (200, b"new")
    copied = home.admin("POST", url, json={"path": "media/original/text/c.txt", "avatar_id": "bob"})
    assert copied.status_code == 201, copied.text
    assert home.admin("GET", "/users/default/avatars/bob/media/original/text/c.txt").content == b"new"
    assert home.admin("GET", "/users/default/avatars").json() == {"avatars": ["ada", "bob"]}
    assert home.admin("DELETE", url, extra={"If-Match": body["etag"]}).status_code == 412
    assert home.admin("DELETE", url).status_code == 204
    assert home.admin("GET", url).status_code == home.admin("DELETE", url).status_code == 404
    assert listed(home) == {}


def test_another_body_than_declared_is_not_stored(home: House) -> None:
    """However the digest is declared, and however late it shows; the old document stays."""
    put(home, "a.txt", b"old")
    wrong = hashlib.sha256(b"other").hexdigest()
    for options in (
        {"params": {"sha256": wrong}},
        {"extra": {"Content-Digest": "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"}},
        {"extra": {"Content-MD5": "1B2M2Y8AsgTpgAmY7PhCfg=="}},
    ):
        answer = home.admin("PUT", f"{DATA}/a.txt", content=b"n" * 9_000_000, **options)  # type: ignore[arg-type]
        assert (answer.status_code, "nothing was stored" in answer.json()["message"]) == (400, True)
    assert home.admin("GET", f"{DATA}/a.txt").content == b"old"


def test_a_link_where_the_store_has_them(home: House) -> None:
    """With S3 anybody can download by it; a directory has none, and says so."""
    put(home, "a.txt", b"linked")
    answer = home.admin("GET", f"{DATA}/a.txt", params={"link_s": 60})
    if "GATEWAY_STORE" in home.env:
        assert httpx.get(answer.json()["url"]).content == b"linked"
    else:
        assert answer.status_code == 400


def test_no_flip_is_lost(home: House) -> None:
    """20 clients flip flags of their own documents at once, and all of them are as each said last."""
    names = [f"{n}.txt" for n in range(20)]
    for name in names:
        put(home, name, name)

    def flip(name: str) -> None:
        for used in (False, True, False):
            assert home.admin("PATCH", f"{DATA}/{name}", json={"used": used}).status_code == 200

    with ThreadPoolExecutor(20) as clients:
        list(clients.map(flip, names))
    assert {name: each["used"] for name, each in listed(home).items()} == dict.fromkeys(names, False)


def test_training_follows_documents_and_flags(home: House) -> None:
    """Added, changed, unflagged and deleted documents; what is unchanged costs nothing; a broken one fails alone."""
    put(home, "a.md", "# Apples\n\nApples are red. " * 200)
    put(home, "b.txt", "Bananas are yellow.")
    put(home, "c.txt", "Cherries are dark.", used=False)
    put(home, "broken.pdf", b"%PDF-1.4 no")
    plan = train(home, dry_run=True)
    assert (plan["added"], plan["written"]) == (["a.md", "b.txt", "broken.pdf"], 0)
    first = train(home)
    assert (first["added"], list(first["failed"])) == (["a.md", "b.txt"], ["broken.pdf"])
    found = records(home)
    assert sorted(found) == ["a.md", "b.txt"]
    assert found["b.txt"] == ["Bananas are yellow."]
    assert len(found["a.md"]) > 3
    home.admin("DELETE", f"{DATA}/broken.pdf")
    again = train(home)
    assert (again["added"], again["changed"], again["unchanged"], again["written"]) == ([], [], 2, 0)
    put(home, "a.md", "Apples are green now.")
    home.admin("PATCH", f"{DATA}/b.txt", json={"used": False})
    home.admin("PATCH", DATA, json={"flags": {"c.txt": True}})
    third = train(home, metadata={"course": "fruit"})
    assert (third["added"], third["changed"], third["removed"]) == (["c.txt"], ["a.md"], ["b.txt"])
    assert records(home) == {"a.md": ["Apples are green now."], "c.txt": ["Cherries are dark."]}
    got = home.client().get_collection("avatar-ada").query(query_texts=["apples"], n_results=1)
    assert (got["documents"] or [[]])[0] == ["Apples are green now."]
    says = (got["metadatas"] or [[{}]])[0][0]
    assert (says["document"], says["chunk"], says["position"], says["course"]) == ("a.md", 0, 0, "fruit")
    assert says["digest"] == hashlib.sha256(b"Apples are green now.").hexdigest()


def test_deleting_an_avatar_deletes_everything_of_it_and_nothing_else(home: House) -> None:
    """It asks for the id once more, takes the collection along, and may be repeated."""
    put(home, "a.txt", "A text.")
    home.admin("PUT", f"{AVATAR}/adapters/weights.bin", content=b"w")
    home.admin("PUT", "/users/default/avatars/ada2/vectorstore_data/a.txt", content=b"stays")
    train(home)
    refused = home.admin("DELETE", AVATAR, json={"avatar_id": "ada2"})
    assert refused.status_code == 400
    result = job(home, "DELETE", AVATAR, json={"avatar_id": "ada"})
    assert (result["objects"], result["collection"]) == (3, "avatar-ada")
    assert home.admin("GET", "/users/default/avatars").json() == {"avatars": ["ada2"]}
    assert "avatar-ada" not in [each.name for each in home.client().list_collections()]
    assert home.admin("DELETE", AVATAR, json={"avatar_id": "ada"}).status_code == 404
