"""Back to any moment and back again, with the journal of one gateway."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from chromadb.api import ClientAPI

from tests.bare_chroma import bare_chroma
from tests.commands import run_command
from tests.gateway_process import Gateway, gateway_process

Contents = dict[str, dict[str, tuple[list[float], str]]]


def contents(client: ClientAPI) -> Contents:
    """Every record of every collection: its embedding and its document, by id."""
    found: Contents = {}
    for collection in client.list_collections():
        got: Any = collection.get(include=["embeddings", "documents"])
        found[collection.name] = {
            record_id: (np.asarray(embedding, np.float32).tolist(), document)
            for record_id, embedding, document in zip(got["ids"], got["embeddings"], got["documents"], strict=True)
        }
    return found


def write(gateway: Gateway, name: str, *numbers: int) -> None:
    """Upsert a record for each number."""
    collection = gateway.client().get_or_create_collection(name, embedding_function=None)
    collection.upsert(
        ids=[f"r{number}" for number in numbers],
        embeddings=[[float(number), 1.0, 0.5] for number in numbers],
        documents=[f"document {number}" for number in numbers],
    )


def flushed(gateway: Gateway) -> dict[str, Any]:
    answer = gateway.admin("POST", "/flush")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def command(gateway: Gateway, *arguments: str) -> str:
    ended = run_command(gateway, *arguments)
    assert ended.returncode == 0, ended.stderr
    return str(ended.stdout)


def test_every_moment_comes_back_and_every_restore_can_be_undone(tmp_path: Path) -> None:
    """By command and by route, from a running gateway, offline and on a lost disk."""
    with gateway_process(GATEWAY_JOURNAL_INTERVAL_S="1") as gateway:
        gateway.start()
        write(gateway, "kept", *range(50))
        flushed(gateway)  # the first checkpoint
        write(gateway, "dropped", 1, 2, 3)
        early = contents(gateway.client())
        moment = flushed(gateway)["at"]
        write(gateway, "kept", *range(40, 60))
        gateway.client().delete_collection("dropped")
        write(gateway, "new", 7)
        late = contents(gateway.client())

        preview = json.loads(command(gateway, "restore", "--at", moment, "--dry-run", "--json"))
        assert {each["name"]: each["records"] for each in preview["collections"]} == {"kept": 50, "dropped": 3}
        assert preview["entries"] >= 1
        assert contents(gateway.client()) == late, "a dry run changes nothing"

        restored = json.loads(command(gateway, "restore", "--at", moment, "--json"))
        assert (contents(gateway.client()), restored["stored"]) == (early, True)
        assert restored["at"] <= moment
        undo = restored["undo"].removeprefix("chroma-gateway ").split()
        assert undo[:2] == ["restore", "--at"]
        assert "to go back: chroma-gateway restore --at " in command(gateway, *undo)
        assert contents(gateway.client()) == late

        # The state after a restore is what a lost disk brings back, not the one before.
        snapshot = gateway.snapshot("by hand")
        write(gateway, "kept", 99)
        answer = gateway.admin("POST", f"/snapshot/{snapshot['id']}/restore").json()
        assert answer["return_to"] is not None
        assert contents(gateway.client()) == late

        history = gateway.admin("GET", "/history").json()
        assert history["gaps"] == []
        assert history["oldest"] < moment < history["newest"]
        assert snapshot["id"] in [each["id"] for each in history["snapshots"]]
        kinds = [mark["kind"] for mark in history["marks"]]
        assert kinds[-1] == "seal"
        assert restored["at"] in [mark["restored_to"] for mark in history["marks"]]
        assert "any moment from" in command(gateway, "history")

        gateway.lose_disk()
        gateway.start()
        assert contents(gateway.client()) == late
        gateway.kill()
        offline = tmp_path / "offline"
        store = f"file://{gateway.store_dir}"
        command(gateway, "restore", "--store", store, "--data-dir", str(offline), "--at", moment)
        with bare_chroma(offline) as chroma:
            assert contents(chroma.client()) == early
