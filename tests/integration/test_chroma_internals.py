"""The facts about Chroma in docs/chroma-internals.md hold for the installed Chroma."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/chroma-internals.md").read_text()
_FENCE = re.compile(r"^### ([^\n]+)$|^```py(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def scripts(kind: str) -> dict[str, str]:
    """Scripts of the page with this word after `py`, by the heading above them."""
    found, heading = {}, ""
    for title, word, script in _FENCE.findall(PAGE):
        heading = title or heading
        if script and word == kind:
            found[heading] = script
    return found


(SETUP,) = scripts("setup").values()
FACTS = scripts("")


@pytest.mark.parametrize("heading", FACTS)
def test_a_fact_holds(heading: str) -> None:
    """Its script ends without an error."""
    exec(compile(SETUP + FACTS[heading], heading, "exec"), {})


def test_slow_scripts_are_valid() -> None:
    """They are not run here, and still have to be Python."""
    for heading, script in scripts("slow").items():
        compile(SETUP + script, heading, "exec")
