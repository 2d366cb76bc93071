"""What holds for all unit tests."""

import os

import pytest


@pytest.fixture(autouse=True)
def _without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush to the disk takes milliseconds, and no crash of a unit test loses what the kernel has.

    A test that counts flushes replaces `os.fsync` itself.
    """
    monkeypatch.setattr(os, "fsync", lambda _: None)
