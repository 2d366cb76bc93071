"""Patterns of names: what they match, and what they cost."""

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as some

from gateway.auth.scope import Names


@given(some.text("ab-*?.[]\n", min_size=1, max_size=10), some.text("ab-.[]\n", max_size=12))
def test_stars_and_question_marks_mean_what_they_do_in_a_shell(pattern: str, name: str) -> None:
    """And all else means itself."""
    assert (name in Names.of([pattern])) is fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))


@pytest.mark.parametrize("pattern", ["*-*-prod", "*-*-*-*-*-prod", "a*-?*-?*-?*z", "**-**-**z"])
def test_no_name_takes_long(pattern: str) -> None:
    """Whoever has a key chooses the names that are looked at, and everybody waits meanwhile."""
    names = Names.of([pattern, "other-*-*-x"])
    began_s = time.monotonic()
    for name in ("-" * 60_000, "a" + "-" * 60_000, "-a" * 30_000):
        assert name not in names
    assert time.monotonic() - began_s < 1
