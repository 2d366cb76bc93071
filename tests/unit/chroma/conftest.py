"""A data directory that a real Chroma wrote."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.bare_chroma import bare_chroma

RECORDS, DIMENSION = 400, 8


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two collections: `synced` has an index on disk and ids with dots, `unsynced` has only its log."""
    path = tmp_path_factory.mktemp("chroma")
    with bare_chroma(path) as chroma:
        client, random = chroma.client(), np.random.default_rng(0)
        synced = client.create_collection(
            "synced", embedding_function=None, configuration={"hnsw": {"sync_threshold": 100, "batch_size": 50}}
        )
        for start in range(0, RECORDS, 50):
            ids = [f"u.menu}}u.{number}.md" for number in range(start, start + 50)]
            synced.add(ids=ids, embeddings=random.random((50, DIMENSION)).tolist(), documents=ids)
        client.create_collection("unsynced", embedding_function=None).add(ids=["1"], embeddings=[[1.0, 2.0]])
    return path


@pytest.fixture
def data_dir(written: Path, tmp_path: Path) -> Path:
    """A copy for one test."""
    path = tmp_path / "data"
    shutil.copytree(written, path)
    return path
