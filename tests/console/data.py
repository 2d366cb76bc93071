"""Data that a console has to show: ordinary ones, hostile ones, large ones."""

import random
from urllib.parse import quote

import chromadb
from chromadb.config import Settings

from tests.gateway_process import ADMIN_TOKEN, Gateway

RUN = "window.executed = 1"
MARKUP = f"<img src=x onerror='{RUN}'><script>{RUN}</script><svg onload='{RUN}'>"
HOSTILE_DOCUMENT = f"<script>{RUN}</script>.md"
LARGE = "a large document " * 620_000  # about 10 MB
RECORDS = 230
HEADERS = {"X-Chroma-Token": ADMIN_TOKEN}
NOTES = [
    ("The exam is in May, in the large hall.", "exams"),
    ("Lectures begin at a quarter past eight.", "lectures"),
    ("The library opens at nine and closes at midnight.", "library"),
    ("Return books within four weeks.", "library"),
    ("The canteen has soup on Fridays.", "canteen"),
    ("Exercises are handed in on Mondays.", "exercises"),
]


def fill(gateway: Gateway) -> None:
    """Collections in two tenants, records of all sorts, an avatar with documents, a snapshot."""
    client, numbers = gateway.client(headers=HEADERS), random.Random(0)

    def vectors(count: int) -> list[list[float]]:
        return [[numbers.random() for _ in range(8)] for _ in range(count)]

    notes = [NOTES[number % len(NOTES)] for number in range(RECORDS)]
    handbook = client.create_collection(
        "handbook",
        embedding_function=None,
        metadata={"owner": "ada"},
        configuration={"hnsw": {"space": "cosine", "sync_threshold": 100, "batch_size": 50}},
    )
    handbook.add(
        ids=[f"note-{number:04}" for number in range(RECORDS)],
        embeddings=vectors(RECORDS),
        documents=[text for text, _ in notes],
        metadatas=[
            {"topic": topic, "page": number, "final": number % 2 == 0} for number, (_, topic) in enumerate(notes)
        ],
    )
    hostile = client.create_collection("hostile", embedding_function=None, metadata={"note": MARKUP})
    hostile.add(
        ids=[MARKUP, "number", "empty"],
        embeddings=vectors(3),
        documents=[MARKUP, "9007199254740993 is in the metadata", ""],
        metadatas=[{MARKUP: MARKUP, "key": MARKUP}, {"whole": 9007199254740993, "part": 0.5}, {"key": ""}],
    )
    large = client.create_collection("large", embedding_function=None)
    large.add(ids=["large", "small"], embeddings=vectors(2), documents=[LARGE, "a small document"])
    settings = Settings(
        chroma_api_impl="chromadb.api.fastapi.FastAPI",
        chroma_server_host="127.0.0.1",
        chroma_server_http_port=gateway.port,
        chroma_server_headers=HEADERS,
    )
    admin = chromadb.AdminClient(settings)
    admin.create_tenant("acme")
    admin.create_database("web", tenant="acme")
    web = gateway.client(tenant="acme", database="web", headers=HEADERS)
    web.create_collection("products", embedding_function=None)
    for number, (text, topic) in enumerate(NOTES):
        store(gateway, f"{topic}-{number}.md", f"# {topic}\n\n{text}\n")
    store(gateway, HOSTILE_DOCUMENT, "Nothing here is run.")
    gateway.snapshot("first")


def store(gateway: Gateway, name: str, text: str, avatar: str = "ada") -> None:
    """Put a document into an avatar's folder."""
    answer = gateway.admin("PUT", f"/users/default/avatars/{avatar}/vectorstore_data/{quote(name)}", content=text)
    assert answer.status_code in (200, 201), answer.text
