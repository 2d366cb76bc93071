"""A disk that fails or vanishes is named in `/readyz` while Chroma still answers from memory."""

import os
import shutil
import subprocess

import httpx

from tests.gateway_process import Gateway, gateway_process
from tests.small_disk import filled, mount, small_disk


def warns_of(built: Gateway, name: str) -> bool:
    answer = built.readyz()
    return answer.status_code == 200 and any(each.startswith(f"{name}: ") for each in answer.json()["warnings"])


def test_a_full_a_read_only_and_a_forbidden_disk_are_named() -> None:
    """By the error's name, within seconds, as long as it lasts. Reads are served meanwhile."""
    with small_disk() as disk, gateway_process(GATEWAY_DATA_DIR=str(disk)) as built:
        built.start()
        hnsw = {"hnsw": {"sync_threshold": 2, "batch_size": 2}}
        notes = built.client().create_collection("notes", embedding_function=None, configuration=hnsw)
        notes.add(ids=["a", "b", "c"], embeddings=[[1, 0], [0, 1], [1, 1]])

        with filled(disk):
            built.until(lambda: warns_of(built, "ENOSPC"), "the full disk is named", 20)
            assert notes.count() == 3
        built.until(lambda: not warns_of(built, "ENOSPC"), "the disk is good again", 20)

        (header,) = disk.glob("*/header.bin")
        mount("--bind", str(header), str(header))
        mount("-o", "remount,bind,ro", str(header))
        assert not os.access(header, os.W_OK)
        built.until(lambda: warns_of(built, "EACCES"), "the index file is named", 20)
        subprocess.run(["umount", str(header)], check=True)
        built.until(lambda: not warns_of(built, "EACCES"), "the index is good again", 20)
        assert notes.count() == 3


def test_a_data_directory_that_is_deleted_stops_writes() -> None:
    """They get 503 with the reason and the way out. Started again, the gateway has what was saved."""
    with gateway_process(GATEWAY_SNAPSHOT_ON_EXIT="true") as built:
        built.start()
        notes = built.client().create_collection("notes", embedding_function=None)
        notes.add(ids=["saved"], embeddings=[[0.0, 1.0]])
        saved = built.snapshot()["id"]
        add = f"{built.url}/api/v2/tenants/default_tenant/databases/default_database/collections/{notes.id}/add"
        # Renamed first: what runs would write into a directory that is being removed.
        shutil.rmtree(built.data_dir.rename(built.data_dir.with_name("deleted")))
        built.until(lambda: built.readyz().status_code == 503, "/readyz says so")
        answer = httpx.post(add, json={"ids": ["late"], "embeddings": [[1.0, 0.0]]})
        assert answer.status_code == 503, answer.text
        assert "put it back, or restart" in answer.json()["message"]
        ready = built.readyz()
        assert (ready.status_code, ready.json()["phase"]) == (503, "data-dir-gone")
        assert not built.admin("POST", "/snapshot").is_success
        built.stop()
        built.start()
        notes = built.client().get_collection("notes", embedding_function=None)
        assert notes.get()["ids"] == ["saved"]
        assert [each["id"] for each in built.admin("GET", "/snapshot").json()["snapshots"]] == [saved]
