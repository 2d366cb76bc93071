"""Write a small Chroma directory as an old chromadb did: `python make_old_chroma.py TARGET.tar.gz`.

Run it with an interpreter that has that version installed, e.g. chromadb==0.4.24 or 0.5.23 (and numpy<2).
"""

import sys
import tarfile
import tempfile

import chromadb
from chromadb.config import Settings

DIMENSION = 8


def vector(number: int) -> list[float]:
    return [float((number * 7 + place * 3) % 11) for place in range(DIMENSION)]


def main(target: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings(anonymized_telemetry=False)
        client = chromadb.PersistentClient(directory, settings)
        synced = client.create_collection(
            "synced", metadata={"hnsw:space": "cosine", "hnsw:sync_threshold": 20, "hnsw:batch_size": 10}
        )
        numbers = range(50)
        synced.add(
            ids=[str(number) for number in numbers],
            embeddings=[vector(number) for number in numbers],
            documents=[f"document {number}" for number in numbers],
            metadatas=[{"number": number} for number in numbers],
        )
        unsynced = client.create_collection("unsynced")
        unsynced.add(ids=["a", "b"], embeddings=[vector(1), vector(2)], documents=["one", "two"])
        client.create_collection("empty")
        with tarfile.open(target, "w:gz") as archive:
            archive.add(directory, arcname="chroma_db")


if __name__ == "__main__":
    main(sys.argv[1])
