"""Comments that cite docs/chroma-internals.md name one of its headings."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_citation_names_a_heading() -> None:
    """Also where the citation runs over the end of a line."""
    headings = set(re.findall(r"^##+ (.+)$", (ROOT / "docs/chroma-internals.md").read_text(), re.MULTILINE))
    cited = {
        heading
        for file in (ROOT / "gateway").rglob("*.py")
        for heading in re.findall(r'chroma-internals\.md, "([^"]+)"', re.sub(r"\s+#?\s*", " ", file.read_text()))
    }
    assert len(cited) > 3
    assert cited <= headings
