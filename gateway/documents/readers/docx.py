"""Word documents. The XML is walked itself: libraries leave out content controls, insertions, fields and text boxes."""

import re
from collections.abc import Iterator

from lxml import etree

from gateway.documents.readers.archive import Archive, attribute, child, find_all, local
from gateway.documents.readers.text import NoText, TextBuilder, row_text

# Deleted text, the code of fields, and properties.
_SKIPPED = {"del", "moveFrom", "delText", "instrText", "delInstrText", "rPr", "pPr", "tblPr", "trPr", "tcPr", "sectPr",
            "sdtPr", "sdtEndPr", "tblGrid", "customXmlPr", "smartTagPr", "comment", "ruby", "fldData"}  # fmt: skip
_HEADING = re.compile(r"heading\s*([1-9])", re.IGNORECASE)
_MAX_HEADER_CELL = 60


def read_docx(data: bytes, out: TextBuilder) -> None:
    """Add the text of a Word document. Raises NoText if it is none."""
    archive = Archive(data)
    main = next((path for kind, path in archive.relationships("").values() if kind == "officeDocument"), "")
    root = archive.xml(main or "word/document.xml")
    body = child(root, "body")
    if body is None:
        raise NoText("it cannot be read: it has no document part")
    core = archive.xml("docProps/core.xml")
    for name, key in (("title", "title"), ("creator", "author")):
        found = child(core, name)
        out.set(key, found.text if found is not None else None)
    _Document(archive, main or "word/document.xml", out).add(body)


class _Document:
    def __init__(self, archive: Archive, main: str, out: TextBuilder) -> None:
        self._out = out
        related = dict(archive.relationships(main).values())
        self._notes = {}
        for kind in ("footnotes", "endnotes"):
            root = archive.xml(related[kind]) if kind in related else None
            if root is not None:
                self._notes[kind.removesuffix("s")] = {attribute(note, "id"): note for note in root}
        self._levels = _heading_levels(archive.xml(related["styles"]) if "styles" in related else None)

    def add(self, container: etree._Element) -> None:
        """Add the paragraphs and tables of a body, cell, text box or note."""
        for element in container:
            match local(element):
                case "p":
                    self._add_paragraph(element)
                case "tbl":
                    self._add_table(element)
                case "AlternateContent":
                    self.add(_chosen(element))
                case name if name not in _SKIPPED:
                    self.add(element)

    def _add_paragraph(self, paragraph: etree._Element) -> None:
        later: list[etree._Element] = []
        text = "".join(self._pieces(paragraph, later)).strip()
        level = self._level(paragraph)
        if level is not None:
            self._out.add_heading(text, level)
        else:
            is_item = child(paragraph, "pPr", "numPr") is not None
            self._out.add(f"- {text}" if is_item and text else text, separator="\n" if is_item else "\n\n")
        for container in later:  # text boxes and notes
            self.add(container)

    def _pieces(self, element: etree._Element, later: list[etree._Element]) -> Iterator[str]:
        for each in element:
            match local(each):
                case "t":
                    yield each.text or ""
                case "tab" | "ptab":
                    yield "\t"
                case "br" | "cr":
                    yield "\n"
                case "noBreakHyphen":
                    yield "-"
                case "sym":
                    yield _symbol(each)
                case "txbxContent":
                    later.append(each)
                case "footnoteReference" | "endnoteReference" as name:
                    note = self._notes.get(name.removesuffix("Reference"), {}).get(attribute(each, "id"))
                    if note is not None:
                        later.append(note)
                case "AlternateContent":
                    yield from self._pieces(_chosen(each), later)
                case "ruby":
                    base = child(each, "rubyBase")
                    if base is not None:
                        yield from self._pieces(base, later)
                case name if name not in _SKIPPED:
                    yield from self._pieces(each, later)

    def _level(self, paragraph: etree._Element) -> int | None:
        properties = child(paragraph, "pPr")
        own = attribute(child(properties, "outlineLvl"), "val")
        if own is not None and own.isdigit() and int(own) < 9:
            return int(own) + 1
        return self._levels.get(attribute(child(properties, "pStyle"), "val") or "")

    def _add_table(self, table: etree._Element) -> None:
        header: list[str] = []
        for number, row in enumerate(_rows(table)):
            cells: list[str] = []
            nested: list[etree._Element] = []
            for cell in _cells(row):
                properties = child(cell, "tcPr")
                span = attribute(child(properties, "gridSpan"), "val") or "1"
                cells.append(self._cell_text(cell, nested))
                cells += [""] * (min(int(span), 100) - 1 if span.isdigit() else 0)
            if number == 0 and _is_header(table, row, cells):
                header = cells
                self._out.add("\t".join(filter(None, cells)), is_whole=True)
            else:
                self._out.add(row_text(header, cells, " | "), is_whole=True, separator="\n", row=number + 1)
            for each in nested:
                self._add_table(each)

    def _cell_text(self, cell: etree._Element, nested: list[etree._Element]) -> str:
        """Return the text of a cell's paragraphs. Tables in it go to `nested`."""
        lines: list[str] = []

        def collect(container: etree._Element) -> None:
            for each in container:
                match local(each):
                    case "p":
                        later: list[etree._Element] = []
                        lines.append("".join(self._pieces(each, later)).strip())
                        for inner in later:
                            collect(inner)
                    case "tbl":
                        nested.append(each)
                    case "AlternateContent":
                        collect(_chosen(each))
                    case name if name not in _SKIPPED:
                        collect(each)

        collect(cell)
        return " ".join(line for line in lines if line)


def _rows(table: etree._Element) -> Iterator[etree._Element]:
    for each in table:
        if local(each) == "tr":
            yield each
        elif local(each) not in _SKIPPED and local(each) != "tbl":
            yield from _rows(each)  # rows in content controls


def _cells(row: etree._Element) -> Iterator[etree._Element]:
    for each in row:
        if local(each) == "tc":
            yield each
        elif local(each) not in _SKIPPED:
            yield from _cells(each)


def _is_header(table: etree._Element, row: etree._Element, cells: list[str]) -> bool:
    if child(row, "trPr", "tblHeader") is not None:
        return True
    look = child(table, "tblPr", "tblLook")
    first = attribute(look, "firstRow")
    value = attribute(look, "val") or "0"
    marked = first in ("1", "true", "on") or (first is None and bool(_hex(value) & 0x20))
    filled = [cell for cell in cells if cell]
    return (
        marked
        and len(filled) == len(cells) > 1
        and all(len(cell) <= _MAX_HEADER_CELL and any(map(str.isalpha, cell)) for cell in filled)
        and sum(1 for _ in _rows(table)) > 2
    )


def _hex(value: str) -> int:
    try:
        return int(value, 16)
    except ValueError:
        return 0


def _chosen(alternatives: etree._Element) -> etree._Element:
    """Return the alternative that has text. The choices say the same in newer and older XML."""
    options = [each for each in alternatives if local(each) in ("Choice", "Fallback")]
    for each in options:
        if next(find_all(each, "t"), None) is not None:
            return each
    return options[0] if options else alternatives


def _symbol(element: etree._Element) -> str:
    code = _hex(attribute(element, "char") or "")
    return "" if 0xE000 <= code <= 0xF8FF or not 0x20 <= code <= 0x10FFFF else chr(code)


def _heading_levels(styles: etree._Element | None) -> dict[str, int]:
    """Return the outline level of each style that is a heading, also by the style that it is based on."""
    levels: dict[str, int] = {}
    based: dict[str, str] = {}
    for style in () if styles is None else find_all(styles, "style"):
        key = attribute(style, "styleId") or ""
        name = attribute(child(style, "name"), "val") or ""
        outline = attribute(child(style, "pPr", "outlineLvl"), "val")
        if match := _HEADING.fullmatch(name):
            levels[key] = int(match[1])
        elif name.lower() == "title":
            levels[key] = 1
        elif outline is not None and outline.isdigit() and int(outline) < 9:
            levels[key] = int(outline) + 1
        based[key] = attribute(child(style, "basedOn"), "val") or ""
    for key, base in based.items():
        parent, seen = base, {key}
        while key not in levels and parent and parent not in seen:
            if parent in levels:
                levels[key] = levels[parent]
            seen.add(parent)
            parent = based.get(parent, "")
    return levels
