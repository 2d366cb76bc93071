"""A manifest is checked before anything of it is used."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import CorruptSnapshot, IncompatibleSnapshot
from gateway.snapshot.model import FORMAT, Manifest, check_format, damaged, is_snapshot_id, new_snapshot_id
from tests.unit.snapshot.manifests import ID, NEWER, OLDER, SEGMENT, forged, manifest

STORED = manifest().to_bytes()


def test_parsed_manifest_equals_the_stored_one() -> None:
    """To the microsecond of a time and the last bit of a float."""
    assert Manifest.parse(STORED, ID) == manifest()


def test_manifest_serializes_to_the_same_bytes() -> None:
    """A manifest that was parsed serializes to the bytes it was parsed from."""
    assert Manifest.parse(STORED, ID).to_bytes() == STORED


def test_every_truncated_manifest_is_refused() -> None:
    """A manifest that is cut off after any number of bytes is corrupt."""
    for end in range(len(STORED)):
        with pytest.raises(CorruptSnapshot, match=ID):
            Manifest.parse(STORED[:end], ID)


@given(position=st.integers(0, len(STORED) - 1), mask=st.integers(1, 255))
def test_flipped_byte_is_refused_or_changes_nothing(position: int, mask: int) -> None:
    """No single changed byte makes a different manifest."""
    changed = bytearray(STORED)
    changed[position] ^= mask
    try:
        parsed = Manifest.parse(bytes(changed), ID)
    except (CorruptSnapshot, IncompatibleSnapshot):
        return
    assert parsed == manifest()


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0\0\0", b"\xff\xfe\xfd", b"<html>", b"null", b"[]", b'"text"', b"7", b"{}", b"[" * 200_000],
    ids=["empty", "zeros", "no-text", "html", "null", "list", "string", "number", "object", "nested"],
)
def test_anything_but_a_manifest_is_corrupt(data: bytes) -> None:
    """The error names the snapshot."""
    with pytest.raises(CorruptSnapshot, match=ID):
        Manifest.parse(data, ID)


def test_changed_manifest_is_refused_by_its_digest() -> None:
    """A valid manifest with one changed number is refused."""
    document = json.loads(STORED)
    document["manifest"]["snapshot"]["collections"][0]["records"] += 1
    with pytest.raises(CorruptSnapshot, match="was changed"):
        Manifest.parse(json.dumps(document).encode(), ID)


@pytest.mark.parametrize("missing", ["digest", "manifest"])
def test_manifest_without_digest_or_body_is_corrupt(missing: str) -> None:
    """The error names the missing part."""
    document = json.loads(STORED)
    del document[missing]
    with pytest.raises(CorruptSnapshot, match=missing):
        Manifest.parse(json.dumps(document).encode(), ID)


def test_newer_format_is_refused_before_the_rest_is_read() -> None:
    """It is incompatible, not corrupt, and the message names both formats."""
    document = {"format": FORMAT + 1, "something": "we cannot know"}
    with pytest.raises(IncompatibleSnapshot, match=f"of format {FORMAT + 1}, this gateway knows up to {FORMAT}"):
        Manifest.parse(json.dumps(document).encode(), ID)


@pytest.mark.parametrize("version", ["1", 0, -1, 1.5, None, []])
def test_format_that_is_no_number_is_corrupt(version: Any) -> None:
    """Formats are whole numbers from 1."""
    with pytest.raises(CorruptSnapshot, match="names no format"):
        check_format(version, "the repository")


PATHS_OUTSIDE = [
    "../../etc/passwd",
    "..",
    ".",
    "",
    "/etc/passwd",
    "//etc/passwd",
    f"{SEGMENT}/../../etc/passwd",
    f"{SEGMENT}/..",
    f"{SEGMENT}/",
    f"{SEGMENT}/a/b",
    "..\\..\\windows\\win.ini",
    f"{SEGMENT}\\header.bin",
    "C:/windows",
    ".gateway/x",
    ".gateway/swap.json",
    f"{SEGMENT}/.gateway",
    "chroma.sqlite3\n",
    "chroma.sqlite3\0",
    "chroma.sqlite3/\u2024\u2024",
    "~/.ssh",
]


@pytest.mark.parametrize("path", PATHS_OUTSIDE)
def test_path_outside_the_data_directory_is_refused(path: str) -> None:
    """Such a manifest is corrupt although its digest is right, so nothing is written there."""

    def change(body: dict[str, Any]) -> None:
        body["files"][0]["path"] = path

    with pytest.raises(CorruptSnapshot, match="does not belong into a data directory"):
        Manifest.parse(forged(change), ID)


def pack_out_of_range(body: dict[str, Any]) -> None:
    body["files"][0]["base"][0][1] = len(body["packs"])


def pack_of_a_patch_out_of_range(body: dict[str, Any]) -> None:
    body["files"][0]["patches"] = [[[8, 0, 0, 8, "raw"]], [[8, len(body["packs"]), 0, 8, "raw"]]]


def pack_negative(body: dict[str, Any]) -> None:
    body["files"][0]["base"][0][1] = -1


def offset_past_the_end(body: dict[str, Any]) -> None:
    body["files"][0]["base"][0][2] = 1


def offset_negative(body: dict[str, Any]) -> None:
    body["files"][0]["base"][0][2] = -1


def stored_past_the_end(body: dict[str, Any]) -> None:
    body["files"][0]["base"][0][3] += 1


def patch_past_the_end(body: dict[str, Any]) -> None:
    body["files"][0]["patches"] = [[[8, 0, 1, 8, "raw"]]]


def piece_empty(body: dict[str, Any]) -> None:
    body["files"][0]["base"][0][0] = 0


def piece_huge(body: dict[str, Any]) -> None:
    body["files"][0]["base"][0][0] = (64 << 20) + 1


def pack_huge(body: dict[str, Any]) -> None:
    body["packs"][0]["size_bytes"] = (64 << 20) + 1


def piece_short(body: dict[str, Any]) -> None:
    body["files"][0]["base"][0].pop()


def patches_endless(body: dict[str, Any]) -> None:
    body["files"][0]["patches"] = [[]] * 65


def layout_empty(body: dict[str, Any]) -> None:
    body["files"][0]["layout"] = []


def layout_of_nothing(body: dict[str, Any]) -> None:
    body["files"][0]["layout"] = [0]


def layout_long(body: dict[str, Any]) -> None:
    body["files"][0]["layout"] = [4] * 9


def layout_odd(body: dict[str, Any]) -> None:
    body["files"][0]["layout"] = [3]


def page_tiny(body: dict[str, Any]) -> None:
    body["files"][0]["page_bytes"] = 1


def file_twice(body: dict[str, Any]) -> None:
    body["files"].append(body["files"][0])


def pack_name_no_digest(body: dict[str, Any]) -> None:
    body["packs"][0]["sha256"] = "../" + body["packs"][0]["sha256"][3:]


def codec_unknown(body: dict[str, Any]) -> None:
    body["files"][0]["base"][0][4] = "lzma"


def id_none(body: dict[str, Any]) -> None:
    body["snapshot"]["id"] = "../" + ID


def size_no_number(body: dict[str, Any]) -> None:
    body["files"][0]["size_bytes"] = "many"


def index_ahead(body: dict[str, Any]) -> None:
    body["positions"][SEGMENT] = body["segments"][SEGMENT] + 1


def index_negative(body: dict[str, Any]) -> None:
    body["positions"][SEGMENT] = -1


def index_of_no_segment(body: dict[str, Any]) -> None:
    body["positions"][SEGMENT.replace("8", "9")] = 0


def index_without_position(body: dict[str, Any]) -> None:
    body["positions"] = {}


def index_without_files(body: dict[str, Any]) -> None:
    del body["files"][1:]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (pack_out_of_range, "names a pack that is not listed"),
        (pack_of_a_patch_out_of_range, "names a pack that is not listed"),
        (pack_negative, r"files\.0\.base\.0\.1"),
        (offset_past_the_end, "names bytes past the end of pack"),
        (offset_negative, r"files\.0\.base\.0\.2"),
        (stored_past_the_end, "larger stored than it is"),
        (patch_past_the_end, "names bytes past the end of pack"),
        (piece_empty, r"files\.0\.base\.0\.0"),
        (piece_huge, r"files\.0\.base\.0\.0"),
        (piece_short, r"files\.0\.base\.0"),
        (pack_huge, r"packs\.0\.size_bytes"),
        (patches_endless, r"files\.0\.patches"),
        (layout_empty, r"files\.0\.layout"),
        (layout_of_nothing, r"files\.0\.layout\.0"),
        (layout_long, r"files\.0\.layout"),
        (layout_odd, r"files\.0\.layout\.0"),
        (page_tiny, r"files\.0\.page_bytes"),
        (file_twice, "named twice"),
        (pack_name_no_digest, r"packs\.0\.sha256"),
        (codec_unknown, "raw"),
        (id_none, "is no snapshot id"),
        (size_no_number, r"files\.0\.size_bytes"),
        (index_ahead, "is ahead of the database"),
        (index_negative, "is ahead of the database"),
        (index_of_no_segment, "other segments than the database's"),
        (index_without_position, "other segments than the database's"),
        (index_without_files, "has no files"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_inconsistent_manifest_is_refused(change: Any, says: str) -> None:
    """Although its digest is right. The message names the inconsistency and the snapshot."""
    with pytest.raises(CorruptSnapshot, match=says) as caught:
        Manifest.parse(forged(change), ID)
    assert ID in caught.value.message


def test_manifest_of_another_snapshot_is_refused() -> None:
    """A manifest that was copied to the place of another snapshot is corrupt there."""
    with pytest.raises(CorruptSnapshot, match=f"{NEWER} is that of {ID}"):
        Manifest.parse(STORED, NEWER)


def test_unknown_fields_are_ignored() -> None:
    """A field that is added to the same format later does not prevent a restore."""

    def change(body: dict[str, Any]) -> None:
        body["snapshot"]["colour"] = "green"

    assert Manifest.parse(forged(change), ID) == manifest()


def test_ids_sort_by_time_within_a_second() -> None:
    """Snapshots of one second sort in the order in which they were taken. The times in ids are UTC."""
    noon = datetime(2026, 11, 20, 12, tzinfo=UTC)
    moments = [noon, noon + timedelta(microseconds=1), noon + timedelta(milliseconds=900), noon + timedelta(seconds=1)]
    ids = [new_snapshot_id(moment, None) for moment in moments]
    assert ids == sorted(set(ids))
    assert all(map(is_snapshot_id, ids))
    assert ids[0] == "20261120T120000Z-000000"
    assert new_snapshot_id(noon.astimezone(timezone(timedelta(hours=5))), None) == ids[0]


def test_new_id_sorts_last_after_the_clock_was_set_back() -> None:
    """The new id sorts after the newest existing id, so `latest` is the new snapshot."""
    noon = datetime(2026, 11, 20, 12, tzinfo=UTC)
    for newest in ("20261120T120000Z-000000", "20261120T120000Z-ffffff", "20261231T235959Z-ffffff"):
        later = new_snapshot_id(noon, newest)
        assert later > newest
        assert is_snapshot_id(later)
    assert new_snapshot_id(noon, "20261231T235959Z-ffffff") == "20270101T000000Z-000000"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "latest",
        "..",
        ID[:-1],
        ID + "0",
        ID.upper(),
        f"{ID}\n",
        "20261340T210455Z-3f9a1c",
        "٢٠٢٦١١٢٠T210455Z-3f9a1c",
    ],
)
def test_invalid_ids_are_recognised(text: str) -> None:
    """An id is a time that exists, in ASCII digits, and six hexadecimal digits."""
    assert not is_snapshot_id(text)


def test_damaged_snapshot_is_shown_with_time_and_problem() -> None:
    """The time comes from the id, since the manifest cannot be read."""
    shown = damaged(OLDER, "it is cut off")
    assert (shown.id, shown.state, shown.problem) == (OLDER, "damaged", "it is cut off")
    assert shown.created_at == datetime(2026, 11, 19, tzinfo=UTC)
