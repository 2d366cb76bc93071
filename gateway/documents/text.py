"""The text of a document, by the kind that its name says. Runs in the worker: what it opens may be hostile."""

import csv
import io
import itertools
import json
import logging
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bs4
import charset_normalizer
import docx
import pypdf
import pypdf.errors
from docx.table import Table

# A billion laughs still fit into a small file: what comes out is bounded too.
_MAX_TEXT_CHARACTERS = 64 << 20
_MAX_UNZIPPED_BYTES = 512 << 20
# Telling the encoding of the beginning tells that of all, and in reasonable time.
_SNIFFED_BYTES = 256 << 10


class NoText(Exception):
    """A document has no text that can be read; says why."""


def read_text(path: Path, name: str) -> str:
    """The text of the file at `path` that is called `name`. Raises NoText, whatever is wrong with it."""
    reader = _READERS.get(Path(name).suffix.lower())
    if reader is None:
        raise NoText(f"no text can be read from {Path(name).suffix or 'a name without an ending'!r}")
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    try:
        text = reader(path)
    except NoText:
        raise
    except MemoryError:
        raise NoText("it needs too much memory") from None
    except RecursionError:
        raise NoText("it is nested too deeply") from None
    except Exception as error:  # these libraries raise anything at broken files
        raise NoText(f"it cannot be read: {type(error).__name__}: {str(error)[:300]}") from error
    # Halves of characters, which JSON and PDF can say, are no text for whoever comes next.
    text = text.replace("\x00", "").encode("utf-8", "replace").decode()
    if not text.strip():
        raise NoText("it has no text")
    return text


def suffixes() -> list[str]:
    """The endings of names that text can be read from."""
    return sorted(_READERS)


def _plain(path: Path) -> str:
    data = path.read_bytes()
    for encoding in ("utf-8-sig", "utf-16") if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig",):
        try:
            return _bounded(data.decode(encoding))
        except UnicodeDecodeError:
            continue
    # A beginning that ends amid a character would not be of the encoding that it is of: four bytes are enough.
    begins = (data[: _SNIFFED_BYTES - cut] for cut in range(4 if len(data) > _SNIFFED_BYTES else 1))
    best = next(filter(None, (charset_normalizer.from_bytes(begin).best() for begin in begins)), None)
    if best is None or (b"\x00" in data[:_SNIFFED_BYTES] and "utf" not in best.encoding):
        raise NoText("it is not text in any known encoding")
    return _bounded(data.decode(best.encoding, errors="replace"))


def _html(path: Path) -> str:
    # Bytes: an encoding declared in the document counts.
    soup = bs4.BeautifulSoup(path.read_bytes(), "lxml")
    for tag in soup(["script", "style", "template", "noscript"]):
        tag.decompose()
    lines = (line.strip() for line in soup.get_text("\n").splitlines())
    return _bounded("\n".join(line for line in lines if line))


def _json(path: Path) -> str:
    return _bounded("\n".join(_leaves(json.loads(_plain(path)), "")))


def _jsonl(path: Path) -> str:
    records = (json.loads(line) for line in _plain(path).split("\n") if line.strip())
    return _bounded("\n\n".join("\n".join(_leaves(record, "")) for record in records))


def _leaves(value: Any, where: str) -> Iterator[str]:
    """Each value as a line that says where it is: `author.name: Ada`."""
    match value:
        case dict():
            for key, inner in value.items():
                yield from _leaves(inner, f"{where}.{key}" if where else str(key))
        case list():
            for inner in value:
                yield from _leaves(inner, where)
        case None:
            return
        case _:
            yield f"{where}: {value}" if where else str(value)


def _csv(path: Path) -> str:
    text = _plain(path)
    try:
        delimiter = csv.Sniffer().sniff(text[:8192], ",;\t|").delimiter
    except csv.Error:
        delimiter = ","
    # Only that is guessed: what quotes mean further down, the beginning does not show.
    csv.field_size_limit(_MAX_TEXT_CHARACTERS)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    header = next(rows, [])
    pairs = (itertools.zip_longest(header, row, fillvalue="") for row in rows)
    records = ("\n".join(f"{key}: {value}" if key else value for key, value in row if value) for row in pairs)
    return _bounded("\n\n".join(record for record in records if record)) or "\n".join(header)


def _pdf(path: Path) -> str:
    reader = pypdf.PdfReader(path)
    if reader.is_encrypted and not reader.decrypt(""):
        raise NoText("it is encrypted")
    pages, size = [], 0
    for page in reader.pages:
        pages.append(page.extract_text())
        size += len(pages[-1])
        if size > _MAX_TEXT_CHARACTERS:
            raise _too_much()
    return "\n\n".join(pages)


def _docx(path: Path) -> str:
    with path.open("rb") as file:
        magic = file.read(8)
    if magic == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":
        raise NoText("it is encrypted, or of the older .doc format")
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > _MAX_UNZIPPED_BYTES:
            raise _too_much()
    parts: list[str] = []
    for item in docx.Document(str(path)).iter_inner_content():
        if isinstance(item, Table):
            parts.extend("\t".join(cell.text for cell in row.cells) for row in item.rows)
        else:
            parts.append(item.text)
    return _bounded("\n".join(parts))


def _bounded(text: str) -> str:
    if len(text) > _MAX_TEXT_CHARACTERS:
        raise _too_much()
    return text


def _too_much() -> NoText:
    return NoText(f"it has more text than {_MAX_TEXT_CHARACTERS} characters, or unpacks to too much")


_READERS: dict[str, Callable[[Path], str]] = {
    ".txt": _plain,
    ".md": _plain,
    ".html": _html,
    ".htm": _html,
    ".json": _json,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".pdf": _pdf,
    ".docx": _docx,
}
