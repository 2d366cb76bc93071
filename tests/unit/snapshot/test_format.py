"""docs/format.md agrees with the code, where the two can be compared."""

import re
from pathlib import Path

from gateway.lease.state import LeaseState
from gateway.snapshot import packing, plan
from gateway.snapshot.model import FORMAT, File, Manifest

TEXT = (Path(__file__).parents[3] / "docs/format.md").read_text()


def test_format_page_has_the_numbers_of_the_code() -> None:
    """The format's version, the most patches of a file, and the sizes of a piece and a pack."""
    assert f"\nFormat {FORMAT}." in TEXT
    assert f"at most {plan.MAX_PATCHES} patches" in TEXT
    assert f"up to {packing.PIECE_BYTES >> 20} MiB" in TEXT
    assert f"about {packing.PACK_BYTES >> 20} MiB" in TEXT


def test_format_page_names_every_field() -> None:
    """Every field of a manifest, of its files and of the lease is described."""
    fields = {*Manifest.model_fields, *File.model_fields, *LeaseState.model_fields}
    assert fields <= set(re.findall(r"\w+", TEXT))
