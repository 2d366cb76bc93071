"""Do questions find their answers? In two sets of questions:

- the Debian FAQ's headings are the questions, the text below each is its answer;
- questions of people about the other manuals, in other words than the manuals' (`data/paraphrased.json`).

    .venv/bin/python -m tests.bench_retrieval [--corpus DIRECTORY] [--kind .pdf] [--package NAME]…
        [--model DIRECTORY] [--chunks FILE]

The documents are English manuals of `tests.bench_text`, as PDF or as HTML. Each is read and split as training does it
and embedded with Chroma's default function. A question is answered if one of the first three chunks has the first
words of the answer, one after the other. It is counted twice: with the words as they are, and by their letters alone,
which also finds words that a reader has run together. Questions whose answer is in no document are not asked.

DIRECTORY of `--model` has `onnx/` with the files of Chroma's default model. `--chunks` takes the chunks of another
reader, one JSON array [document, text] a line, in place of ours; `--write-chunks` writes ours so.
"""

import argparse
import gzip
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from chromadb.utils.embedding_functions.onnx_mini_lm_l6_v2 import ONNXMiniLM_L6_V2
from lxml import html

from gateway.documents.embedding import tokenizer_of
from gateway.documents.readers import kinds
from gateway.documents.split import Splitting, TokenCounter, split
from tests.bench_text import fetch, words_of

PACKAGES = ("debian-faq", "debian-policy", "developers-reference", "maint-guide")
FIRST = 3
_ANSWER_WORDS = 8
_BATCH = 32
# Questions, each with words of its answer.
PARAPHRASED = Path(__file__).parent / "data/paraphrased.json"


def documents(corpus: Path, kind: str, packages: Iterable[str] = PACKAGES) -> Iterator[tuple[str, bytes]]:
    """The manuals' names and bytes. Packages compress some files."""
    for package in packages:
        for path in sorted(corpus.joinpath(package).rglob("*")):
            name = path.name.removesuffix(".gz")
            if path.is_file() and not path.is_symlink() and name.endswith(kind):
                data = path.read_bytes()
                yield f"{package}/{name}", gzip.decompress(data) if path.suffix == ".gz" else data


def questions(corpus: Path) -> dict[str, list[str]]:
    """Each question with the first words of its answer."""
    found = {}
    for path in sorted(corpus.joinpath("debian-faq").rglob("*.en.html")):
        for heading in html.fromstring(path.read_bytes()).iter("h2"):
            question = " ".join(heading.text_content().split()).partition(" ")[2]
            answer = heading.xpath("following::p[1]")
            words = words_of(answer[0].text_content())[:_ANSWER_WORDS] if answer else []
            if question.endswith("?") and words:
                found[question] = words
    return found


def read_chunks(
    manuals: Iterable[tuple[str, bytes]], function: ONNXMiniLM_L6_V2, scratch: Path
) -> list[tuple[str, str]]:
    found = tokenizer_of(function)
    assert found is not None
    scratch.write_text(found[0])
    counter = TokenCounter(scratch, found[1])
    return [
        (name, chunk.text) for name, data in manuals for chunk in split(kinds.read(data, name), Splitting(), counter)
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=Path, default=Path("var/bench/text"))
    parser.add_argument("--kind", default=".pdf", choices=(".pdf", ".html"))
    parser.add_argument("--package", action="append", choices=PACKAGES, help="only these manuals")
    parser.add_argument("--model", type=Path, help="in place of ~/.cache/chroma/onnx_models/all-MiniLM-L6-v2")
    parser.add_argument("--chunks", type=Path)
    parser.add_argument("--write-chunks", type=Path)
    asked = parser.parse_args()
    asked.corpus.mkdir(parents=True, exist_ok=True)
    fetch(asked.corpus)
    if asked.model is not None:
        ONNXMiniLM_L6_V2.DOWNLOAD_PATH = asked.model
    function = ONNXMiniLM_L6_V2()
    if asked.chunks is not None:
        chunks = [tuple(json.loads(line)) for line in asked.chunks.read_text().splitlines()]
    else:
        manuals = documents(asked.corpus, asked.kind, asked.package or PACKAGES)
        chunks = read_chunks(manuals, function, asked.corpus / "tokenizer.json")
    if asked.write_chunks is not None:
        asked.write_chunks.write_text("".join(json.dumps(chunk) + "\n" for chunk in chunks))
    since = time.monotonic()
    texts = [text for _, text in chunks]
    vectors = np.array([each for at in range(0, len(texts), _BATCH) for each in function(texts[at : at + _BATCH])])
    print(f"{len({name for name, _ in chunks})} documents, {len(chunks)} chunks, {time.monotonic() - since:.0f} s")
    for title, asks in (("the FAQ", questions(asked.corpus)), ("people", paraphrased())):
        print(f"\nQuestions of {title}")
        report(asks, texts, vectors, function)


def paraphrased() -> dict[str, list[str]]:
    return {question: words_of(answer) for question, answer in json.loads(PARAPHRASED.read_text())}


def report(asks: dict[str, list[str]], texts: list[str], vectors: Any, function: ONNXMiniLM_L6_V2) -> None:
    """Print how many of the questions are answered, and which are not."""
    words, letters = ([between.join(words_of(text)) for text in texts] for between in (" ", ""))
    asks = {question: answer for question, answer in asks.items() if any("".join(answer) in text for text in letters)}
    nearest = [np.argsort(-(vectors @ vector))[:FIRST] for vector in function(list(asks))] if asks else []
    for title, joined, between in (("words", words, " "), ("letters", letters, "")):
        missed = [
            question
            for (question, answer), found in zip(asks.items(), nearest, strict=True)
            if not any(between.join(answer) in joined[index] for index in found)
        ]
        print(f"{len(asks) - len(missed)} of {len(asks)} answers are in the first {FIRST} chunks, by their {title}")
    for question in missed:
        print("missed:", question)


if __name__ == "__main__":
    main()
