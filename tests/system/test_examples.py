"""The programs in examples/, each in its own environment, started as a user does, against a real gateway.

`scripts/test-examples` makes the environments and runs these tests. Without them they are skipped.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from examples import sample
from examples.embedding import HashedWords
from examples.recall import recall
from tests.commands import run_command
from tests.documentation import ROOT
from tests.gateway_process import ADMIN_TOKEN, Gateway, gateway_process
from tests.ports import free_port
from tests.system.test_retrieval import MODEL, as_pdf

ENVIRONMENTS = ROOT / "var/examples"
EMBEDDING = {"GATEWAY_EMBEDDING": "hashed_words", "GATEWAY_EMBEDDING_MODULE": "examples.embedding"}
QUESTION = "How do I guess the MIME type of a file?"
pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not ENVIRONMENTS.exists(), reason="scripts/test-examples makes their environments"),
]


def environment(gateway: Gateway, **env: str) -> dict[str, str]:
    """What a user has, with what says where the gateway is."""
    told = {"CHROMA_URL": gateway.url, "GATEWAY_ADMIN_TOKEN": ADMIN_TOKEN, "ANONYMIZED_TELEMETRY": "False"}
    return {"PATH": os.environ["PATH"], "HOME": str(gateway.directory)} | told | EMBEDDING | env


def run(gateway: Gateway, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run an example to its end."""
    return subprocess.run(
        [str(ROOT / "examples/run"), *arguments],
        cwd=gateway.directory,
        env=environment(gateway, **env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def output_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@contextmanager
def serving(gateway: Gateway, *arguments: str, health: str, **env: str) -> Iterator[str]:
    """An example that serves, once it does. The value is its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = gateway.directory / f"{arguments[0]}-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                *(str(ROOT / "examples/run"), *arguments),
                *(["--server.port", str(port)] if arguments[0] == "chat_streamlit" else ["--port", str(port)]),
            ],
            cwd=gateway.directory,
            env=environment(gateway, **env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            give_up_at = time.monotonic() + 240
            while not _answers(url + health):
                assert time.monotonic() < give_up_at, log.read_text()
                assert process.poll() is None, log.read_text()
                time.sleep(0.2)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def _answers(url: str) -> bool:
    try:
        return bool(httpx.get(url, timeout=10).status_code)
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    """A gateway whose collection `avatar-course` has the sample documents."""
    with gateway_process(**EMBEDDING) as built:
        built.start()
        output_of(run(built, "sample", "course"))
        trained = run_command(built, "ingest", "course", "--avatar", "course")
        assert trained.returncode == 0, trained.stderr[-3000:]
        yield built


# ---------------------------------------------------------------------- what they share


def test_words_are_embedded_in_vectors_of_length_one_that_are_the_same_everywhere() -> None:
    """Equal texts are nearest, and a text without words does not divide by zero."""
    vectors = np.array(HashedWords()(["a gzip file", "a gzip file", "gzipped files", "fractions", ""]))
    assert np.allclose(np.linalg.norm(vectors[:4], axis=1), 1)
    near = vectors @ vectors[0]
    assert near[1] == pytest.approx(1)
    assert 1 > near[2] > near[3]
    assert not vectors[4].any()


# ---------------------------------------------------------------------- the RAG API


@pytest.fixture(scope="module")
def rag_api(served: Gateway) -> Iterator[str]:
    """The API without a language model."""
    with serving(served, "rag_api", "--collection", "avatar-course", health="/stats") as url:
        yield url


def events(answer: httpx.Response) -> list[tuple[str, Any]]:
    """Names and data of server-sent events."""
    found = re.findall(r"event: (\w+)\ndata: (.*)\n\n", answer.text)
    return [(name, json.loads(data)) for name, data in found]


def test_thirty_questions_find_their_documents(
    served: Gateway, rag_api: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The document of the answer is among five passages, and the answer is made of them."""
    questions = json.loads((served.directory / "questions.json").read_text())
    answers = []

    def find(question: str, most: int) -> list[str]:
        answer = httpx.post(f"{rag_api}/query", json={"question": question, "max_results": most}, timeout=60)
        assert answer.status_code == 200, answer.text
        answers.append(answer.json())
        return [source["document"] for source in answers[-1]["sources"]]

    result = recall(questions, find)
    milliseconds = sorted(answer["time"]["search_ms"] for answer in answers)
    with capsys.disabled():
        print(f"\nrecall@5 {result.share:.2f} of {len(questions)} questions, search p50 {milliseconds[15]} ms")
    assert len(questions) == 30
    assert result.share >= 0.75, result.missed
    for answer in answers:
        scores = [source["score"] for source in answer["sources"]]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 5
        assert re.search(r"\[[1-5]\]$", answer["answer"])


def test_an_answer_streams(rag_api: str) -> None:
    """Sources come first, then the same text as without streaming, then the times."""
    asked = {"question": QUESTION, "max_results": 3}
    whole = httpx.post(f"{rag_api}/query", json=asked, timeout=60).json()
    streamed = httpx.post(f"{rag_api}/query", json=asked | {"stream": True}, timeout=60)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    (first, sources), *pieces, (last, done) = events(streamed)
    assert (first, last) == ("sources", "done")
    assert sources["sources"] == whole["sources"]
    assert "".join(piece["text"] for _, piece in pieces) == whole["answer"]
    assert done["time"]["search_ms"] > 0


def test_filters_choose_the_passages(rag_api: str) -> None:
    """Only what matches is a source."""
    filters = {"$and": [{"document": {"$in": ["csv.md", "glob.md"]}}, {"chunk": 0}]}
    answer = httpx.post(f"{rag_api}/query", json={"question": QUESTION, "filters": filters}, timeout=60).json()
    assert sorted(source["document"] for source in answer["sources"]) == ["csv.md", "glob.md"]
    nothing = httpx.post(f"{rag_api}/query", json={"question": QUESTION, "filters": {"chunk": -1}}, timeout=60).json()
    assert (nothing["sources"], nothing["answer"]) == ([], "The documents have nothing about this.")


@pytest.mark.parametrize(
    ("asked", "status", "error"),
    [
        ({"question": ""}, 422, "InvalidQuery"),
        ({"question": "x" * 2001}, 422, "InvalidQuery"),
        ({"question": "x", "max_results": 21}, 422, "InvalidQuery"),
        ({"question": "x", "max_result": 2}, 422, "InvalidQuery"),
        ({"question": "x", "filters": {"chunk": {"$near": 1}}}, 400, "InvalidFilters"),
        ({"question": "x", "filters": {"x" * 70_000: 1}}, 413, None),
    ],
    ids=["empty", "too long", "too many", "misspelt", "no such operator", "too large"],
)
def test_what_cannot_be_asked_is_refused(rag_api: str, asked: dict[str, Any], status: int, error: str | None) -> None:
    """With a status, and a name of the error where it is not FastAPI that refuses."""
    answer = httpx.post(f"{rag_api}/query", json=asked, timeout=60)
    assert answer.status_code == status
    assert error is None or answer.json()["error"] == error


def test_health_and_statistics_say_what_is(rag_api: str) -> None:
    """The number of chunks, and how questions ended."""
    health = httpx.get(f"{rag_api}/health", timeout=60).json()
    assert (health["status"], health["collection"]) == ("ok", "avatar-course")
    assert health["records"] > 500
    before = httpx.get(f"{rag_api}/stats", timeout=60).json()["questions"]
    httpx.post(f"{rag_api}/query", json={"question": QUESTION}, timeout=60)
    httpx.post(f"{rag_api}/query", json={"question": ""}, timeout=60)
    stats = httpx.get(f"{rag_api}/stats", timeout=60).json()
    assert stats["questions"]["ok"] == before.get("ok", 0) + 1
    assert stats["questions"]["InvalidQuery"] == before.get("InvalidQuery", 0) + 1
    assert stats["search_ms"]["p50"] <= stats["search_ms"]["p95"]


class Model(BaseHTTPRequestHandler):
    """An OpenAI-compatible API. What it does is named in the question."""

    asked: dict[str, Any]
    seen: list[dict[str, Any]]
    waits: threading.Event

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, "key": self.headers["Authorization"]} | asked)
        question = asked["messages"][-1]["content"].rpartition("Question: ")[2]
        if question == "fail":
            self.send_error(500, "no model")
            return
        if not asked.get("stream"):
            self._answer_at_once()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self._say("It is ")
        if question == "break off":
            return
        if question == "wait":
            self.waits.wait(60)
        self._say("csv [1].")
        self.wfile.write(b"data: [DONE]\n\n")

    def _answer_at_once(self) -> None:
        message = {"role": "assistant", "content": "It is csv [1]."}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "small", "choices": [choice]}
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _say(self, text: str) -> None:
        data = {"choices": [{"delta": {"content": text}}]}
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def model() -> Iterator[ThreadingHTTPServer]:
    Model.seen, Model.waits = [], threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def of_model(model: ThreadingHTTPServer) -> dict[str, str]:
    return {
        "LLM_MODEL": "small",
        "LLM_BASE_URL": f"http://127.0.0.1:{model.server_address[1]}/v1",
        "LLM_API_KEY": "a-key",
    }


def test_a_language_model_answers(served: Gateway, model: ThreadingHTTPServer) -> None:
    """It gets the sources; its errors are told; while it answers, a question too many is refused."""
    options = ("--collection", "avatar-course", "--at-once", "1")
    with serving(served, "rag_api", *options, health="/stats", **of_model(model)) as url:

        def query(question: str, **asked: Any) -> httpx.Response:
            return httpx.post(f"{url}/query", json={"question": question} | asked, timeout=60)

        answered = query("read and write comma separated values").json()
        assert (answered["answer"], answered["model"]) == ("It is csv [1].", "small")
        (seen,) = Model.seen
        assert (seen["path"], seen["key"], seen["model"]) == ("/v1/chat/completions", "Bearer a-key", "small")
        assert all(source["text"] in seen["messages"][1]["content"] for source in answered["sources"])

        failed = query("fail")
        assert (failed.status_code, failed.json()["error"]) == (502, "ModelFailed")
        assert query("break off").status_code == 502
        names = [name for name, _ in events(query("break off", stream=True))]
        assert names == ["sources", "text", "error"]

        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(query, "wait", stream=True)
            while Model.seen[-1]["messages"][-1]["content"].rpartition(" ")[2] != "wait":
                time.sleep(0.05)
            busy = query("anything")
            assert (busy.status_code, busy.json()["error"], busy.headers["retry-after"]) == (503, "Busy", "1")
            assert httpx.get(f"{url}/health", timeout=60).status_code == 200
            Model.waits.set()
            assert [name for name, _ in events(first.result(60))] == ["sources", "text", "text", "done"]
        assert query("read and write comma separated values").status_code == 200


@asynccontextmanager
async def forwarding(port: int, to: int) -> AsyncIterator[None]:
    """Everything that comes to `port` goes to another port of this machine."""
    connections: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        answers, asks = await asyncio.open_connection("127.0.0.1", to)
        try:
            await asyncio.gather(pump(reader, asks), pump(answers, writer))
        finally:
            asks.close()
            writer.close()

    server = await asyncio.start_server(forward, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def test_a_gateway_that_is_away_is_told_and_then_found(served: Gateway) -> None:
    """503 with Retry-After while nothing answers, then what the gateway says: here that there is no collection."""
    port = free_port()
    elsewhere = f"http://127.0.0.1:{port}"
    with serving(served, "rag_api", "--collection", "nothing", health="/stats", CHROMA_URL=elsewhere) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            away = await client.post("/query", json={"question": "x"})
            assert (away.status_code, away.json()["error"], away.headers["retry-after"]) == (503, "Unavailable", "1")
            assert (await client.get("/health")).status_code == 503
            async with forwarding(port, served.port):
                missing = await client.post("/query", json={"question": "x"})
                assert (missing.status_code, missing.json()["error"]) == (404, "NotFound")
                assert "chroma-gateway ingest" in missing.json()["hint"]
                health = await client.get("/health")
                assert (health.status_code, health.json()["error"]) == (503, "NotFound")


@pytest.mark.skipif(not MODEL.exists(), reason=f"Chroma's default model is not at {MODEL}")
def test_thirty_questions_with_the_real_model(capsys: pytest.CaptureFixture[str]) -> None:
    """With Chroma's default model, as without any setting."""
    default = {"GATEWAY_EMBEDDING": "default", "GATEWAY_EMBEDDING_MODULE": "examples.embedding"}
    with gateway_process(HOME=str(Path.home()), **default) as gateway:
        gateway.start()
        questions = sample.write(gateway.directory / "course")
        trained = run_command(gateway, "ingest", "course", "--avatar", "course")
        assert trained.returncode == 0, trained.stderr[-3000:]
        home = {"HOME": str(Path.home())} | default
        with serving(gateway, "rag_api", "--collection", "avatar-course", health="/stats", **home) as url:

            def find(question: str, most: int) -> list[str]:
                answer = httpx.post(f"{url}/query", json={"question": question, "max_results": most}, timeout=60)
                return [source["document"] for source in answer.json()["sources"]]

            result = recall(questions, find)
    with capsys.disabled():
        print(f"\nrecall@5 {result.share:.2f} with Chroma's default model; missed: {result.missed}")
    assert result.share >= 0.9


# ---------------------------------------------------------------------- frameworks, JavaScript, the notebook


@pytest.fixture
def folder(served: Gateway) -> Iterator[Path]:
    """Ten of the documents."""
    directory = served.directory / "few"
    directory.mkdir()
    for name in ("csv", "glob", "gzip", "heapq", "bisect", "pdb", "random", "pickle", "uuid", "zipfile"):
        shutil.copy(served.directory / f"course/{name}.md", directory)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("name", ["langchain", "llamaindex", "javascript"])
def test_a_folder_is_ingested_and_asked(served: Gateway, model: ThreadingHTTPServer, folder: Path, name: str) -> None:
    """Also a second time, after a file was deleted; with a filter; and with a language model."""
    if name == "javascript" and not (shutil.which("node") and (ROOT / "examples/javascript/node_modules").exists()):
        pytest.skip("it needs Node and npm")
    question = "read and write comma separated values"
    said = output_of(run(served, name, "few", question))
    first = re.search(r"^10 files, (\d+) chunks", said)
    assert first, said
    assert re.search(r"^\[[1-5]\] \S+ csv\.md$", said, re.MULTILINE), said
    collection = served.client().get_collection(f"{name}-example", embedding_function=None)
    assert collection.count() == int(first[1])

    (folder / "zipfile.md").unlink()
    said = output_of(run(served, name, "few", question, "--only", "glob.md", **of_model(model)))
    assert "It is csv [1]." in said
    assert "The module glob" in json.dumps(Model.seen[-1]["messages"])
    again = re.search(r"^9 files, (\d+) chunks", said)
    assert again, said
    assert set(re.findall(r"^\[\d\] \S+ (\S+)$", said, re.MULTILINE)) == {"glob.md"}
    assert collection.count() == int(again[1]) < int(first[1])
    assert {metadata["document"] for metadata in collection.get()["metadatas"] or []} == {
        path.name for path in folder.iterdir()
    }


def test_the_notebook_runs(served: Gateway) -> None:
    """From the first cell to the last, in which the restored collection is back."""
    said = output_of(run(served, "notebook", "tour.ipynb"))
    assert re.search(r"^recall@5: 0\.[789]\d of 30 questions$", said, re.MULTILINE), said
    assert re.search(r"^all \d+ chunks are back$", said, re.MULTILINE), said
    assert "all " in json.dumps(json.loads((served.directory / "tour.ipynb").read_text())["cells"][-1]["outputs"])
    assert served.client().get_collection("avatar-tour").count() > 500


# ---------------------------------------------------------------------- chat with documents, in a browser


@pytest.mark.parametrize("kind", ["gradio", "streamlit"])
def test_documents_are_uploaded_and_asked_in_a_browser(served: Gateway, kind: str) -> None:
    """The ingest shows its progress, the answer its sources, and HTML and Markdown of documents stay text.

    The picture of the page is kept in var/examples.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if browser is None:
        pytest.skip("there is no Chromium and no Chrome on the PATH")
    avatar, files = f"chat-{kind}", sorted((served.directory / "course").glob("c*.md"))
    options = ("--avatar", avatar) if kind == "gradio" else ()
    hostile = served.directory / f"{kind}.md"
    hostile.write_text("Comma separated values, read and write: <input id=injected> ![x](http://127.0.0.1:9/injected)")
    files.append(hostile)
    picture = ENVIRONMENTS / f"chat-{kind}.png"
    with serving(served, f"chat_{kind}", *options, health="/", AVATAR=avatar) as url:
        seen = subprocess.run(
            [
                *(str(ENVIRONMENTS / "browser/bin/python"), str(ROOT / "tests/browser/chat.py"), kind, browser, url),
                *("read and write comma separated values", str(picture), *map(str, files)),
            ],
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert seen.returncode == 0, seen.stderr[-4000:]
        said = json.loads(seen.stdout)
    assert (said["errors"], said["injected"]) == ([], 0)
    assert "<input id=injected>" in said["text"]
    assert said["progress"]
    assert f"{len(files)} added, 0 changed" in said["text"]
    assert re.search(r"csv\.md \(0\.\d\d\)", said["text"]), said["text"]
    collection = served.client().get_collection(f"avatar-{avatar}")
    assert {metadata["document"] for metadata in collection.get()["metadatas"] or []} == {path.name for path in files}


# ---------------------------------------------------------------------- MLflow, and moving here


def test_an_ingest_is_a_run_and_a_run_is_an_index(served: Gateway) -> None:
    """Parameters, metrics and the snapshot are with the run. From its id alone the index comes back."""
    tracking = {"MLFLOW_TRACKING_URI": f"sqlite:///{served.directory}/mlflow.db"}
    questions = ("--questions", "questions.json", "--size", "600", "--overlap", "60", "--unit", "characters")
    said = output_of(run(served, "mlflow", "ingest", "course", "--avatar", "tracked", *questions, **tracking))
    found = re.search(
        r"^(\w{32})  FINISHED  avatar-tracked  chunks (\d+)  documents (\d+)  failed 0"
        r"  recall_at_5 ([\d.]+)  seconds ([\d.]+)  snapshot (\S+)$",
        said,
        re.MULTILINE,
    )
    assert found, said
    run_id, chunks, documents, share, _, snapshot = found.groups()
    assert (int(documents), float(share) >= 0.75) == (len(list((served.directory / "course").iterdir())), True)
    taken = served.admin("GET", f"/snapshot/{snapshot}").json()
    assert taken["label"] == f"mlflow {run_id}"
    collection = served.client().get_collection("avatar-tracked")
    before = collection.get(include=["embeddings", "documents", "metadatas"])
    assert collection.count() == int(chunks)
    assert all(len(text) <= 600 for text in before["documents"] or [])

    served.client().delete_collection("avatar-tracked")
    said = output_of(run(served, "mlflow", "restore", run_id, **tracking))
    assert f"{chunks} chunks are served as the run made them" in said
    after = served.client().get_collection("avatar-tracked").get(include=["embeddings", "documents", "metadatas"])
    assert after["ids"] == before["ids"]
    assert after["documents"] == before["documents"]
    assert np.array_equal(np.asarray(after["embeddings"]), np.asarray(before["embeddings"]))
    assert run_id in output_of(run(served, "mlflow", "list", **tracking))


MAKE_MILVUS = """
import sys, numpy as np
from pymilvus import DataType, MilvusClient

milvus = MilvusClient(sys.argv[1])
for metric in ("COSINE", "L2", "IP"):
    schema = milvus.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=64)
    schema.add_field("text", DataType.VARCHAR, max_length=1000)
    schema.add_field("page", DataType.INT64)
    index = milvus.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type=metric)
    milvus.create_collection(metric.lower(), schema=schema, index_params=index)
    random = np.random.default_rng(1)
    rows = [
        {"id": n, "vector": vector.tolist(), "text": f"naïve {n}", "page": n % 7, "tags": ["a", n], "s": n / 3}
        for n, vector in enumerate(random.normal(size=(700, 64)))
    ]
    milvus.insert(metric.lower(), rows)
milvus.close()
"""


def test_collections_of_milvus_lite_move_here(served: Gateway) -> None:
    """Ids, vectors, text, metadata and what searches find are the same, for each metric; a damaged copy is told."""
    python = str(ENVIRONMENTS / "migrate/bin/python")
    file = served.directory / "milvus.db"
    subprocess.run([python, "-c", MAKE_MILVUS, str(file)], check=True, timeout=300, capture_output=True)
    for metric in ("cosine", "l2", "ip"):
        said = output_of(run(served, "migrate", "milvus", "milvus.db", "--from", metric, "--to", f"from-{metric}"))
        same = ["700 records", "700 vectors", "700 texts", "700 metadata", "50 searches, of their first 10 results"]
        assert re.findall(r"^same: (.*)$", said, re.MULTILINE) == same
        assert re.search(r"^snapshot \S+$", said, re.MULTILINE)
    collection = served.client().get_collection("from-l2", embedding_function=None)
    assert collection.configuration_json["hnsw"]["space"] == "l2"
    got = collection.get(ids=["271"], include=["documents", "metadatas"])
    assert got["documents"] == ["naïve 271"]
    assert got["metadatas"] == [{"page": 5, "tags": '["a", 271]', "s": pytest.approx(271 / 3)}]
    refused = run(served, "migrate", "milvus", "milvus.db", "--from", "nothing", "--to", "from-nothing")
    assert (refused.returncode, "has no collection nothing" in refused.stderr) == (1, True)


def test_a_folder_of_pdfs_moves_here(served: Gateway) -> None:
    """Also one of a sub-folder. A file that is no PDF is named, and the others are compared."""
    papers = served.directory / "papers"
    (papers / "old").mkdir(parents=True)
    for name in ("csv", "glob", "old/gzip"):
        text = (served.directory / f"course/{Path(name).name}.md").read_text()
        (papers / f"{name}.pdf").write_bytes(as_pdf(text))
    (papers / "broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    said = output_of(run(served, "migrate", "pdfs", "papers", "--avatar", "papers"))
    assert re.search(r"^without chunks: broken\.pdf: ", said, re.MULTILINE), said
    same = re.findall(r"^same: (\d+) (\S+)", said, re.MULTILINE)
    assert [what for _, what in same] == ["files,", "documents", "vectors,"]
    collection = served.client().get_collection("avatar-papers")
    assert {metadata["document"] for metadata in collection.get()["metadatas"] or []} == {
        *("csv.pdf", "glob.pdf", "old/gzip.pdf")
    }
