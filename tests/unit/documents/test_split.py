"""Chunks: whole, in order, within the limits, and in time that grows with the text."""

import itertools
import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from gateway.documents.readers import kinds
from gateway.documents.readers.text import Text, TextBuilder
from gateway.documents.split import NoTokenizer, Splitting, TokenCounter, split
from tests.processor_time import assert_grows_at_most

WORDS = "the exam is on friday in room a1 and the notes of the course are in the folder "


def plain(text: str) -> Text:
    out = TextBuilder()
    out.add_raw(text)
    return Text(text, [], {}, [])


def word_pieces(tmp_path: Path) -> Path:
    """A tokenizer like that of MiniLM, with a truncation of 128 in its file: words, pieces of words, letters."""
    letters = [chr(code) for code in range(0x21, 0x7F)] + list("äöüéабвгдежз鷺日本語試験")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS.split(), *letters, *(f"##{letter}" for letter in letters)]
    made = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_truncation(128)
    made.enable_padding(length=128)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> TokenCounter:
    return TokenCounter(word_pieces(tmp_path_factory.mktemp("tokenizer")), 254)


def require_all_there(text: str, chunks: list[tuple[int, str]]) -> None:
    """Each chunk is where it says; between chunks is only white space."""
    covered = 0
    for position, chunk in chunks:
        assert text[position : position + len(chunk)] == chunk
        assert text[covered:position].strip() == ""
        covered = max(covered, position + len(chunk))
    assert text[covered:].strip() == ""


def cut(text: Text, how: Splitting, counter: TokenCounter | None = None) -> list[tuple[int, str]]:
    return [(chunk.position, chunk.text) for chunk in split(text, how, counter)]


def test_tokens_are_counted_without_the_truncation_of_the_tokenizer(counter: TokenCounter) -> None:
    """A text of 69 KB is many chunks, although the tokenizer's file truncates what it reads."""
    text = WORDS * 900
    chunks = cut(plain(text), Splitting(size=200, unit="tokens"), counter)
    assert len(chunks) > 80
    assert max(counter.count(chunk) for _, chunk in chunks) <= 200
    require_all_there(text, chunks)


@pytest.mark.parametrize("how", [Splitting(), Splitting(size=5000), Splitting(size=9000, unit="tokens")])
@pytest.mark.parametrize("text", [WORDS * 200, "鷺は日本語の試験" * 900, "a;b;1.5;-7e3\n" * 900, "абвгд " * 3000])
def test_no_chunk_has_more_tokens_than_the_model_reads(counter: TokenCounter, how: Splitting, text: str) -> None:
    """In every language, whatever size is asked for."""
    chunks = cut(plain(text), how, counter)
    assert max(counter.count(chunk) for _, chunk in chunks) <= 254
    require_all_there(text, chunks)


def test_the_default_is_the_models_own_limit(counter: TokenCounter) -> None:
    """Chunks are nearly full; without a tokenizer they have 800 characters."""
    counts = [counter.count(chunk) for _, chunk in cut(plain(WORDS * 200), Splitting(), counter)]
    assert min(counts[:-1]) > 200
    assert max(len(chunk) for _, chunk in cut(plain(WORDS * 200), Splitting())) in range(700, 801)


def test_tokens_without_a_tokenizer_are_refused() -> None:
    """Nothing else is counted in their place."""
    with pytest.raises(NoTokenizer):
        list(split(plain("text"), Splitting(size=100, unit="tokens")))


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet="ab .\n!é。鷺\u0301\U0001f3fb", max_size=400),
    st.integers(20, 60),
    st.integers(0, 10),
    st.lists(st.tuples(st.integers(0, 400), st.booleans(), st.booleans()), max_size=10),
)
def test_no_character_is_lost(text: str, size: int, overlap: int, cuts: list[tuple[int, bool, bool]]) -> None:
    """Whatever the text and its blocks; and no chunk is over the limit or empty."""
    out = TextBuilder()
    edges = sorted({0, len(text), *(min(at, len(text)) for at, _, _ in cuts)})
    for (begin, end), (_, is_whole, is_section) in zip(
        itertools.pairwise(edges), itertools.cycle(cuts or [(0, False, False)]), strict=False
    ):
        if is_section:
            out.start_section("title", 1)
        out.add_raw(text[begin:end], is_whole=is_whole)
    made = Text(text, out._blocks)
    chunks = cut(made, Splitting(size=size, overlap=overlap))
    assert all(chunk.strip() and len(chunk) <= size for _, chunk in chunks)
    assert [position for position, _ in chunks] == sorted({position for position, _ in chunks})
    require_all_there(text, chunks)


def test_characters_are_not_cut_from_their_marks() -> None:
    """A letter and its accent, an emoji and its skin tone stay together."""
    text = "e\u0301" * 500
    assert all(not chunk.startswith("\u0301") for _, chunk in cut(plain(text), Splitting(size=21, overlap=0)))


def test_chunks_end_at_sentences_and_sections() -> None:
    """And a row or a block of code that fits is not cut."""
    text = "A sentence of some words. Another one follows it! " * 40
    assert all(chunk[-1] in ".!" for _, chunk in cut(plain(text), Splitting(size=200, overlap=0)))
    code = "```\n" + "x = 1\n\n" * 12 + "```\n"
    document = kinds.read(("Words before it. " * 8 + "\n\n" + code + "\nWords after it. " * 8).encode(), "a.md")
    assert any(code.strip() in chunk for _, chunk in cut(document, Splitting(size=150, overlap=20)))
    rows = kinds.read(("name,say\n" + "".join(f"n{n},what {n} says\n" for n in range(50))).encode(), "a.csv")
    chunks = list(split(rows, Splitting(size=100, overlap=0)))
    assert all(chunk.text.startswith("name: ") and " says" in chunk.text[-10:] for chunk in chunks)
    assert [chunk.where["row"] for chunk in chunks] == sorted(chunk.where["row"] for chunk in chunks)


LONG = {
    "one line": WORDS,
    "no space": "a",
    "Japanese without punctuation": "これは日本語のテキストです機械学習の試験は金曜日に行われます",
    "lines of 80 without an empty one": WORDS[:79] + "\n",
    "white space": " ",
    "sentences": "It is so. ",
}


LONG_TEXT = int(os.environ.get("LONG_TEXT_M", "8")) * 1_000_000


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("with_tokens", [False, True])
def test_work_grows_with_the_text_and_not_faster(kind: str, *, with_tokens: bool, counter: TokenCounter) -> None:
    """Four times the text takes about four times as long: on one line, without spaces, in every script."""
    unit = LONG[kind]
    texts = {size: plain((unit * (size // len(unit) + 1))[:size]) for size in (1 << 16, 1 << 18)}
    assert_grows_at_most(
        lambda size: [*split(texts[size], Splitting(), counter if with_tokens else None)],
        *texts,
        factor=10,
        least_s=0.05,
    )


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "with_tokens"), [("one line", True), ("no space", False), ("Japanese without punctuation", False)]
)
def test_a_very_long_text_is_split_in_linear_time(kind: str, counter: TokenCounter, *, with_tokens: bool) -> None:
    """Sixteen times the text takes about sixteen times as long, and no chunk is over the limit.

    8 million characters; `LONG_TEXT_M=64` for 64 million.
    """
    unit = LONG[kind]
    took = []
    for size in (LONG_TEXT // 16, LONG_TEXT):
        text = plain((unit * (size // len(unit) + 1))[:size])
        since = time.process_time()
        for number, chunk in enumerate(split(text, Splitting(), counter if with_tokens else None)):
            assert number % 100 or not with_tokens or counter.count(chunk.text) <= counter.limit
        took.append(time.process_time() - since)
    assert took[1] < took[0] * 32, took


def test_many_blocks_take_no_longer() -> None:
    """A table of 100,000 short rows."""
    out = TextBuilder()
    for number in range(100_000):
        out.add(f"{random.Random(number).random()}", is_whole=True, row=number)
    since = time.process_time()
    assert sum(1 for _ in split(out.build(), Splitting())) > 1000
    assert time.process_time() - since < 60
