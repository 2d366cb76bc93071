"""The wheel alone serves: what `pip install`, `pipx` and `uvx` install is all that is needed."""

import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

import pytest

from tests.gateway_process import ROOT, gateway_process
from tests.system.test_docs import follow


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with the wheel in it, outside the checkout. Its dependencies come from the environment of the tests."""
    tmp_path = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(copy_of_sources(tmp_path))], check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv/bin/python"
    site = next((tmp_path / "venv/lib").glob("python3*/site-packages"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, timeout=120)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return tmp_path / "venv"


@pytest.mark.soak
def test_a_wheel_serves(environment: Path) -> None:
    """At the address of its options. No checkout is on the path, and the admin token is made at the start."""
    with gateway_process(PYTHONPATH="", GATEWAY_ADMIN_TOKEN="") as installed:
        where = ("--host", "127.0.0.1", "--port", installed.env.pop("PORT"))
        installed.command = [str(environment / "bin/chroma-gateway"), "serve", *where]
        assert installed.start().stop() == 0, installed.output()


@pytest.mark.soak
def test_a_wheel_has_the_console(environment: Path) -> None:
    """Its files are no Python modules, so they are in it only because pyproject.toml names them."""
    (installed,) = environment.glob("lib/python3*/site-packages/gateway/console/static")
    sources = ROOT / "gateway/console/static"
    assert _files(installed) == _files(sources)


def _files(directory: Path) -> set[Path]:
    return {path.relative_to(directory) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.soak
def test_the_demonstration_of_the_readme_works_on_a_wheel(environment: Path) -> None:
    """All of it, with the installed command for `scripts/run`: what was written before the disk was lost is there."""
    with tempfile.TemporaryDirectory(prefix="wheel", dir="/tmp") as name:  # short, for the supervisor's socket
        directory = Path(name)
        (directory / "scripts").mkdir()
        (directory / "scripts/run").write_text("#!/bin/sh\nexec .venv/bin/chroma-gateway serve\n")
        (directory / "scripts/run").chmod(0o755)
        (directory / ".venv").symlink_to(environment)
        assert "remember the milk" in follow(ROOT / "README.md", directory)


def copy_of_sources(directory: Path) -> Path:
    """What the wheel is built of, elsewhere: a build leaves its own files beside the sources."""
    sources = directory / "sources"
    sources.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "supervisord.conf"):
        (sources / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["cp", "-r", str(ROOT / "gateway"), str(sources / "gateway")], check=True)
    return sources
