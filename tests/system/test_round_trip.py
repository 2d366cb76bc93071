"""The main job: real text in, snapshot, everything lost, everything back."""

import shutil
from collections.abc import Iterator

import pytest
from chromadb import AdminClient
from chromadb.config import Settings

from tests.gateway_process import Gateway, gateway_process
from tests.records import embed, everything, prose
from tests.servers import S3Server

PLACES = [("default_tenant", "default_database"), ("learners", "default_database"), ("learners", "course")]
ASKED_FOR = {"GATEWAY_SNAPSHOT_ON_EXIT": "false"}  # no snapshots but those
QUESTIONS = [
    "parse command line arguments",
    "run a coroutine until it completes",
    "a dictionary that remembers insertion order",
    "the smallest item of a heap",
]


@pytest.fixture(params=[pytest.param("file", marks=pytest.mark.soak), "s3"])
def kept(request: pytest.FixtureRequest, ministack: S3Server) -> Iterator[Gateway]:
    """A gateway whose store outlives its disk."""
    store = {}
    if request.param == "s3":
        store = {"GATEWAY_STORE": f"s3://{ministack.new_bucket('vectors')}/some/prefix", **ministack.env}
    with gateway_process(**ASKED_FOR, **store) as built:
        yield built


def fill(kept: Gateway) -> None:
    """Three collections in three places, with and without a synced index, with deletions and updates."""
    settings = Settings(
        chroma_api_impl="chromadb.api.fastapi.FastAPI",
        chroma_server_host="127.0.0.1",
        chroma_server_http_port=kept.port,
    )
    admin = AdminClient(settings)
    admin.create_tenant("learners")
    admin.create_database("default_database", tenant="learners")
    admin.create_database("course", tenant="learners")
    records = prose()
    assert len(records) >= 300
    for tenant, database in PLACES:
        client = kept.client(tenant=tenant, database=database)
        synced = client.create_collection(
            "docstrings",
            embedding_function=None,
            metadata={"about": "the standard library", "naïve": "日本語"},
            configuration={"hnsw": {"space": "cosine", "sync_threshold": 100, "batch_size": 50, "ef_search": 77}},
        )
        for start in range(0, len(records), 60):
            some = records[start : start + 60]
            synced.add(
                ids=[record["id"] for record in some],
                embeddings=[embed(record["document"]) for record in some],
                documents=[record["document"] for record in some],
                metadatas=[record["metadata"] for record in some],
            )
        synced.delete(ids=[record["id"] for record in records[5:15]])
        synced.update(ids=[records[20]["id"]], documents=["replaced"], embeddings=[embed("replaced")])
        unsynced = client.create_collection("unsynced", embedding_function=None)
        unsynced.add(
            ids=["1", "ünïcode \N{SNOWMAN}"], embeddings=[embed("one"), embed("two")], documents=["one", "two"]
        )
        client.create_collection("empty", embedding_function=None)
        gone = client.create_collection(
            "gone", embedding_function=None, configuration={"hnsw": {"sync_threshold": 10, "batch_size": 5}}
        )
        gone.add(ids=[str(i) for i in range(30)], embeddings=[embed(str(i)) for i in range(30)])
        client.delete_collection("gone")


def test_everything_comes_back_after_the_disk_is_lost(kept: Gateway) -> None:
    """Every id, embedding, document, metadata, configuration, tenant, database and answer is as it was."""
    kept.start()
    fill(kept)
    before = everything(kept.url, PLACES, QUESTIONS)
    snapshot = kept.snapshot("before the loss")
    kept.lose_disk()

    kept.start()
    assert everything(kept.url, PLACES, QUESTIONS) == before
    assert {(each["tenant"], each["database"], each["name"]) for each in snapshot["collections"]} == {
        (*place, name) for place in PLACES for name in ("docstrings", "unsynced", "empty")
    }
    # It goes on from there: writes, and another generation.
    kept.client().get_collection("unsynced", embedding_function=None).add(ids=["after"], embeddings=[embed("after")])
    before = everything(kept.url, PLACES, QUESTIONS)
    kept.snapshot()
    assert kept.stop() == 0
    shutil.rmtree(kept.data_dir)
    kept.start()
    assert everything(kept.url, PLACES, QUESTIONS) == before
