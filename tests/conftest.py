"""What holds for all tests."""

from collections.abc import Iterator

import hypothesis
import pytest
import structlog

# How long an example takes says more about this machine than about the code.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def structlog_defaults() -> Iterator[None]:
    """A command under test sets up the log of its process. The next test has the defaults again."""
    yield
    structlog.reset_defaults()
