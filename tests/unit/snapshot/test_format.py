"""FORMAT.md says what the code does, where that can be compared."""

import re
from pathlib import Path

from gateway import snapshot
from gateway.snapshot import packing, plan
from gateway.snapshot.model import FORMAT, File, Manifest

TEXT = (Path(snapshot.__file__).parent / "FORMAT.md").read_text()


def test_it_describes_this_format() -> None:
    """Its number, and the numbers that bound a chain and a piece, are those of the code."""
    assert f"\nFormat {FORMAT}." in TEXT
    assert f"at most {plan.MAX_PATCHES} patches" in TEXT
    assert f"up to {packing.PIECE_BYTES >> 20} MiB" in TEXT
    assert f"about {packing.PACK_BYTES >> 20} MiB" in TEXT


def test_it_names_every_field() -> None:
    """Every field of a manifest and of its files is described."""
    fields = {*Manifest.model_fields, *File.model_fields}
    assert fields <= set(re.findall(r"\w+", TEXT))
