"""What the README says without a server."""

import hashlib
import json
import re
from pathlib import Path

from chroma import EmbeddingSet, Tag
from chroma.configuration import load_configuration

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_every_tag_is_in_the_table() -> None:
    """No more and no less."""
    assert re.findall(r"^\| `(\w+)` \| .* (?:recommended|not useful) \|$", README, re.MULTILINE) == [
        each.value for each in (Tag.COLD_START, Tag.NEAR_DUPLICATE, Tag.OUTLIER, Tag.BOUNDARY, Tag.EXPLORE)
    ]


def test_every_setting_is_in_the_table() -> None:
    """And in the example, which is valid."""
    [example] = [text for text in re.findall(r"^```json\n(.*?)^```", README, re.M | re.S) if "api_key" in text]
    loaded = load_configuration(chroma_json=example)
    rows = re.findall(r"^\| `(\w+)` \| (?:none|`.*`) \|", README, re.MULTILINE)
    assert set(rows) == set(vars(loaded)) == set(json.loads(example))


def test_the_id_can_be_computed_by_other_programs() -> None:
    """As the README shows it for sha1sum."""
    [text] = re.findall(r"printf '(.*)' \| sha1sum", README)
    assert hashlib.sha1(text.encode()).hexdigest() == EmbeddingSet(json.loads(text)).id
