"""Records: JSON, lines of JSON, XML, CSV and spreadsheets. Each record says its row, and its values their names."""

import contextlib
import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import python_calamine
from lxml import etree

from gateway.documents.readers.archive import local, parse_xml
from gateway.documents.readers.html import add_html
from gateway.documents.readers.plain import add_markdown, decoded
from gateway.documents.readers.text import MAX_TEXT_CHARACTERS, NoText, TextBuilder, clean, row_text

_DELIMITERS = ",;\t|"
_SNIFFED_CHARACTERS = 8192
_MAX_COLUMNS = 16_384
_MAX_FIELD_CHARACTERS = 80


def read_json(data: bytes, out: TextBuilder) -> None:
    """Add the values of a JSON document, each with the path to it. Raises NoText if it is no JSON."""
    value = _parsed(decoded(data, out), "it is not JSON")
    if isinstance(value, list):
        for number, record in enumerate(value, 1):
            out.add(clean("\n".join(_leaves(record, ""))), is_whole=True, separator="\n", row=number)
    else:
        out.add(clean("\n".join(_leaves(value, ""))))


def read_json_lines(data: bytes, out: TextBuilder) -> None:
    """Add one record for each line of JSON. A line that is no JSON fails alone."""
    for number, line in enumerate(decoded(data, out).split("\n"), 1):
        if line.strip():
            try:
                record = _parsed(line, f"line {number} is not JSON")
            except NoText as error:
                out.problem(str(error))
            else:
                out.add(clean("\n".join(_leaves(record, ""))), is_whole=True, row=number)


def _parsed(text: str, problem: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise NoText(f"it cannot be read: {problem}: {error}") from None


def _leaves(value: Any, path: str) -> Iterator[str]:
    match value:
        case dict():
            for key, inner in value.items():
                yield from _leaves(inner, f"{path}.{key}" if path else str(key))
        case list():
            for inner in value:
                yield from _leaves(inner, path)
        case None:
            return
        case _:
            yield f"{path}: {value}" if path else str(value)


def read_notebook(data: bytes, out: TextBuilder) -> None:
    """Add the cells of a Jupyter notebook: Markdown, code, and what the code printed."""
    notebook = _parsed(decoded(data, out), "it is not JSON")
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if cells is None and isinstance(notebook, dict):  # format 3
        cells = [cell for sheet in notebook.get("worksheets") or [] for cell in sheet.get("cells") or []]
    if not isinstance(cells, list):
        raise NoText("it cannot be read: it has no cells")
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, dict):
            out.problem(f"cell {number} cannot be read")
            continue
        source = clean(_joined(cell.get("source", cell.get("input"))))
        if cell.get("cell_type") == "markdown":
            add_markdown(source + "\n\n", out, cell=number)
            continue
        out.add(source, is_whole=True, cell=number)
        for output in cell.get("outputs") or []:
            if isinstance(output, dict):
                rich = output.get("data")
                text = _joined(output.get("text") or (rich.get("text/plain") if isinstance(rich, dict) else None))
                out.add(clean(text), is_whole=True, cell=number)


def _joined(value: Any) -> str:
    return "".join(map(str, value)) if isinstance(value, list) else str(value or "")


def read_csv(data: bytes, out: TextBuilder) -> None:
    """Add a record for each row of a table in text: `column: value` lines, with the names of the first row."""
    text = decoded(data, out)
    try:
        delimiter = csv.Sniffer().sniff(text[:_SNIFFED_CHARACTERS], _DELIMITERS).delimiter
    except csv.Error:
        first = text.partition("\n")[0]
        delimiter = max(_DELIMITERS, key=first.count)
    # Only the delimiter is guessed: the beginning does not show how quotes are used further down.
    csv.field_size_limit(MAX_TEXT_CHARACTERS)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    header = next(rows, [])
    count = 0
    for row in rows:
        if any(row):
            count += 1
            out.add(row_text(header, row), is_whole=True, row=rows.line_num)
    if not count:
        out.add("\n".join(header))


def read_spreadsheet(data: bytes, out: TextBuilder) -> None:
    """Add the rows of a spreadsheet's sheets, with the names of the sheet's first row. Raises NoText."""
    try:
        book = python_calamine.load_workbook(io.BytesIO(data))
    except python_calamine.PasswordError:
        raise NoText("it is encrypted") from None
    except (python_calamine.CalamineError, OSError, ValueError) as error:
        raise NoText(f"it cannot be read: {error}") from None
    with contextlib.closing(book):
        for name in book.sheet_names:
            try:
                sheet = book.get_sheet_by_name(name)
                _add_sheet(name, sheet, out)
            except (python_calamine.CalamineError, OSError, ValueError) as error:
                out.problem(f"sheet {name!r} cannot be read: {error}")


def _add_sheet(name: str, sheet: python_calamine.CalamineSheet, out: TextBuilder) -> None:
    header: list[str] = []
    out.start_section(name, 1)
    for line, row in enumerate(sheet.to_python(skip_empty_area=False), 1):
        cells = [_cell(value) for value in row[:_MAX_COLUMNS]]
        if not any(cells):
            continue
        last = max(index for index, cell in enumerate(cells) if cell)
        first = next(index for index, cell in enumerate(cells) if cell)
        where: dict[str, Any] = {"sheet": name, "row": line, "cells": f"{_column(first)}{line}:{_column(last)}{line}"}
        if not header and sum(map(bool, cells)) > 1 and all(isinstance(value, str) for value in row if value != ""):
            header = [" ".join(cell.split()) for cell in cells]
            out.add(clean("\t".join(filter(None, cells))), is_whole=True, **where)
        else:
            out.add(clean(row_text(header, cells, " | ")), is_whole=True, separator="\n", **where)


def _cell(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value).strip() if value is not None else ""


def _column(index: int) -> str:
    name = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        name = chr(ord("A") + rest) + name
    return name


def read_xml(data: bytes, out: TextBuilder) -> None:
    """Add the text of an XML document. Elements with text are paragraphs; short fields of a record have their names."""
    root = parse_xml(data)
    if root is None:
        raise NoText("it cannot be read: it is not XML")
    if local(root) == "html":
        add_html(decoded(data, out), out)
        return
    _add_element(root, out)


def _add_element(root: etree._Element, out: TextBuilder) -> None:
    stack: list[etree._Element] = [root]
    while stack:
        element = stack.pop()
        if not isinstance(element.tag, str):
            continue
        children = [each for each in element if isinstance(each.tag, str)]
        own = (element.text or "").strip() or any((each.tail or "").strip() for each in element)
        if own or not children:
            out.add(" ".join("".join(map(str, element.itertext())).split()))
        elif len(children) > 1 and all(_is_field(each) for each in children):
            fields = (f"{local(each)}: {' '.join((each.text or '').split())}" for each in children if each.text)
            out.add(clean("\n".join(fields)), is_whole=True)
        else:
            stack.extend(reversed(children))


def _is_field(element: etree._Element) -> bool:
    return len(element) == 0 and len((element.text or "").strip()) <= _MAX_FIELD_CHARACTERS
