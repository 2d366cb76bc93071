"""Patterns of names: `gateway.auth.scope`."""

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as some

from gateway.auth.scope import Names


@given(some.text("ab-*?.[]\n", min_size=1, max_size=10), some.text("ab-.[]\n", max_size=12))
def test_a_pattern_matches_as_in_a_shell(pattern: str, name: str) -> None:
    """All characters but `*` and `?` match themselves."""
    assert (name in Names.of([pattern])) is fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))


@pytest.mark.parametrize("pattern", ["*-*-prod", "*-*-*-*-*-prod", "a*-?*-?*-?*z", "**-**-**z"])
def test_matching_takes_linear_time(pattern: str) -> None:
    """Names are attacker-controlled, and matching blocks the event loop."""
    names = Names.of([pattern, "other-*-*-x"])
    began_s = time.monotonic()
    for name in ("-" * 60_000, "a" + "-" * 60_000, "-a" * 30_000):
        assert name not in names
    # Quadratic time would be minutes.
    assert time.monotonic() - began_s < 20
