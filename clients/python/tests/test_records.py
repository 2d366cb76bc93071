"""What is logged becomes records, or an error before anything is kept."""

from typing import Any

import numpy as np
import pytest

from chroma import EmbeddingSet, InvalidRecord
from chroma.records import Mode, Record, make_records, parse_line

SET = EmbeddingSet({"model": "a"})
SET_OF_LINE = b'"embedding_set":{"model":"a"},'


def made(uri: Any = "u", embedding: Any = (1.0, 2.0), inferences: Any = None) -> list[Record]:
    return make_records(SET, Mode.TRAINING, uri, embedding, inferences, 5)


def test_a_line_has_everything() -> None:
    """A record that was written is the same when it is read."""
    [record] = made("/images/ä\n.png", [0.1, -1e-30], {"label": "cat", "boxes": [[1, 2]], "score": 0.5})
    assert record.line().count(b"\n") == 1
    assert parse_line(record.line()) == record


def test_an_id_is_fixed() -> None:
    """It follows from mode, URI and embedding, so that the same file twice is the same records."""
    [record] = made()
    assert record.id == "2b4ac175a7fe3ee65c945e421d089a2bea607791"
    others = [*made("v"), *made(embedding=[1.0, 2.5]), *make_records(SET, Mode.PRODUCTION, "u", [1.0, 2.0], None, 5)]
    assert len({record.id, *(each.id for each in others)}) == 4
    assert made(inferences={"label": 1})[0].id == record.id


def test_n_embeddings_have_n_uris_and_inferences() -> None:
    """In the same order."""
    records = made(["a", "b"], [[1, 2], [3, 4]], [{"label": 1}, None])
    assert [(each.input_uri, each.vector.tolist(), each.label) for each in records] == [
        ("a", [1.0, 2.0], 1),
        ("b", [3.0, 4.0], None),
    ]
    [one] = made("a", [[1, 2]])
    assert one.dimension == 2


@pytest.mark.parametrize(
    ("uri", "embedding", "inferences", "expected"),
    [
        ("a", [[1, 2], [3, 4]], None, "2 embeddings, and one input_uri"),
        (["a", "b"], [1, 2], None, "give (n, dim)"),
        (["a"], [[1, 2], [3, 4]], None, "2 embeddings, 1 URIs"),
        (["a", "b"], [[1, 2], [3, 4]], {"label": 1}, "one dict of inferences for 2 URIs"),
        (["a", "b"], [[1, 2], [3, 4]], [{}], "1 inferences"),
        ("", [1], None, "a text that is not empty"),
        (3, [1], None, "input_uri cannot be 3"),
        ([3], [[1]], None, "not 3"),
        ("a", [1], 3, "inferences cannot be 3"),
        ("\ud800", [1], None, "not valid Unicode"),
        ("a", [1], {"score": float("nan")}, "cannot be written as JSON"),
        ("a", [1], {"score": object()}, "a object is in it"),
        ("a", [1], {"label": 2**70}, "64 bits"),
        ("a", [1], [3], "inferences are a dict, not a int"),
    ],
)
def test_a_wrong_call_is_refused(uri: Any, embedding: Any, inferences: Any, expected: str) -> None:
    """The message says what does not fit."""
    with pytest.raises(InvalidRecord) as raised:
        made(uri, embedding, inferences)
    assert expected in str(raised.value)


def test_inferences_may_have_numbers_of_numpy() -> None:
    """They are written as numbers and lists."""
    [record] = made(inferences={"label": np.int64(3), "scores": np.array([0.5, 0.25], np.float32)})
    assert record.inferences == {"label": 3, "scores": [0.5, 0.25]}


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[]",
        b"3",
        b'{"format":2}',
        b'{"format":1,"mode":"training",'
        + SET_OF_LINE
        + b'"input_uri":"u","embedding":"AACAPw==","inferences":3,"logged_at_us":1}',
        b'{"format":1,"mode":"other",'
        + SET_OF_LINE
        + b'"input_uri":"u","embedding":"AACAPw==","inferences":null,"logged_at_us":1}',
        b'{"format":1,"mode":"training",'
        + SET_OF_LINE
        + b'"input_uri":"u","embedding":"AACA","inferences":null,"logged_at_us":1}',
        b'{"format":1,"mode":"training",'
        + SET_OF_LINE
        + b'"input_uri":"u","embedding":"AADAfw==","inferences":null,"logged_at_us":1}',
        b'{"format":1,"mode":"training",'
        + SET_OF_LINE
        + b'"input_uri":"u","embedding":"?","inferences":null,"logged_at_us":1}',
    ],
)
def test_a_whole_line_that_is_no_record_is_an_error(line: bytes) -> None:
    """It is never left out silently."""
    with pytest.raises(InvalidRecord):
        parse_line(line)


def test_each_half_of_a_line_is_seen() -> None:
    """Wherever a crash cuts it."""
    [record] = made(inferences={"label": "}"})
    line = record.line().rstrip(b"\n")
    assert parse_line(line) == record
    assert not [length for length in range(len(line)) if parse_line(line[:length]) is not None]
