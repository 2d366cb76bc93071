"""Real documents, from a folder to answers, asked as people ask: by each client there is."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docx
import pytest
from fpdf import FPDF

from examples.sample import ASKED, texts
from tests.commands import run_command
from tests.gateway_process import Gateway, gateway_process
from tests.servers import S3Server
from tests.system.test_documents import AVATAR, listed, records, running, train
from tests.word_embedding import WordEmbedding

# The short tests train and search on a real S3 server in test_documents.py, and read each kind of document in
# test_readers.py.
pytestmark = pytest.mark.soak


def as_pdf(text: str) -> bytes:
    made = FPDF()
    made.add_page()
    made.set_font("helvetica", size=10)
    made.multi_cell(0, 5, text.encode("latin-1", "replace").decode("latin-1"))
    return bytes(made.output())


def as_docx(text: str) -> bytes:
    made, out = docx.Document(), io.BytesIO()
    for paragraph in text.split("\n\n"):
        made.add_paragraph("".join(c for c in paragraph if c >= " " or c in "\n\t"))
    made.save(out)
    return out.getvalue()


def as_html(text: str) -> bytes:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return f"<!doctype html><html><head><meta charset=utf-8></head><body><p>{escaped}</p></body></html>".encode()


@pytest.fixture(scope="module", params=[("s3", 60), ("file", 200)], ids=str)
def variant(request: pytest.FixtureRequest) -> tuple[str, int]:
    """The kind of store, and how many documents there are."""
    kind, documents = request.param
    return kind, documents


@pytest.fixture(scope="module")
def course(variant: tuple[str, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with documents of four kinds; every sixth is a PDF, a Word document or a page."""
    directory = tmp_path_factory.mktemp("course")
    chosen, asked = texts(), sorted(set(ASKED.values()))
    names = sorted(set(chosen) - set(asked))[: variant[1] - len(asked)] + asked
    assert len(names) >= 0.9 * variant[1]
    for n, name in enumerate(names):
        text = f"The module {name}\n\n{chosen[name]}"
        suffix, data = {
            3: (".pdf", as_pdf(text)),
            4: (".docx", as_docx(text)),
            5: (".html", as_html(text)),
        }.get(n % 6, (".md", text.encode()))
        (directory / f"{name}{suffix}").write_bytes(data)
    return directory


def ingest(gateway: Gateway, *arguments: str) -> dict[str, Any]:
    """What `chroma-gateway ingest` says."""
    done = run_command(gateway, "ingest", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.fixture(scope="module")
def trained(variant: tuple[str, int], course: Path, ministack: S3Server) -> Iterator[Gateway]:
    with running(variant[0], ministack) as gateway:
        said = ingest(gateway, str(course), "--avatar", "ada")
        assert said["failed"] == {}
        assert len(said["uploaded"]) == len(said["added"]) == len(list(course.iterdir()))
        yield gateway


def module_of(document: object) -> str:
    return str(document).rpartition(".")[0]


def test_a_second_time_changes_nothing(trained: Gateway, course: Path) -> None:
    """Nothing is uploaded, nothing written; also by a gateway that knows no digests yet."""
    before = listed(trained, limit=1000)
    said = ingest(trained, str(course), "--avatar", "ada")
    assert (said["uploaded"], said["added"], said["changed"], said["removed"], said["written"]) == ([], [], [], [], 0)
    assert {n: d["etag"] for n, d in listed(trained, limit=1000).items()} == {n: d["etag"] for n, d in before.items()}


def test_a_folder_becomes_a_collection_without_the_store(trained: Gateway, course: Path) -> None:
    """The same chunks as by way of the store, and the second time nothing changes."""
    said = ingest(trained, str(course), "--collection", "plain-folder")
    assert (said["failed"], len(said["added"])) == ({}, len(list(course.iterdir())))
    assert ingest(trained, str(course), "--collection", "plain-folder")["written"] == 0
    assert records(trained, "plain-folder") == records(trained)


def first_words(gateway: Gateway) -> dict[str, str]:
    """A question for each of thirty documents that words alone can answer: its own beginning."""
    found = records(gateway)
    return {chunks[0]: name for name, chunks in found.items() if module_of(name) in ASKED.values()}


def test_chromas_own_client_finds_them(trained: Gateway) -> None:
    """With the embedding function that the collection itself names."""
    collection = trained.client().get_collection("avatar-ada")
    for question, name in first_words(trained).items():
        got = collection.query(query_texts=[question], n_results=1)
        assert (got["metadatas"] or [])[0][0]["document"] == name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_langchain_finds_them(trained: Gateway) -> None:
    """langchain-chroma, with the same function as an embedding of its own kind."""
    from langchain_chroma import Chroma
    from langchain_core.embeddings import Embeddings

    class Words(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [list(map(float, vector)) for vector in WordEmbedding()(texts)]

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    store = Chroma(
        collection_name="avatar-ada",
        client=trained.client(),
        embedding_function=Words(),
        create_collection_if_not_exists=False,
    )
    for question, name in first_words(trained).items():
        (found,) = store.similarity_search(question, k=1)
        assert found.metadata["document"] == name


@pytest.mark.filterwarnings("ignore")
def test_llama_index_finds_them(trained: Gateway) -> None:
    """llama-index-vector-stores-chroma."""
    from llama_index.core.vector_stores import VectorStoreQuery
    from llama_index.vector_stores.chroma import ChromaVectorStore

    store = ChromaVectorStore(chroma_collection=trained.client().get_collection("avatar-ada"))
    for question, name in first_words(trained).items():
        vector = [float(each) for each in WordEmbedding()([question])[0]]
        found = store.query(VectorStoreQuery(query_embedding=vector, similarity_top_k=1))
        assert [node.metadata["document"] for node in found.nodes or []] == [name]


def test_they_live_their_whole_life(trained: Gateway, course: Path) -> None:
    """Changed, flagged off and deleted in bulk; the collection follows."""
    names = sorted(path.name for path in course.iterdir())
    unused, deleted = names[:25], names[25:35]
    before = records(trained)
    trained.admin("PATCH", f"{AVATAR}/vectorstore_data", json={"flags": dict.fromkeys(unused, False)})
    for name in deleted:
        trained.admin("DELETE", f"{AVATAR}/vectorstore_data/{name}")
    said = train(trained)
    assert (sorted(said["removed"]), said["written"]) == (unused + deleted, 0)
    assert records(trained) == {name: before[name] for name in names[35:]}
    trained.admin("PATCH", f"{AVATAR}/vectorstore_data", json={"used": True})
    assert sorted(train(trained)["added"]) == unused
    assert records(trained) == {name: before[name] for name in names if name not in deleted}


MODEL = Path.home() / ".cache/chroma/onnx_models/all-MiniLM-L6-v2/onnx/model.onnx"


@pytest.mark.skipif(not MODEL.exists(), reason=f"Chroma's default model is not at {MODEL}")
def test_the_real_model_answers_thirty_questions(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chroma's default model, in the gateway and in the client: the right document is among the first three."""
    with gateway_process(HOME=str(Path.home())) as gateway:
        gateway.start()
        said = ingest(
            gateway,
            str(course),
            "--avatar",
            "ada",
            "--request",
            '{"splitting": {"size": 200, "overlap": 30, "unit": "tokens"}}',
        )
        assert said["failed"] == {}
        collection = gateway.client().get_collection("avatar-ada")
        missed = {}
        for question, module in ASKED.items():
            got = collection.query(query_texts=[question], n_results=3)
            found = [module_of(each["document"]) for each in (got["metadatas"] or [])[0]]
            if module not in found:
                missed[question] = (module, found)
        assert not missed
