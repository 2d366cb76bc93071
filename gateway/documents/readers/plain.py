"""Plain text, Markdown, reStructuredText and source code."""

import datetime
import re
from typing import Any

import yaml

from gateway.documents.readers.encoding import decode
from gateway.documents.readers.text import TextBuilder, clean

_CODING = re.compile(rb"^[ \t\f]*(?:#|//|\*|\"|%|;).*?coding[:=][ \t]*([-\w.]+)", re.MULTILINE)
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_MAX_FRONT_MATTER = 64 << 10
_RST_UNDERLINE = re.compile(r"([=\-`:'\"~^_*+#<>.])\1{2,}\s*")
# Blocks of text without an empty line are cut, so that their line numbers stay near.
_CODE_LINES = 40


def decoded(data: bytes, out: TextBuilder) -> str:
    """Return the text of `data`. Notes bytes that cannot be decoded. Raises NoText for what is no text."""
    coding = _CODING.search(b"\n".join(data[:1000].split(b"\n")[:2]))
    text, problem = decode(data, coding[1].decode("ascii") if coding else None)
    if problem:
        out.problem(problem)
    return clean(text)


def read_plain(data: bytes, out: TextBuilder) -> None:
    """Add a text, paragraph after paragraph."""
    _add_lines(decoded(data, out), out)


def read_code(data: bytes, out: TextBuilder) -> None:
    """Add source code. Each block says the line that it begins at."""
    _add_lines(decoded(data, out), out, line=1)


def _add_lines(text: str, out: TextBuilder, line: int | None = None) -> None:
    """Add a text as it is, as one block; with `line` in blocks that say their line."""
    if line is None:
        out.add_raw(text)
        return
    lines = text.split("\n")
    begin = 0
    while begin < len(lines):
        end = begin
        while end < len(lines) and (end - begin < _CODE_LINES or lines[end].strip()) and end - begin < 4 * _CODE_LINES:
            end += 1
        out.add_raw("\n".join(lines[begin:end]) + ("\n" if end < len(lines) else ""), line=line + begin)
        begin = end


def read_markdown(data: bytes, out: TextBuilder) -> None:
    """Add a Markdown document. Front matter becomes metadata."""
    text = decoded(data, out)
    match = _FRONT_MATTER.match(text[:_MAX_FRONT_MATTER])
    if match is not None and (metadata := _front_matter(match[1])) is not None:
        for name, value in metadata.items():
            out.set(name, value)
        text = text[match.end() :]
    add_markdown(text, out)


def add_markdown(text: str, out: TextBuilder, **where: Any) -> None:
    """Add Markdown that is decoded: sections, code blocks whole, the rest as it is."""
    block: list[str] = []

    def flush(*, is_whole: bool = False) -> None:
        out.add_raw("".join(block), is_whole=is_whole, **where)
        block.clear()

    fence = ""
    for line in text.splitlines(keepends=True):
        bare = line.rstrip("\n")
        if fence:
            block.append(line)
            if bare.strip().startswith(fence) and not bare.strip().strip(fence[0]):
                flush(is_whole=True)
                fence = ""
        elif match := _FENCE.match(bare):
            flush()
            fence = match[1]
            block.append(line)
        elif (match := _ATX.fullmatch(bare)) and match[2]:
            flush()
            out.start_section(match[2], len(match[1]))
            block.append(line)
        elif (
            (match := _SETEXT.fullmatch(bare))
            and block
            and block[-1].strip()
            and not block[-1].startswith((" ", "-", "|"))
        ):
            title = block.pop()
            flush()
            out.start_section(title, 1 if match[1][0] == "=" else 2)
            block += [title, line]
        else:
            block.append(line)
            if not bare.strip() and len(block) > 1:
                flush()
    flush(is_whole=bool(fence))


def _front_matter(text: str) -> dict[str, Any] | None:
    try:
        loaded = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(loaded, dict):
        return None
    found: dict[str, Any] = {}
    for name, value in loaded.items():
        if isinstance(value, list):
            found[str(name)[:100]] = ", ".join(str(each) for each in value if isinstance(each, (str, int, float)))
        elif isinstance(value, datetime.date):
            found[str(name)[:100]] = value.isoformat()
        elif isinstance(value, (str, int, float, bool)):
            found[str(name)[:100]] = value
    return found


def read_rst(data: bytes, out: TextBuilder) -> None:
    """Add reStructuredText, section after section."""
    block: list[str] = []
    styles: list[str] = []

    def flush() -> None:
        out.add_raw("".join(block))
        block.clear()

    for line in decoded(data, out).splitlines(keepends=True):
        match = _RST_UNDERLINE.fullmatch(line)
        if match and block and block[-1].strip() and len(line.strip()) >= len(block[-1].strip()) > 0:
            title = block.pop()
            overline = block.pop() if block and block[-1].strip() == line.strip() else ""
            flush()
            style = match[1] + ("o" if overline else "")
            if style not in styles:
                styles.append(style)
            out.start_section(title, styles.index(style) + 1)
            block += [overline, title, line]
        else:
            block.append(line)
            if not line.strip() and len(block) > 1:
                flush()
    flush()
