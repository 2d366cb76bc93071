"""PowerPoint presentations: the text of each slide, its tables and its notes."""

from collections.abc import Iterator

from lxml import etree

from gateway.documents.readers.archive import Archive, attribute, child, find_all, local
from gateway.documents.readers.text import NoText, TextBuilder, row_text


def read_pptx(data: bytes, out: TextBuilder) -> None:
    """Add the text of a presentation, slide after slide. Raises NoText if it is none."""
    archive = Archive(data)
    main = next((path for kind, path in archive.relationships("").values() if kind == "officeDocument"), "")
    root = archive.xml(main or "ppt/presentation.xml")
    if root is None:
        raise NoText("it cannot be read: it has no presentation part")
    core = archive.xml("docProps/core.xml")
    title = child(core, "title")
    out.set("title", title.text if title is not None else None)
    related = archive.relationships(main or "ppt/presentation.xml")
    for number, slide_id in enumerate(find_all(root, "sldId"), 1):
        key = next((str(value) for name, value in slide_id.attrib.items() if str(name).endswith("}id")), "")
        part = related.get(key, ("", ""))[1]
        slide = archive.xml(part)
        if slide is None:
            out.problem(f"slide {number} cannot be read")
            continue
        _add_shapes(slide, out, number)
        for kind, path in archive.relationships(part).values():
            notes = archive.xml(path) if kind == "notesSlide" else None
            if notes is not None:
                _add_shapes(notes, out, number, is_notes=True)


def _add_shapes(root: etree._Element, out: TextBuilder, slide: int, *, is_notes: bool = False) -> None:
    for element in _outermost(root, {"sp", "tbl", "AlternateContent"}):
        match local(element):
            case "tbl":
                rows = [[_text(cell) for cell in find_all(row, "tc")] for row in find_all(element, "tr")]
                header = rows[0] if len(rows) > 1 and attribute(child(element, "tblPr"), "firstRow") == "1" else []
                for number, row in enumerate(rows):
                    text = "\t".join(filter(None, row)) if header and number == 0 else row_text(header, row, " | ")
                    out.add(text, is_whole=True, separator="\n", slide=slide, row=number + 1)
            case "AlternateContent":
                choice = next((each for each in element if local(each) in ("Choice", "Fallback")), None)
                if choice is not None:
                    _add_shapes(choice, out, slide, is_notes=is_notes)
            case _:
                placeholder = next(find_all(element, "ph"), None)
                kind = attribute(placeholder, "type") or ""
                if kind in ("sldNum", "dt", "ftr", "hdr", "sldImg"):
                    continue
                text = _text(element)
                if kind in ("title", "ctrTitle") and not is_notes:
                    out.add_heading(text, 1, slide=slide)
                else:
                    out.add(text, slide=slide)


def _outermost(root: etree._Element, names: set[str]) -> Iterator[etree._Element]:
    for each in root:
        if local(each) in names:
            yield each
        else:
            yield from _outermost(each, names)


def _text(element: etree._Element) -> str:
    lines = []
    for paragraph in find_all(element, "p"):
        pieces = []
        for each in paragraph.iter():
            if local(each) == "t":
                pieces.append(each.text or "")
            elif local(each) == "br":
                pieces.append("\n")
            elif local(each) == "tab":
                pieces.append("\t")
        lines.append("".join(pieces).strip())
    return "\n".join(line for line in lines if line)
