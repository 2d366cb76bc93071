"""The wheel alone serves: what `pip install`, `pipx` and `uvx` install is all that is needed."""

import os
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import httpx
import pytest

from tests.gateway_process import ROOT, free_port

START_TIMEOUT_S = 60


@pytest.mark.soak
def test_a_wheel_serves(tmp_path: Path) -> None:
    """In an environment of its own, outside the checkout. Its dependencies come from the environment of the tests."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(copy_of_sources(tmp_path))], check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv/bin/python"
    site = next((tmp_path / "venv/lib").glob("python3*/site-packages"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, timeout=120)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    port = free_port()
    work = tmp_path / "work"
    work.mkdir()
    log = (work / "log").open("wb")
    process = subprocess.Popen(
        [str(tmp_path / "venv/bin/chroma-gateway"), "serve"],
        cwd=work,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(work),
            "PORT": str(port),
            "GATEWAY_CHROMA_PORT": str(free_port()),
        },
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None, (work / "log").read_text()
            assert time.monotonic() < deadline, (work / "log").read_text()
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 0, (work / "log").read_text()
    finally:
        process.kill()
        log.close()


def copy_of_sources(directory: Path) -> Path:
    """What the wheel is built of, elsewhere: a build leaves its own files beside the sources."""
    sources = directory / "sources"
    sources.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "supervisord.conf"):
        (sources / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["cp", "-r", str(ROOT / "gateway"), str(sources / "gateway")], check=True)
    return sources
