"""HTML pages: what a reader of the page sees, without scripts, navigation and hidden parts."""

import re
from typing import Any

from lxml import etree, html

from gateway.documents.readers.encoding import decode
from gateway.documents.readers.text import TextBuilder, row_text

_SKIPPED = {"script", "style", "template", "noscript", "head", "nav", "svg", "iframe", "object", "audio", "video",
            "canvas", "map", "datalist"}  # fmt: skip
_BLOCKS = {"address", "article", "aside", "blockquote", "body", "center", "details", "dialog", "dir", "div", "dl",
           "fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "html", "legend", "main", "menu", "ol",
           "p", "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "ul", "caption",
           "option", "select", "frameset", "optgroup"}  # fmt: skip
_LINES = {"li", "dt", "dd", "tr", "option"}
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]+)""", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"""^\s*<\?xml[^>]{0,100}?encoding\s*=\s*["']([A-Za-z0-9_:.-]+)""")
_XML_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_TAG = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^>]*>", re.IGNORECASE | re.DOTALL)
_SPACE = re.compile(r"[ \t\n\r\f]+")
_MAX_SPAN = 100


def read_html(data: bytes, out: TextBuilder) -> None:
    """Add the text of an HTML page."""
    head = data[:4096]
    declared = _XML_ENCODING.search(head) or _CHARSET.search(head)
    text, problem = decode(data, declared[1].decode("ascii") if declared else None)
    if problem:
        out.problem(problem)
    add_html(text, out)


def add_html(text: str, out: TextBuilder, **where: Any) -> None:
    """Add the text of an HTML page that is decoded."""
    text = _XML_DECLARATION.sub("", text).replace("\x00", "")
    if not text.strip():
        return
    # A document in memory is UTF-8, whatever it declares.
    parser = html.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
    root = html.document_fromstring(text.encode("utf-8", "replace"), parser=parser, ensure_head_body=True)
    if any("depth" in entry.message for entry in parser.error_log):
        # The parser leaves out what is nested deeper than it goes.
        out.add(" ".join(_TAG.sub(" ", text).split()), **where)
        return
    title = root.find(".//head/title")
    if title is not None and title.text:
        out.set("title", title.text)
    _Page(out, where).walk(root)


class _Page:
    """Collects the text between the beginnings and ends of blocks."""

    def __init__(self, out: TextBuilder, where: dict[str, Any]) -> None:
        self._out, self._where = out, where
        self._pieces: list[str] = []
        self._separator = "\n\n"
        self._pre = 0
        self._bullet = ""

    def walk(self, root: etree._Element) -> None:
        """Add all text below `root`. Not recursive: pages can be nested deeply."""
        skip_to: etree._Element | None = None
        for event, element in etree.iterwalk(root, events=("start", "end")):
            tag = element.tag if isinstance(element.tag, str) else ""
            if skip_to is not None:
                if event == "end" and element is skip_to:
                    skip_to = None
                    self._text(element.tail)
            elif event == "start":
                if _is_skipped(element, tag):
                    skip_to = element
                elif tag == "table" and (rows := _data_table(element)) is not None:
                    self._flush()
                    self._add_rows(element, *rows)
                    skip_to = element
                else:
                    self._start(element, tag)
            else:
                self._end(tag)
                self._text(element.tail)
        self._flush()

    def _start(self, element: etree._Element, tag: str) -> None:
        if tag in _HEADINGS or tag in _BLOCKS or tag == "pre":
            self._flush()
        elif tag in _LINES:
            self._flush("\n")
        if tag == "pre":
            self._pre += 1
        elif tag == "br":
            self._pieces.append("\n")
        elif tag == "li":
            self._bullet = "- "
        elif tag in ("img", "area") and element.get("alt"):
            self._pieces.append(f" {element.get('alt')} ")
        elif tag == "input" and element.get("type", "text") in ("text", "button", "submit") and element.get("value"):
            self._pieces.append(f" {element.get('value')} ")
        elif tag in ("td", "th"):
            self._pieces.append(" ")
        if tag == "textarea":
            self._pieces.append(" ")
        self._text(element.text)

    def _end(self, tag: str) -> None:
        if tag in _HEADINGS:
            self._flush(heading=_HEADINGS[tag])
        elif tag == "pre":
            self._flush(is_whole=True)
            self._pre -= 1
        elif tag in _BLOCKS:
            self._flush()
        elif tag in _LINES:
            self._flush("\n")

    def _text(self, text: str | None) -> None:
        if text:
            self._pieces.append(text if self._pre else _SPACE.sub(" ", text))

    def _flush(self, separator: str = "\n\n", *, heading: int | None = None, is_whole: bool = False) -> None:
        text = "".join(self._pieces)
        self._pieces = []
        if not self._pre:
            text = "\n".join(_SPACE.sub(" ", line).strip() for line in text.split("\n")).strip()
        if text.strip():
            if heading is not None:
                self._out.add_heading(text, heading, **self._where)
            else:
                self._out.add(self._bullet + text, is_whole=is_whole, separator=self._separator, **self._where)
            self._bullet = ""
            self._separator = separator
        elif separator == "\n\n":
            self._separator = separator

    def _add_rows(self, table: etree._Element, header: list[str], rows: list[list[str]]) -> None:
        caption = table.find("caption")
        if caption is not None:
            self._out.add(_flat(caption), **self._where)
        if header:
            self._out.add("\t".join(filter(None, header)), is_whole=True, **self._where)
        for number, row in enumerate(rows, 1):
            text = row_text(header, row, " | ")
            self._out.add(text, is_whole=True, separator="\n", row=number, **self._where)
        self._separator = "\n\n"


def _is_skipped(element: etree._Element, tag: str) -> bool:
    if not tag or tag in _SKIPPED:
        return True
    attributes = element.attrib
    if not attributes:
        return False
    return (
        "hidden" in attributes
        or attributes.get("role") in ("navigation", "search")
        or (tag == "input" and attributes.get("type") == "hidden")
        or bool(_HIDDEN.search(str(attributes.get("style", ""))))
    )


def _data_table(table: etree._Element) -> tuple[list[str], list[list[str]]] | None:
    """Return the header and the rows of a table of data. None for a table that is only there for the layout."""
    if table.find(".//table") is not None or table.find(".//pre") is not None:
        return None
    header: list[str] = []
    rows: list[list[str]] = []
    open_spans: dict[int, int] = {}
    for row in table.iter("tr"):
        cells: list[str] = []
        elements = [each for each in row if each.tag in ("td", "th") and not _is_skipped(each, str(each.tag))]
        for element in elements:
            while open_spans.get(len(cells), 0) > 0:
                open_spans[len(cells)] -= 1
                cells.append("")
            columns, lines = _span(element, "colspan"), _span(element, "rowspan")
            text = _flat(element)
            for offset in range(columns):
                if lines > 1:
                    open_spans[len(cells)] = lines - 1
                cells.append(text if offset == 0 or (not rows and not header) else "")
        if not rows and not header and len(elements) > 1 and all(each.tag == "th" for each in elements):
            header = cells
        elif any(cells):
            rows.append(cells)
    return (header, rows) if header and rows else None


def _span(element: etree._Element, name: str) -> int:
    value = str(element.get(name) or "1")
    return max(1, min(int(value), _MAX_SPAN)) if value.isascii() and value.isdigit() else 1


def _flat(element: etree._Element) -> str:
    """Return the text of an element on one line."""
    pieces: list[str] = []
    skip_to: etree._Element | None = None
    for event, each in etree.iterwalk(element, events=("start", "end")):
        tag = each.tag if isinstance(each.tag, str) else ""
        if skip_to is not None:
            if event == "end" and each is skip_to:
                skip_to = None
                pieces.append(each.tail or "")
        elif event == "start":
            if each is not element and _is_skipped(each, tag):
                skip_to = each
                continue
            if tag in _BLOCKS or tag in _LINES or tag in _HEADINGS or tag == "br":
                pieces.append(" ")
            if tag == "img" and each.get("alt"):
                pieces.append(f" {each.get('alt')} ")
            pieces.append(each.text or "")
        else:
            if tag in _BLOCKS or tag in _LINES or tag in _HEADINGS:
                pieces.append(" ")
            if each is not element:
                pieces.append(each.tail or "")
    return " ".join("".join(pieces).split())
