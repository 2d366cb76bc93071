"""What holds for all tests."""

import functools
from collections.abc import Generator, Iterator
from pathlib import Path

import botocore.loaders
import botocore.session
import hypothesis
import pytest
import structlog

from gateway.light_imports import kept_for_good
from tests import servers

# scripts/test-console runs these, with a browser.
collect_ignore = ["console"]

TESTS = Path(__file__).parent

# How long an example takes says more about this machine than about the code.
hypothesis.settings.register_profile("tests", deadline=None, max_examples=30)
# scripts/test --soak runs every property again with as many examples as usual.
hypothesis.settings.register_profile("soak", deadline=None)
hypothesis.settings.load_profile("tests")

# Each session of botocore parses its description of S3, which takes 200 ms of CPU time. It is the same for all tests.
botocore.session.create_loader = functools.cache(botocore.loaders.create_loader)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """All tests stay, so nothing is gained by looking through them for garbage, now or during each test."""
    with kept_for_good():
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the files of each kind over the whole run: system tests wait much, while unit tests compute."""
    kinds: dict[Path, list[Path]] = {}
    for file in dict.fromkeys(item.path for item in items):
        kinds.setdefault(next((kind for kind in file.parents if kind.parent == TESTS), file.parent), []).append(file)
    # The system tests, which are long, are not the last ones.
    until = {TESTS / "system": 0.85}
    place = {
        file: (number + 0.5) / len(files) * until.get(kind, 1)
        for kind, files in kinds.items()
        for number, file in enumerate(files)
    }
    items.sort(key=lambda item: place[item.path])


@pytest.fixture(scope="session")
def ministack() -> Iterator[servers.S3Server]:
    """An S3 server for all tests, each with buckets of its own: to start one costs as much as a test."""
    with servers.ministack() as server:
        yield server


@pytest.fixture(autouse=True)
def structlog_defaults() -> Iterator[None]:
    """A command under test sets up the log of its process. The next test has the defaults again."""
    yield
    structlog.reset_defaults()
