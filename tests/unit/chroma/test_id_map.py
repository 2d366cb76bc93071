"""The reader of id maps, on damaged files."""

from gateway.chroma.id_map import new_id_map, parse_id_map

ENTRIES = {f"record.{number}": 1000 + 37 * number for number in range(40)}


def test_no_entry_before_a_damage_is_wrong() -> None:
    """Wherever zeros begin or the file ends, also within a number: what is read is a part of what was written."""
    whole = new_id_map(ENTRIES, 40)
    read = 0
    for start in range(len(whole)):
        for damaged in (whole[:start], whole[:start] + bytes(len(whole) - start)):
            id_map = parse_id_map(damaged)
            assert not id_map.is_whole
            assert id_map.id_to_label.items() <= ENTRIES.items()
            read = max(read, len(id_map.id_to_label))
    assert read == len(ENTRIES)
