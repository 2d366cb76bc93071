"""File systems that a test can fill."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def mount(*arguments: str) -> None:
    """Raises CalledProcessError, and OSError where there is no such command."""
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def small_disk(mib: int = 24) -> Iterator[Path]:
    """A file system of that size. Skips the test where none can be mounted."""
    with tempfile.TemporaryDirectory(prefix="gw-disk-") as path:
        try:
            mount("-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", path)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a file system is not allowed here")
        try:
            yield Path(path)
        finally:
            subprocess.run(["umount", "--recursive", "--lazy", path], check=False)


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """No byte is left for the time of the block."""
    filler = disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, 1 << 40)
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        yield
    finally:
        filler.unlink()
