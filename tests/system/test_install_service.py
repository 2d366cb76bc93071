"""scripts/install-service without systemd: the life of a gateway in a git clone, with versions that fail."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import chromadb
import httpx
import pytest

from tests.gateway_process import ROOT
from tests.ports import free_port

TOKEN = "a-token-of-an-admin-0123456789abcdef"
NEEDED = ("scripts/install-service", "scripts/image/healthcheck", "supervisord.conf", "pyproject.toml")


class Clone:
    """A git clone with three versions: `v1` that runs, `v2` that is like it, `v3` that cannot be installed."""

    def __init__(self, path: Path) -> None:
        self.path, self.port = path, free_port()
        self.env = {"PATH": os.environ["PATH"], "HOME": str(path), "PYTHONPATH": str(ROOT)}
        self.env |= {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        for name in NEEDED:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, path / name)
        # What is installed here serves, at any version: what the script does is what is tested.
        (path / ".venv").symlink_to(sys.prefix)
        (path / ".gitignore").write_text(".venv\n.env\nvar\n")
        (path / ".env").write_text(
            f"# of this machine\nPORT={self.port}\nGATEWAY_ADMIN_TOKEN={TOKEN}\nGATEWAY_CHROMA_PORT={free_port()}\n"
            "GATEWAY_SNAPSHOT_ON_EXIT=true\n"
        )
        self.git("init", "--quiet", "--initial-branch=main")
        for version, setup in ("v1", "exit 0"), ("v2", "exit 0 # anew"), ("v3", "echo no such package >&2; exit 1"):
            (path / "scripts/setup").write_text(f"#!/bin/sh\n{setup}\n")
            (path / "scripts/setup").chmod(0o755)
            self.git("add", ".")
            self.git("commit", "--quiet", "--message", version)
            self.git("tag", version)
        self.git("checkout", "--quiet", "v1")

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=self.path, env=self.env, check=True, capture_output=True, text=True
        ).stdout

    def service(self, *arguments: str, status: int = 0) -> str:
        """Run the script; return what it said."""
        # Into a file: what it starts in the background goes on, and holds what it was given.
        with tempfile.TemporaryFile() as said:
            ended = subprocess.run(
                [self.path / "scripts/install-service", *arguments, "--background"],
                check=False,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                timeout=120,
            )
            said.seek(0)
            text = said.read().decode()
        assert ended.returncode == status, text
        assert "Traceback" not in text
        return text

    def version(self) -> str:
        return self.git("describe", "--tags", "--always").strip()

    def collection(self) -> chromadb.Collection:
        client = chromadb.HttpClient(port=self.port, headers={"Authorization": f"Bearer {TOKEN}"})
        return client.get_or_create_collection("notes", embedding_function=None)

    def admin(self, method: str, path: str) -> httpx.Response:
        url = f"http://127.0.0.1:{self.port}/admin{path}"
        return httpx.request(method, url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)


@pytest.fixture
def clone() -> Iterator[Clone]:
    # Short, for the supervisor's socket.
    with tempfile.TemporaryDirectory(prefix="clone", dir="/tmp") as directory:
        built = Clone(Path(directory))
        try:
            yield built
        finally:
            built.service("stop")


@pytest.mark.soak
def test_a_service_from_its_start_over_upgrades_to_its_end(clone: Clone) -> None:
    assert "not ready" in clone.service("status", status=1)
    assert "ready at" in clone.service("start")
    assert "runs already" in clone.service("start", status=1)
    assert "ready at" in clone.service("status")
    clone.collection().add(ids=["1"], embeddings=[[0.1, 0.2]], documents=["before all upgrades"])

    assert "now at v2" in clone.service("upgrade", "v2")
    assert clone.version() == "v2"
    assert clone.collection().get()["documents"] == ["before all upgrades"]
    assert "before v2" in {each["label"] for each in clone.admin("GET", "/snapshot").json()["snapshots"]}

    said = clone.service("upgrade", "v3", status=1)
    assert "no such package" in said
    assert "going back to" in said
    assert clone.version() == "v2"
    assert clone.collection().get()["documents"] == ["before all upgrades"]

    clone.collection().add(ids=["2"], embeddings=[[0.3, 0.2]])
    clone.service("stop")
    assert "not ready" in clone.service("status", status=1)
    shutil.rmtree(clone.path / "var/chroma")
    clone.service("start")
    assert clone.collection().count() == 2


def test_no_upgrade_without_a_snapshot_to_come_back_to(clone: Clone) -> None:
    assert "say to which version" in clone.service("upgrade", status=2)
    assert "say start" in clone.service("begin", status=2)
    assert "not ready now" in clone.service("upgrade", "v2", status=1)
    clone.service("start")
    assert "there is no v9 here" in clone.service("upgrade", "v9", status=1)
    clone.admin("POST", "/quiesce").raise_for_status()
    try:
        assert "no snapshot, no upgrade" in clone.service("upgrade", "v2", status=1)
    finally:
        clone.admin("POST", "/resume").raise_for_status()
    assert clone.version() == "v1"
    (clone.path / "pyproject.toml").write_text("mine")
    assert "local changes" in clone.service("upgrade", "v2", status=1)
    assert "ready at" in clone.service("status")
