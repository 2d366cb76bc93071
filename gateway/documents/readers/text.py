"""What a reader makes of a document: its text in blocks, each with where it was found."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.documents.readers.ocr import Ocr

Value = str | int | float | bool

# A small file can expand to any amount of text.
MAX_TEXT_CHARACTERS = 64 << 20
_MAX_PROBLEMS = 20
_MAX_METADATA = 500


class NoText(Exception):
    """A document has no text that can be read. The message says why."""


class TooMuchText(NoText):
    """A document has more text than a reader returns."""

    def __init__(self) -> None:
        super().__init__(f"it has more text than {MAX_TEXT_CHARACTERS} characters, or unpacks to too much")


@dataclass(slots=True)
class Block:
    """A part of the text, from `start` up to `end`: a paragraph, a row, a page, a code block.

    `where` is metadata such as the page or the heading. A chunk does not end within a block that `is_whole`, if the
    block fits into a chunk.
    """

    start: int
    end: int
    where: dict[str, Value]
    is_whole: bool = False
    begins_section: bool = False


@dataclass(slots=True)
class Text:
    """The text of a document. `problems` name the parts that could not be read."""

    text: str
    blocks: list[Block]
    metadata: dict[str, Value] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class TextBuilder:
    """Collects blocks in the order of the document."""

    def __init__(self, ocr: Ocr | None = None) -> None:
        """`ocr` recognises pages that have no text; None if they are only named."""
        self.ocr = ocr
        self.metadata: dict[str, Value] = {}
        self.problems: list[str] = []
        self._parts: list[str] = []
        self._blocks: list[Block] = []
        self._size = 0
        self._headings: list[tuple[int, str]] = []
        self._begins_section = False

    def add(self, text: str, *, is_whole: bool = False, separator: str = "\n\n", **where: Any) -> None:
        """Add a block after a separator. Empty text is skipped. Raises TooMuchText."""
        text = text.strip("\n") if is_whole else text.strip()
        if not text.strip():
            return
        if self._parts:
            self._append(separator)
        self._blocks.append(self._block(self._size, text, where, is_whole))
        self._append(text)

    def add_heading(self, text: str, level: int, **where: Any) -> None:
        """Add a heading. It begins a section; the blocks that follow have it in their metadata."""
        if text.strip():
            self.start_section(text, level)
            self.add(text, **where)

    def add_raw(self, text: str, *, is_whole: bool = False, **where: Any) -> None:
        """Add a block as it is: nothing is stripped, no separator is put before it. Raises TooMuchText."""
        if text.strip():
            self._blocks.append(self._block(self._size, text, where, is_whole))
        self._append(text)

    def start_section(self, title: str, level: int) -> None:
        """Say that the next block begins a section with this heading, which is part of that block's text."""
        self._headings = [each for each in self._headings if each[0] < level] + [(level, " ".join(title.split()))]
        self._begins_section = True

    def _block(self, start: int, text: str, where: Mapping[str, Any], is_whole: bool) -> Block:
        metadata = {name: value for name, value in where.items() if value is not None}
        if self._headings:
            metadata.setdefault("heading", " > ".join(title for _, title in self._headings)[:_MAX_METADATA])
        block = Block(start, start + len(text), metadata, is_whole, self._begins_section)
        self._begins_section = False
        return block

    def _append(self, text: str) -> None:
        self._parts.append(text)
        self._size += len(text)
        if self._size > MAX_TEXT_CHARACTERS:
            raise TooMuchText

    def problem(self, message: str) -> None:
        """Note a part of the document that could not be read."""
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(message)
        elif len(self.problems) == _MAX_PROBLEMS:
            self.problems.append("and more")

    def set(self, name: str, value: object) -> None:
        """Set metadata of the whole document. Empty values are skipped."""
        if isinstance(value, str):
            value = " ".join(value.split())[:_MAX_METADATA]
        if isinstance(value, (str, int, float, bool)) and value != "":
            self.metadata[name] = value

    def build(self) -> Text:
        """Return the text. Raises NoText if there is none."""
        text = "".join(self._parts)
        if not text.strip():
            raise NoText(f"it cannot be read: {'; '.join(self.problems[:3])}" if self.problems else "it has no text")
        return Text(text, self._blocks, self.metadata, self.problems)


_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufdd0-\ufdef\ufffe\uffff]")


def clean(text: str) -> str:
    """Return `text` without control characters and halves of characters, and with Unix line ends."""
    # JSON and PDF can contain halves of characters; UTF-8 cannot encode them.
    text = text.encode("utf-8", "replace").decode()
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\x0c", "\n"))


def row_text(header: list[str], cells: list[str], separator: str = "\n") -> str:
    """Return a table's row as `column: value` pairs. Empty cells are skipped."""
    pairs = []
    for index, cell in enumerate(cells):
        name = header[index] if index < len(header) else ""
        if cell and cell.strip():
            pairs.append(f"{name}: {cell}" if name and name != cell else cell)
    return separator.join(pairs)
