"""What the database says of an index is read from wherever the version that made the collection wrote it."""

import json
import sqlite3
from typing import Any

import pytest

from gateway.chroma.segments import index_settings

HNSW = {"space": "cosine", "max_neighbors": 24, "ef_construction": 77}


@pytest.mark.parametrize(
    ("config", "schema"),
    [
        ({"vector_index": {"hnsw": HNSW}}, None),  # 1.0 to 1.3
        ({"hnsw": HNSW}, None),
        ({"hnsw_configuration": {"space": "cosine", "M": 24, "ef_construction": 77}}, None),  # 0.5 and 0.6
        ({}, {"keys": {"#embedding": {"float_list": {"vector_index": {"config": {"space": "cosine", "hnsw": HNSW}}}}}}),
    ],
)
def test_space_and_neighbors_are_read_in_every_form(config: dict[str, Any], schema: dict[str, Any] | None) -> None:
    """With the wrong space a repair would lose the lengths of vectors, and build another graph."""
    database = sqlite3.connect(":memory:")
    database.execute("create table segment_metadata (segment_id, key, str_value, int_value)")
    told = json.dumps(schema) if schema else None
    assert index_settings(database, "a segment", json.dumps(config), told)[:3] == ("cosine", 24, 77)
    database.close()


@pytest.mark.parametrize("told", ["1e999", '"many"', "null", "[]"])
def test_a_setting_that_is_no_number_is_taken_for_the_default(told: str) -> None:
    """One odd collection must not stop a start, which reads the settings of all."""
    database = sqlite3.connect(":memory:")
    database.execute("create table segment_metadata (segment_id, key, str_value, int_value)")
    config = '{"vector_index": {"hnsw": {"space": "ip", "max_neighbors": %s}}}' % told  # noqa: UP031  # braces
    assert index_settings(database, "a segment", config, None)[:2] == ("ip", 16)
    database.close()
