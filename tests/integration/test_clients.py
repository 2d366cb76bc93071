"""Chroma's own clients, and LangChain, through the gateway: they notice nothing."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import chromadb
import httpx
import numpy as np
import pytest
from chromadb.api import AdminAPI, AsyncClientAPI, ClientAPI
from chromadb.config import Settings
from chromadb.errors import ChromaError, InvalidArgumentError, NotFoundError

from tests.gateway_process import Gateway, gateway_process
from tests.records import embed, prose

EVERYTHING = ["embeddings", "documents", "metadatas", "uris"]
UNICODE = [
    "",
    " ",
    "naïve façade",
    "日本語の文書",
    "👩‍👩‍👧‍👦 🏴‍☠️",
    "עברית \u202e ltr",
    "a\x00b\r\n\t\x7f",
    "\ufeff\u2028",
    "\\u0000 \"'{}[]",
]
RECORDS = list({record["document"]: record for record in prose()}.values())[:120]

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_numbers = itertools.count()


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    """One gateway for all tests; each makes collections of its own."""
    with gateway_process() as built:
        yield built.start()
        assert built.stop() == 0


@pytest.fixture
def client(served: Gateway) -> ClientAPI:
    return served.client()


@asynccontextmanager
async def async_client(served: Gateway) -> AsyncIterator[AsyncClientAPI]:
    client: Any = await chromadb.AsyncHttpClient(host="127.0.0.1", port=served.port)
    try:
        yield client
    finally:
        await client._server._cleanup()  # it offers no other way to close its connections


def fresh() -> str:
    return f"notes-{next(_numbers)}"


def filled(client: ClientAPI, **kwargs: Any) -> chromadb.Collection:
    """A new collection that holds RECORDS."""
    collection = client.create_collection(fresh(), embedding_function=None, **kwargs)
    collection.add(
        ids=[record["id"] for record in RECORDS],
        embeddings=[embed(record["document"]) for record in RECORDS],
        documents=[record["document"] for record in RECORDS],
        metadatas=[record["metadata"] for record in RECORDS],
        uris=[f"file:///{record['id']}" for record in RECORDS],
    )
    return collection


def same(one: Any, other: Any) -> bool:
    """Equal through and through, arrays included."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple | np.ndarray):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# ---------------------------------------------------------------------- collections, databases, tenants


# What chromadb says of any collection that was made without an embedding function.
@pytest.mark.filterwarnings("ignore:legacy embedding function config:DeprecationWarning")
def test_collections_are_made_found_changed_and_deleted(client: ClientAPI) -> None:
    """create, get, get_or_create, list with limits, count, modify, delete."""
    before = client.count_collections()
    name, renamed = fresh(), fresh()
    made = client.create_collection(
        name,
        embedding_function=None,
        metadata={"of": "tests"},
        configuration={"hnsw": {"space": "cosine", "ef_search": 77}},
    )
    found = client.get_collection(name, embedding_function=None)
    assert (found.id, found.name, found.metadata) == (made.id, name, {"of": "tests"})
    assert (found.configuration["hnsw"]["space"], found.configuration["hnsw"]["ef_search"]) == ("cosine", 77)
    assert client.get_or_create_collection(name, embedding_function=None).id == made.id
    assert client.count_collections() == before + 1
    assert name in {collection.name for collection in client.list_collections(limit=1000)}
    assert len(client.list_collections(limit=1, offset=before)) == 1
    found.modify(name=renamed, metadata={"of": "more tests"}, configuration={"hnsw": {"ef_search": 99}})
    again = client.get_collection(renamed, embedding_function=None)
    assert (again.id, again.metadata) == (made.id, {"of": "more tests"})
    assert again.configuration["hnsw"]["ef_search"] == 99
    client.delete_collection(renamed)
    assert client.count_collections() == before


@pytest.fixture
def admin(served: Gateway) -> AdminAPI:
    return chromadb.AdminClient(
        Settings(
            chroma_api_impl="chromadb.api.fastapi.FastAPI",
            chroma_server_host="127.0.0.1",
            chroma_server_http_port=served.port,
        )
    )


def test_tenants_and_databases(served: Gateway, admin: AdminAPI) -> None:
    """Made, listed, used and deleted; collections of the same name in two databases are two."""
    admin.create_tenant("acme")
    assert admin.get_tenant("acme")["name"] == "acme"
    for database in ("blue", "green"):
        admin.create_database(database, "acme")
    assert {database["name"] for database in admin.list_databases(tenant="acme")} == {"blue", "green"}
    assert admin.get_database("blue", "acme")["tenant"] == "acme"
    blue, green = (served.client(tenant="acme", database=name) for name in ("blue", "green"))
    mine, other = (each.create_collection("notes", embedding_function=None) for each in (blue, green))
    assert mine.id != other.id
    mine.add(ids=["1"], embeddings=[[1.0, 2.0]])
    assert (mine.count(), other.count()) == (1, 0)
    admin.delete_database("green", "acme")
    assert {database["name"] for database in admin.list_databases(tenant="acme")} == {"blue"}


# ---------------------------------------------------------------------- records


def test_records_are_added_upserted_updated_and_deleted(client: ClientAPI) -> None:
    """What was acknowledged is what is read; deleting by id and by filter removes just that."""
    collection = client.create_collection(fresh(), embedding_function=None)
    collection.add(
        ids=["a", "b"], embeddings=[[1, 0], [0, 1]], documents=["one", "two"], metadatas=[{"n": 1}, {"n": 2}]
    )
    collection.upsert(
        ids=["b", "c"], embeddings=[[0, 2], [3, 3]], documents=["TWO", "three"], metadatas=[{"n": 22}, {"n": 3}]
    )
    collection.update(ids=["a"], embeddings=[[1, 1]], documents=["ONE"], metadatas=[{"n": 11, "new": True}])
    got = collection.get(include=EVERYTHING)
    assert same(got["ids"], ["a", "b", "c"])
    assert same(got["documents"], ["ONE", "TWO", "three"])
    assert same(got["metadatas"], [{"n": 11, "new": True}, {"n": 22}, {"n": 3}])
    assert same(got["embeddings"], [[1, 1], [0, 2], [3, 3]])
    collection.delete(ids=["a"])
    collection.delete(where={"n": {"$gt": 20}})
    assert (collection.count(), collection.get()["ids"]) == (1, ["c"])


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"where": {"kind": "class"}}, lambda record: record["metadata"]["kind"] == "class"),
        ({"where": {"words": {"$gte": 40}}}, lambda record: record["metadata"]["words"] >= 40),
        (
            {"where": {"module": {"$in": ["asyncio", "json"]}}},
            lambda record: record["metadata"]["module"] in ("asyncio", "json"),
        ),
        (
            {"where": {"$and": [{"long": True}, {"$or": [{"kind": "class"}, {"words": {"$lt": 80}}]}]}},
            lambda record: (
                record["metadata"]["long"]
                and (record["metadata"]["kind"] == "class" or record["metadata"]["words"] < 80)
            ),
        ),
        ({"where_document": {"$contains": "Return"}}, lambda record: "Return" in record["document"]),
        (
            {"where_document": {"$and": [{"$contains": "the"}, {"$not_contains": "Return"}]}, "where": {"long": False}},
            lambda record: (
                "the" in record["document"] and "Return" not in record["document"] and not record["metadata"]["long"]
            ),
        ),
        (
            {"where_document": {"$regex": "^Re[a-z]+ "}},
            lambda record: record["document"].startswith(("Return ", "Read ", "Remove ")),
        ),
    ],
)
def test_filters_find_what_they_describe(
    client: ClientAPI, filters: dict[str, Any], expected: Callable[[Any], bool]
) -> None:
    """`where` and `where_document` reach Chroma whole: get agrees with the same question asked in Python."""
    collection = filled(client)
    wanted = {record["id"] for record in RECORDS if expected(record)}
    found = set(collection.get(**filters)["ids"])
    if "$regex" in str(filters):
        assert wanted <= found
    else:
        assert found == wanted
    assert 0 < len(found) < len(RECORDS)
    assert (
        set(collection.query(query_embeddings=[embed("anything")], n_results=len(RECORDS), **filters)["ids"][0])
        == found
    )


@pytest.mark.parametrize(
    "include", [list(some) for count in range(6) for some in itertools.combinations([*EVERYTHING, "distances"], count)]
)
def test_query_includes_what_was_asked_for(served: Gateway, queried: chromadb.Collection, include: list[Any]) -> None:
    """Every `include`: just that comes back, and it is what bare Chroma says."""
    bare = served.chroma().get_collection(queried.name, embedding_function=None)
    questions = [embed("read a file line by line"), embed("cancel the task")]
    answer = queried.query(query_embeddings=questions, n_results=5, include=include)
    assert {key for key in [*EVERYTHING, "distances"] if answer[key] is not None} == set(include)
    assert [len(ids) for ids in answer["ids"]] == [5, 5]
    assert same(answer, bare.query(query_embeddings=questions, n_results=5, include=include))


@pytest.fixture(scope="module")
def queried(served: Gateway) -> chromadb.Collection:
    return filled(served.client())


def test_peek_count_limits_and_offsets(served: Gateway, queried: chromadb.Collection) -> None:
    """Paging sees each record once, in the same order as round the gateway."""
    bare = served.chroma().get_collection(queried.name, embedding_function=None)
    assert queried.count() == len(RECORDS)
    assert same(queried.peek(7), bare.peek(7))
    pages = [queried.get(limit=50, offset=offset, include=[])["ids"] for offset in (0, 50, 100)]
    assert list(itertools.chain(*pages)) == [record["id"] for record in RECORDS]
    assert same(queried.get(include=EVERYTHING), bare.get(include=EVERYTHING))


def test_unicode_comes_back_as_it_went_in(client: ClientAPI) -> None:
    """Ids, documents, keys and values of metadata, names of collections' metadata: any text that Chroma takes."""
    collection = client.create_collection(fresh(), embedding_function=None, metadata={"ключ": "значение 🗝"})
    texts = [text for text in UNICODE if text]
    collection.add(
        ids=[f"{number}-{text}" for number, text in enumerate(texts)],
        embeddings=[[float(number), 1.0] for number in range(len(texts))],
        documents=texts,
        metadatas=[{"ключ-é": text} for text in texts],
    )
    got = collection.get(include=["documents", "metadatas"])
    assert got["ids"] == [f"{number}-{text}" for number, text in enumerate(texts)]
    assert got["documents"] == texts
    assert got["metadatas"] == [{"ключ-é": text} for text in texts]
    assert client.get_collection(collection.name, embedding_function=None).metadata == {"ключ": "значение 🗝"}


def test_documents_of_8_mb(client: ClientAPI) -> None:
    """A large document goes up and comes back whole."""
    collection = client.create_collection(fresh(), embedding_function=None)
    text = '日本\\"\n' * (8_000_000 // 9)
    collection.add(ids=["1"], embeddings=[[1.0, 2.0]], documents=[text])
    assert collection.get(ids=["1"])["documents"] == [text]


def test_more_than_chroma_takes_is_refused_as_by_chroma(served: Gateway, client: ClientAPI) -> None:
    """A body above Chroma's limit of 40 MiB gets Chroma's status on every route, and nothing is stored.

    Chroma says it in two ways: `ChromaError` in its usual shape, or, on add, upsert, update and query, plain text
    (`Payload too large`). From us it is always the first, so that clients raise `ChromaError`.
    """
    collection = client.create_collection(fresh(), embedding_function=None)
    bare = served.chroma().get_collection(collection.name, embedding_function=None)
    too_long = "x" * (41 << 20)
    refused = "Failed to buffer the request body: length limit exceeded"
    with pytest.raises(chromadb.errors.ChromaError, match=refused):
        bare.get(ids=[too_long])
    with pytest.raises(chromadb.errors.ChromaError, match=refused):
        collection.get(ids=[too_long])
    with pytest.raises(Exception, match="Payload too large"):
        bare.add(ids=["1"], embeddings=[[1.0, 2.0]], documents=[too_long])
    with pytest.raises(chromadb.errors.ChromaError, match=refused):
        collection.add(ids=["1"], embeddings=[[1.0, 2.0]], documents=[too_long])
    assert collection.count() == 0


# ---------------------------------------------------------------------- errors


def _collection(client: ClientAPI) -> chromadb.Collection:
    return client.get_or_create_collection("errors", embedding_function=None)


def _of_dimension_2(client: ClientAPI) -> chromadb.Collection:
    collection = _collection(client)
    collection.upsert(ids=["1"], embeddings=[[1.0, 2.0]])
    return collection


def _deleted(client: ClientAPI) -> chromadb.Collection:
    collection = client.create_collection(fresh(), embedding_function=None)
    client.delete_collection(collection.name)
    return collection


ERRORS: dict[str, tuple[type[ChromaError], Callable[[Any], Any]]] = {
    "a collection that is not there": (NotFoundError, lambda c: c.get_collection("nothing")),
    "deleting a collection that is not there": (NotFoundError, lambda c: c.delete_collection("nothing")),
    "adding to a deleted collection": (NotFoundError, lambda c: _deleted(c).add(ids=["1"], embeddings=[[1.0]])),
    "reading a deleted collection": (NotFoundError, lambda c: _deleted(c).get()),
    "counting a deleted collection": (NotFoundError, lambda c: _deleted(c).count()),
    "querying a deleted collection": (NotFoundError, lambda c: _deleted(c).query(query_embeddings=[[1.0]])),
    "a database that is not there": (NotFoundError, lambda c: c.set_database("nothing")),
    # Chroma 1.5.9 names no type of its own with these 409s.
    "a tenant's name that is taken": (ChromaError, lambda c: c._admin_client.create_tenant("default_tenant")),
    "a database's name that is taken": (ChromaError, lambda c: c._admin_client.create_database("default_database")),
    "a collection's name that is taken": (
        ChromaError,
        lambda c: [c.create_collection("taken", embedding_function=None) for _ in "ab"],
    ),
    "a name that is no name": (InvalidArgumentError, lambda c: c.create_collection("a b", embedding_function=None)),
    "embeddings of two lengths": (
        InvalidArgumentError,
        lambda c: _of_dimension_2(c).add(ids=["2"], embeddings=[[1.0, 2.0, 3.0]]),
    ),
    "a question of another length": (
        InvalidArgumentError,
        lambda c: _of_dimension_2(c).query(query_embeddings=[[1.0, 2.0, 3.0]]),
    ),
    "no embeddings at all": (InvalidArgumentError, lambda c: c._server._add(["1"], _of_dimension_2(c).id, [])),
}


def failure(call: Callable[[ClientAPI], Any], client: ClientAPI) -> tuple[type[BaseException], str]:
    with pytest.raises(Exception) as raised:  # noqa: PT011  # which one it is, is what is to be found out
        call(client)
    return raised.type, str(raised.value)


@pytest.mark.parametrize("what", ERRORS)
def test_errors_are_chromadbs_own(served: Gateway, client: ClientAPI, what: str) -> None:
    """What goes wrong raises the same exception with the same words as against bare Chroma."""
    expected, call = ERRORS[what]
    found, said = failure(call, client)
    bare, bare_said = failure(call, served.chroma())
    assert issubclass(found, expected), said
    assert found is bare
    assert UUID.sub("…", said) == UUID.sub("…", bare_said)


def test_reset_is_refused(client: ClientAPI) -> None:
    """`allow_reset` is off: nobody deletes everything through the gateway, and nothing is lost by trying."""
    collection = client.create_collection(fresh(), embedding_function=None)
    with pytest.raises(Exception, match=r"(?i)reset"):
        client.reset()
    assert client.get_collection(collection.name, embedding_function=None).id == collection.id


@pytest.mark.parametrize("path", ["/api/v1/collections", "/api/v2/nothing", "/api/v1", "/api/v3/heartbeat"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
def test_unknown_routes_get_chromas_own_answer(served: Gateway, method: str, path: str) -> None:
    """Whatever the gateway does not know is for Chroma to answer."""
    through = httpx.request(method, served.url + path)
    bare = httpx.request(method, f"http://127.0.0.1:{served.chroma_port}{path}")
    assert (through.status_code, through.content) == (bare.status_code, bare.content)


def test_chromas_description_of_itself_is_passed_on(served: Gateway) -> None:
    """`/chroma/openapi.json` is the running Chroma's own, and `/chroma/docs` shows it."""
    through = httpx.get(f"{served.url}/chroma/openapi.json")
    bare = httpx.get(f"http://127.0.0.1:{served.chroma_port}/openapi.json")
    assert (through.status_code, through.content) == (200, bare.content)
    assert "/api/v2/heartbeat" in through.json()["paths"]
    assert "'/chroma/openapi.json'" in httpx.get(f"{served.url}/chroma/docs").text


def test_while_writes_are_held_back_reads_go_on(served: Gateway, client: ClientAPI) -> None:
    """A quiesce is felt by writes alone: they wait, count and query answer, and afterwards all is as before."""
    collection = filled(client)
    collection.count()
    held = served.admin("POST", "/quiesce", json={"ttl_s": 60})
    assert held.status_code == 200, held.text
    try:
        assert collection.count() == len(RECORDS)
        assert len(collection.query(query_embeddings=[embed("x")], n_results=3)["ids"][0]) == 3
        with pytest.raises(httpx.ReadTimeout):
            httpx.delete(f"{served.url}/api/v2/tenants/default_tenant/databases/nothing", timeout=0.2)
    finally:
        assert served.admin("POST", "/resume").status_code == 200
    collection.delete(ids=[RECORDS[0]["id"]])
    assert collection.count() == len(RECORDS) - 1


# ---------------------------------------------------------------------- other clients


async def test_the_async_client_does_all_of_it(served: Gateway) -> None:
    """`AsyncHttpClient`: collections, records, filters, queries and errors, many at once."""
    async with async_client(served) as client:
        assert await client.heartbeat() > 0
        name = fresh()
        collection = await client.create_collection(name, embedding_function=None)
        pages = [RECORDS[start : start + 20] for start in range(0, len(RECORDS), 20)]

        async def add(page: list[dict[str, Any]]) -> None:
            await collection.add(
                ids=[record["id"] for record in page],
                embeddings=[embed(record["document"]) for record in page],
                documents=[record["document"] for record in page],
                metadatas=[record["metadata"] for record in page],
            )

        await asyncio.gather(*map(add, pages))
        assert await collection.count() == len(RECORDS)
        wanted = {record["id"] for record in RECORDS if record["metadata"]["kind"] == "class"}
        assert set((await collection.get(where={"kind": "class"}))["ids"]) == wanted
        answers = await asyncio.gather(
            *(collection.query(query_embeddings=[embed(record["document"])], n_results=1) for record in RECORDS[:40])
        )
        assert [answer["distances"][0][0] for answer in answers] == pytest.approx([0] * 40, abs=1e-5)
        await collection.update(ids=[RECORDS[0]["id"]], embeddings=[embed("changed")], documents=["changed"])
        await collection.upsert(ids=["new"], embeddings=[embed("new")], documents=["new"])
        assert (await collection.get(ids=[RECORDS[0]["id"], "new"]))["documents"] == ["changed", "new"]
        await collection.delete(ids=["new"])
        assert len((await collection.peek(3))["ids"]) == 3
        await collection.modify(name=fresh())
        assert collection.name in {each.name for each in await client.list_collections()}
        with pytest.raises(NotFoundError):
            await client.get_collection(name)
        with pytest.raises(ChromaError, match="already exists"):
            await client.create_collection(collection.name, embedding_function=None)
        with pytest.raises(InvalidArgumentError):
            await collection.query(query_embeddings=[[1.0]])
        await client.delete_collection(collection.name)
        with pytest.raises(NotFoundError):
            await collection.count()


@pytest.mark.soak  # its import alone takes ten seconds
def test_langchain(served: Gateway) -> None:
    """LangChain's store adds texts and finds the right one again, with its metadata, by text and by filter."""
    from langchain_chroma import Chroma
    from langchain_core.embeddings import Embeddings

    class Words(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [embed(text) for text in texts]

        def embed_query(self, text: str) -> list[float]:
            return embed(text)

    store = Chroma(collection_name=fresh(), client=served.client(), embedding_function=Words())
    ids = store.add_texts(
        [record["document"] for record in RECORDS],
        metadatas=[record["metadata"] for record in RECORDS],
        ids=[record["id"] for record in RECORDS],
    )
    assert len(ids) == len(RECORDS)
    for record in RECORDS[:5]:
        (found,) = store.similarity_search(record["document"], k=1)
        assert (found.id, found.page_content, found.metadata) == (record["id"], record["document"], record["metadata"])
    assert all(
        found.metadata["kind"] == "class" for found in store.similarity_search("task", k=5, filter={"kind": "class"})
    )
    store.delete(ids=ids[:1])
    assert store.get(ids=ids[:1])["ids"] == []
