"""The wheel alone serves: what `pip install`, `pipx` and `uvx` install is all that is needed."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.gateway_process import ROOT, gateway_process


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
    # Nothing of the checkout is on the path, and the admin token is made at the start.
    with gateway_process(PYTHONPATH="", GATEWAY_ADMIN_TOKEN="") as installed:
        installed.command = [str(tmp_path / "venv/bin/chroma-gateway"), "serve"]
        assert installed.start().stop() == 0, installed.output()


def copy_of_sources(directory: Path) -> Path:
    """What the wheel is built of, elsewhere: a build leaves its own files beside the sources."""
    sources = directory / "sources"
    sources.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "supervisord.conf"):
        (sources / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["cp", "-r", str(ROOT / "gateway"), str(sources / "gateway")], check=True)
    return sources
