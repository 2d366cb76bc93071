"""OpenDocument texts and presentations."""

from collections.abc import Iterator

from lxml import etree

from gateway.documents.readers.archive import Archive, attribute, child, local
from gateway.documents.readers.text import NoText, TextBuilder, row_text

_SKIPPED = {"tracked-changes", "annotation", "forms", "sequence-decls", "script", "event-listeners", "desc", "title"}
_MOST_REPEATED = 100


def read_opendocument(data: bytes, out: TextBuilder) -> None:
    """Add the text of an OpenDocument file. Raises NoText if it is none."""
    archive = Archive(data)
    root = archive.xml("content.xml")
    body = child(root, "body")
    if body is None:
        raise NoText("it cannot be read: it has no content part")
    title = child(archive.xml("meta.xml"), "meta", "title")
    out.set("title", title.text if title is not None else None)
    _add(body, out, _Position())


class _Position:
    slide: int | None = None


def _add(container: etree._Element, out: TextBuilder, position: _Position) -> None:
    for element in container:
        name = local(element)
        if name in _SKIPPED or not name:
            continue
        if name == "page":
            position.slide = (position.slide or 0) + 1
        if name == "h":
            level = attribute(element, "outline-level") or "1"
            out.add_heading("".join(_pieces(element, [])), int(level) if level.isdigit() else 1, slide=position.slide)
        elif name == "p":
            _add_paragraph(element, out, position)
        elif name == "list-item":
            _add_item(element, out, position)
        elif name == "table":
            _add_table(element, out, position)
        else:
            _add(element, out, position)


def _add_item(item: etree._Element, out: TextBuilder, position: _Position) -> None:
    for element in list(item):
        if local(element) in ("p", "h"):
            _add_paragraph(element, out, position, "- ")
        else:
            holder = etree.Element("holder")
            holder.append(element)
            _add(holder, out, position)


def _add_paragraph(paragraph: etree._Element, out: TextBuilder, position: _Position, prefix: str = "") -> None:
    later: list[etree._Element] = []
    text = "".join(_pieces(paragraph, later)).strip()
    out.add(prefix + text if text else "", separator="\n" if prefix else "\n\n", slide=position.slide)
    for each in later:  # notes and text boxes
        _add(each, out, position)


def _pieces(element: etree._Element, later: list[etree._Element]) -> Iterator[str]:
    yield element.text or ""
    for each in element:
        match local(each):
            case "s":
                count = attribute(each, "c") or "1"
                yield " " * (min(int(count), 1000) if count.isdigit() else 1)
            case "tab":
                yield "\t"
            case "line-break":
                yield "\n"
            case "note":
                body = child(each, "note-body")
                if body is not None:
                    later.append(body)
            case "text-box" | "table":
                later.append(each)
            case name if name in _SKIPPED:
                pass
            case _:
                yield from _pieces(each, later)
        yield each.tail or ""


def _add_table(table: etree._Element, out: TextBuilder, position: _Position) -> None:
    header: list[str] = []
    for number, (row, in_header) in enumerate(_rows(table, in_header=False), 1):
        cells: list[str] = []
        nested: list[etree._Element] = []
        for cell in row:
            if local(cell) not in ("table-cell", "covered-table-cell"):
                continue
            parts = []
            for each in cell:
                if local(each) == "table":
                    nested.append(each)
                else:
                    later: list[etree._Element] = []
                    parts.append("".join(_pieces(each, later)).strip())
                    nested += [inner for inner in later if local(inner) == "table"]
            repeated = attribute(cell, "number-columns-repeated") or "1"
            text = " ".join(part for part in parts if part)
            cells += [text] * (min(int(repeated), _MOST_REPEATED) if text and repeated.isdigit() else 1)
        if in_header:
            header = cells
        text = "\t".join(filter(None, cells)) if in_header else row_text(header, cells, " | ")
        out.add(text, is_whole=True, separator="\n", row=number, slide=position.slide)
        for each in nested:
            _add_table(each, out, position)


def _rows(table: etree._Element, *, in_header: bool) -> Iterator[tuple[etree._Element, bool]]:
    for each in table:
        match local(each):
            case "table-row":
                yield each, in_header
            case "table-header-rows":
                yield from _rows(each, in_header=True)
            case "table-rows" | "table-row-group":
                yield from _rows(each, in_header=in_header)
