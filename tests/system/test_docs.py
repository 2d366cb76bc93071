"""The commands of the documentation do what the pages say, word for word."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documentation import DOCS, ROOT, blocks, run_script, script
from tests.gateway_process import Gateway, gateway_process
from tests.ports import free_port

BIN = Path(sys.prefix) / "bin"
TIMEOUT_S = 280
pytestmark = pytest.mark.timeout(TIMEOUT_S + 20)


def at(port: int, page: Path) -> str:
    """The commands of `page`, for a gateway at `port`."""
    text = script(page, sys.executable)
    return text.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace("port=8000", f"port={port}")


def run(text: str, directory: Path, env: dict[str, str]) -> str:
    """Run `text`, which may not fail; return what it printed."""
    ended = run_script(text, directory, env, TIMEOUT_S)
    log = directory / "gateway.log"
    assert ended.returncode == 0, ended.stdout[-8000:] + (log.read_text()[-8000:] if log.exists() else "")
    return ended.stdout


# ---------------------------------------------------------------------- from a clone


@pytest.fixture
def clone() -> Iterator[Path]:
    """What a clone has after its first setup: scripts, and an environment in .venv."""
    with tempfile.TemporaryDirectory(prefix="clone", dir="/tmp") as name:  # short, for the supervisor's socket
        directory = Path(name)
        (directory / "scripts/image").mkdir(parents=True)
        for each in ("scripts/run", "scripts/install-service", "scripts/image/healthcheck"):
            shutil.copy(ROOT / each, directory / each)
        (directory / "scripts/setup").write_text("#!/bin/sh\n")
        (directory / "scripts/setup").chmod(0o755)
        (directory / ".venv").symlink_to(sys.prefix)
        yield directory


def follow(page: Path, clone: Path) -> str:
    """Do in `clone` what `page` says, from the first start to the last stop; return what it printed."""
    port, chroma_port = free_port(), free_port()
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(clone),
        "PORT": str(port),
        "GATEWAY_CHROMA_PORT": str(chroma_port),
    }
    # Whatever fails, nothing of it stays.
    clean = (
        "scripts/install-service stop --background >/dev/null 2>&1 || true; kill $(jobs -p) 2>/dev/null || true; wait"
    )
    printed = run(f"trap '{clean}' EXIT\n{at(port, page)}", clone, env)
    assert list((clone / "var/store/users/default/vectorstore/snapshots").iterdir())
    return printed


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", pytest.param(DOCS / "quickstart.md", marks=pytest.mark.soak)],
    ids=lambda page: page.name,
)
def test_a_newcomer_loses_the_disk_and_gets_everything_back(page: Path, clone: Path) -> None:
    """README and quickstart: what was written before is there after."""
    assert page.read_text().count("rm -rf var/chroma") == 1
    assert "remember the milk" in follow(page, clone)


@pytest.mark.soak
def test_a_laptop_goes_back_after_an_experiment(clone: Path) -> None:
    """And keeps its settings in .env."""
    assert "remember the milk" in follow(DOCS / "start/laptop.md", clone)
    assert "GATEWAY_SNAPSHOT_INTERVAL_S=1h" in (clone / ".env").read_text()


@pytest.mark.soak
def test_a_pod_serves_from_a_clone(clone: Path) -> None:
    """It is started, used and stopped by the commands of the page, with its settings in .env."""
    assert "ready" in follow(DOCS / "start/pod.md", clone)


# ---------------------------------------------------------------------- beside a running gateway


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    with gateway_process(GATEWAY_JOURNAL_INTERVAL_S="1") as built:
        built.start()
        notes = built.client().create_collection("notes", embedding_function=None)
        notes.add(ids=["1"], embeddings=[[0.1, 0.2, 0.3]])
        yield built


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("journal.md", marks=pytest.mark.soak),  # test_history.py goes back in short tests
        "monitoring.md",
        "admin-api.md",
        pytest.param("snapshots-and-restore.md", marks=pytest.mark.soak),
        pytest.param("start/on-call.md", marks=pytest.mark.soak),
    ],
)
def test_the_commands_of_a_page_work(name: str, served: Gateway) -> None:
    """Each ends well, in the order of the page."""
    run(at(served.port, DOCS / name), served.directory, served.env | {"PATH": f"{BIN}:{os.environ['PATH']}"})
    served.until(
        lambda: all(job["state"] != "running" for job in served.admin("GET", "/jobs").json()["jobs"]), "it is idle"
    )


def test_every_page_with_commands_is_run() -> None:
    """A block that is fenced as bash or python is run: here, or by the tests of keys, documents and clients."""
    run_here = {"README.md", "quickstart.md", "laptop.md", "pod.md"}
    run_here |= {"snapshots-and-restore.md", "journal.md", "monitoring.md", "admin-api.md", "on-call.md"}
    fenced = {page.name for page in (ROOT / "README.md", *DOCS.rglob("*.md")) if blocks(page, "bash", "python")}
    assert fenced == run_here | {"security.md", "training-documents.md", "clients.md"}
