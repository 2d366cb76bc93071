"""Chroma's JavaScript client works through keys as the Python one does, where Node and its registry can be reached."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gateway_process import ROOT, gateway_process
from tests.keys import Keys


def test_the_javascript_client_notices_nothing_but_its_key(tmp_path: Path) -> None:
    """With either header; it sees its scope and no more, and refusals raise the client's own error types."""
    for name in ("client.mjs", "package.json"):
        shutil.copy(ROOT / "tests/js" / name, tmp_path)
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    installed = subprocess.run(
        [npm, "install", "--no-save"], cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False
    )
    if installed.returncode:
        pytest.skip(f"npm cannot fetch chromadb: {installed.stderr[-200:]}")
    keys = Keys(tmp_path / "keys.json")
    tokens = {
        "WRITER": keys.add("writer", "writer"),
        "READER": keys.add("reader", "reader"),
        "SCOPED": keys.add("scoped", "reader", collections=["js-*"]),
    }
    with gateway_process(GATEWAY_KEYS_FILE=str(keys.path)) as built:
        built.start()
        env = {"PORT": str(built.port), "PATH": "/usr/bin:/bin", **tokens}
        node = shutil.which("node") or "node"
        done = subprocess.run(
            [node, "client.mjs"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout.strip()) == (0, "all as expected"), done.stderr
