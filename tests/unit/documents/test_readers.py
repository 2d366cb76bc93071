"""What people's files say: nothing left out, nothing twice, nothing that is not there."""

import email.message
import io
import json
import time
import zipfile

import docx
import openpyxl
import pptx
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from fpdf import FPDF
from pypdf import PdfReader, PdfWriter
from pypdf.generic import DictionaryObject, NameObject, NumberObject, StreamObject

from gateway.documents.readers import kinds
from gateway.documents.readers.encoding import decode
from gateway.documents.readers.text import NoText, Text
from gateway.documents.split import Splitting, split
from gateway.documents.worker_pool import _READ_TIMEOUT_S, _READ_TIMEOUT_S_PER_MB
from tests.processor_time import assert_grows_at_most

W = nsdecls("w")
FRIDAY = "The exam is on Friday."


def read(name: str, data: bytes | str) -> Text:
    return kinds.read(data if isinstance(data, bytes) else data.encode(), name)


def where(text: Text, words: str) -> dict[str, object]:
    """The metadata of the block that begins with these words, or has them."""
    (block,) = [each for each in text.blocks if words in text.text[each.start : each.end]]
    return dict(block.where)


# ------------------------------------------------------------------ PDF


def pdf(*pages: str) -> bytes:
    made = FPDF()
    made.set_title("The course")
    made.set_font("helvetica", size=12)
    for text in pages:
        made.add_page()
        if text:
            made.multi_cell(0, 8, text)
        else:
            made.image(io.BytesIO(dot()), x=10, y=10, w=100)
    return bytes(made.output())


def dot() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(out, "PNG")
    return out.getvalue()


def test_each_page_of_a_pdf_says_its_number() -> None:
    """And the document's title is in the metadata."""
    text = read("a.pdf", pdf("First page.", FRIDAY))
    assert where(text, "Friday") == {"page": 2}
    assert text.metadata["title"] == "The course"
    assert text.problems == []


def drawn(content: str) -> bytes:
    """A PDF whose page is drawn by these operators, with the font F1."""
    writer = PdfWriter(io.BytesIO(pdf("x")))
    stream = StreamObject()
    stream.set_data(content.encode())
    writer.pages[0][NameObject("/Contents")] = writer._add_object(stream)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        "BT /F1 12 Tf 50 700 Td [(The) -333 (e) 20 (xam) -333 (is) -333 (on) -333 (Friday.)] TJ ET",
        "BT /F1 12 Tf 1 0 0 1 50 700 Tm (The) Tj 1 0 0 1 74 700 Tm (exam) Tj 1 0 0 1 108 700 Tm (is) Tj "
        "1 0 0 1 121 700 Tm (on) Tj 1 0 0 1 139 700 Tm (Friday.) Tj ET",
    ],
    ids=["gaps within a line", "each word by itself"],
)
def test_words_of_a_pdf_are_told_by_their_places(content: str) -> None:
    """Typesetting programs write no spaces; the words are neither run together nor one a line."""
    assert read("a.pdf", drawn(content)).text == FRIDAY


def test_sections_of_a_pdf_begin_where_its_outline_says() -> None:
    """Also amid a page, and not at a running head: a chunk does not end between a heading and its text."""
    made = FPDF()
    made.set_font("helvetica", size=12)
    for title, level, lines in (("Course", 0, ["About."]), ("Dates", 1, ["In May.", FRIDAY]), ("Rooms", 1, ["A1"])):
        if level == 0 or title == "Rooms":
            made.add_page()
            made.cell(0, 8, "Rooms and more", new_x="LMARGIN", new_y="NEXT")
            made.cell(0, 8, "The head of the page.", new_x="LMARGIN", new_y="NEXT")
        made.start_section(title, level)
        for line in (f"1.{level} {title.upper()}", *lines):
            made.cell(0, 8, line, new_x="LMARGIN", new_y="NEXT")
    text = read("a.pdf", bytes(made.output()))
    assert where(text, FRIDAY) == {"page": 1, "heading": "Course > Dates"}
    assert where(text, "About.") == {"page": 1, "heading": "Course"}
    assert where(text, "A1") == {"page": 2, "heading": "Course > Rooms"}
    sections = [text.text[each.start : each.end] for each in text.blocks if each.begins_section]
    assert [each.partition("\n")[0] for each in sections] == ["1.0 COURSE", "1.1 DATES", "1.1 ROOMS"]


@pytest.mark.parametrize("how", ["no page", "its content"])
def test_one_broken_page_does_not_cost_the_book(how: str) -> None:
    """It is named, and the others are read."""
    writer = PdfWriter(io.BytesIO(pdf("First page.", "Second page.", "Third page.")))
    page = writer.pages[1]
    if how == "no page":
        assert page.indirect_reference is not None
        writer._objects[page.indirect_reference.idnum - 1] = NumberObject(7)
    else:
        content = page["/Contents"].get_object()
        assert isinstance(content, StreamObject)
        content._data = b"x\x9cis not what was compressed"
    out = io.BytesIO()
    writer.write(out)
    text = read("a.pdf", out.getvalue())
    assert text.text == "First page.\n\nThird page."
    (problem,) = text.problems
    assert "page 2" in problem or "empty: 2" in problem


def test_an_empty_page_is_no_problem() -> None:
    """It says nothing, and nothing of it is missing."""
    made = FPDF()
    made.set_font("helvetica", size=12)
    for text in (FRIDAY, ""):
        made.add_page()
        made.cell(0, 8, text)
    assert read("a.pdf", bytes(made.output())).problems == []


def test_a_pdf_that_is_partly_scanned_says_so() -> None:
    """The pages that have a picture and no text are named."""
    text = read("a.pdf", pdf(FRIDAY, "", FRIDAY))
    assert len(text.problems) == 1
    assert "scanned: 2" in text.problems[0]


def test_values_of_a_pdfs_form_are_read() -> None:
    """They are no part of the page's text."""
    writer = PdfWriter(io.BytesIO(pdf("Name:")))
    from pypdf.generic import ArrayObject, FloatObject, TextStringObject

    field = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Annot"),
            NameObject("/Subtype"): NameObject("/Widget"),
            NameObject("/FT"): NameObject("/Tx"),
            NameObject("/T"): TextStringObject("student"),
            NameObject("/V"): TextStringObject("Ada Lovelace"),
            NameObject("/Rect"): ArrayObject([FloatObject(each) for each in (50, 700, 200, 720)]),
        }
    )
    reference = writer._add_object(field)
    writer.pages[0][NameObject("/Annots")] = ArrayObject([reference])
    writer._root_object[NameObject("/AcroForm")] = DictionaryObject({NameObject("/Fields"): ArrayObject([reference])})
    out = io.BytesIO()
    writer.write(out)
    assert "student: Ada Lovelace" in read("a.pdf", out.getvalue()).text


def test_ligatures_are_letters() -> None:
    """A search for "office" finds them; other signs are kept."""
    from gateway.documents.readers.pdf import _normalised

    assert _normalised("o\ufb03ce \ufb01rst x\u00b2 exam\ufffe\nple") == "office first x\u00b2 example"


def test_a_pdf_is_a_pdf_whatever_it_is_called() -> None:
    """Its bytes come first."""
    for name in ("a.html", "a.txt", "a", "a.docx"):
        assert where(read(name, pdf(FRIDAY)), "Friday") == {"page": 1}
    assert PdfReader(io.BytesIO(pdf(FRIDAY))).pages


# ------------------------------------------------------------------ Word


def word() -> docx.document.Document:
    made = docx.Document()
    body = made.element.body
    made.add_paragraph("Before.")
    body.insert(
        1, parse_xml(f"<w:sdt {W}><w:sdtContent><w:p><w:r><w:t>In a control</w:t></w:r></w:p></w:sdtContent></w:sdt>")
    )
    paragraph = made.add_paragraph("The deadline is ")
    paragraph._p.append(parse_xml(f'<w:ins {W} w:id="1" w:author="a"><w:r><w:t>12 May</w:t></w:r></w:ins>'))
    paragraph._p.append(parse_xml(f'<w:del {W} w:id="2" w:author="a"><w:r><w:delText>1 May</w:delText></w:r></w:del>'))
    paragraph.add_run(" at noon.")
    paragraph = made.add_paragraph("Name: ")
    paragraph._p.append(parse_xml(f"<w:sdt {W}><w:sdtContent><w:r><w:t>Ada</w:t></w:r></w:sdtContent></w:sdt>"))
    paragraph._p.append(
        parse_xml(f'<w:smartTag {W} w:uri="x" w:element="place"><w:r><w:t> in Berlin</w:t></w:r></w:smartTag>')
    )
    paragraph._p.append(parse_xml(f'<w:fldSimple {W} w:instr="DATE"><w:r><w:t> on 3 June</w:t></w:r></w:fldSimple>'))
    table = made.add_table(1, 2)
    table.cell(0, 0).text = "outer"
    table.cell(0, 1).add_table(1, 1).cell(0, 0).text = "nested cell"
    merged = made.add_table(2, 3)
    merged.cell(0, 0).merge(merged.cell(0, 2)).text = "merged"
    made.add_heading("Dates", 1)
    made.add_paragraph(FRIDAY)
    return made


def saved(made: docx.document.Document) -> bytes:
    out = io.BytesIO()
    made.save(out)
    return out.getvalue()


def test_everything_in_a_word_file_is_read() -> None:
    """Content controls, insertions, smart tags, simple fields, nested tables; deletions are not."""
    text = read("a.docx", saved(word()))
    for words in ("In a control", "The deadline is 12 May at noon.", "Name: Ada in Berlin on 3 June", "nested cell"):
        assert text.text.count(words) == 1, words
    assert text.text.index("Before.") < text.text.index("In a control") < text.text.index("The deadline")
    assert "1 May" not in text.text.replace("12 May", "")
    assert text.text.count("merged") == 1
    assert where(text, "Friday") == {"heading": "Dates"}


def changed(data: bytes, name: str, edit: "dict[str, str]", more: dict[str, str] | None = None) -> bytes:
    """The file with texts replaced in one of its parts, or in all with the name "*"."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if name in ("*", entry.filename) and entry.filename.endswith((".xml", ".rels")):
                text = content.decode()
                for before, after in edit.items():
                    text = text.replace(before, after)
                content = text.encode()
            new.writestr(entry, content)
        for key, value in (more or {}).items():
            new.writestr(key, value)
    return out.getvalue()


def test_text_boxes_and_footnotes_are_read_once() -> None:
    """A text box is in the file twice, for newer and older programs; footnotes are in a part of their own."""
    made = docx.Document()
    paragraph = made.add_paragraph("Main text")
    box = "<w:txbxContent><w:p><w:r><w:t>In a box</w:t></w:r></w:p></w:txbxContent>"
    paragraph._p.append(
        parse_xml(
            f'<w:r {W} xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"><mc:AlternateContent>'
            f'<mc:Choice Requires="wps"><w:drawing>{box}</w:drawing></mc:Choice>'
            f"<mc:Fallback><w:pict>{box}</w:pict></mc:Fallback></mc:AlternateContent></w:r>"
        )
    )
    paragraph._p.append(parse_xml(f'<w:r {W}><w:footnoteReference w:id="2"/></w:r>'))
    data = changed(
        saved(made),
        "word/_rels/document.xml.rels",
        {
            "</Relationships>": '<Relationship Id="rNote" Target="footnotes.xml" Type="http://schemas.openxmlformats.org/'
            'officeDocument/2006/relationships/footnotes"/></Relationships>'
        },
        {
            "word/footnotes.xml": f'<w:footnotes {W}><w:footnote w:id="2"><w:p><w:r><w:t>As the note says</w:t></w:r>'
            "</w:p></w:footnote></w:footnotes>"
        },
    )
    text = read("a.docx", data).text
    assert [text.count(words) for words in ("Main text", "In a box", "As the note says")] == [1, 1, 1]


def test_strict_office_files_are_read() -> None:
    """Their namespaces are others."""
    data = changed(
        saved(word()),
        "*",
        {
            "http://schemas.openxmlformats.org/wordprocessingml/2006/main": "http://purl.oclc.org/ooxml/wordprocessingml/main",
            "http://schemas.openxmlformats.org/officeDocument/2006/relationships": "http://purl.oclc.org/ooxml/officeDocument/relationships",
        },
    )
    assert read("a.docx", data).text == read("a.docx", saved(word())).text


def test_an_odd_table_does_not_cost_the_word_file() -> None:
    """Rows without cells, spans that are no numbers, cells that continue nothing: what is in it is read."""
    rows = "<w:tr/>" + "".join(
        f"<w:tr><w:tc><w:tcPr>{odd}</w:tcPr><w:p><w:r><w:t>{words}</w:t></w:r></w:p></w:tc></w:tr>"
        for odd, words in (
            ('<w:gridSpan w:val="x"/>', "odd span"),
            ('<w:gridSpan w:val="99999999"/>', "long span"),
            ("<w:vMerge/>", "no start"),
        )
    )
    made = docx.Document()
    made.element.body.insert(0, parse_xml(f"<w:tbl {W}>{rows}</w:tbl>"))
    made.add_paragraph(FRIDAY)
    text = read("a.docx", saved(made)).text
    assert [text.count(words) for words in ("odd span", "long span", "no start", FRIDAY)] == [1, 1, 1, 1]


def test_rows_of_a_word_table_have_its_headers() -> None:
    """A chunk from its middle says what its numbers are."""
    made = docx.Document()
    table = made.add_table(0, 2, style="Table Grid")
    for cells in (("Day", "Room"), ("Friday", "A1"), ("Monday", "B2")):
        row = table.add_row()
        for cell, words in zip(row.cells, cells, strict=True):
            cell.text = words
    assert "Day: Monday | Room: B2" in read("a.docx", saved(made)).text


# ------------------------------------------------------------------ HTML


def html(body: str, head: str = "") -> Text:
    return read("a.html", f"<!doctype html><html><head>{head}</head><body>{body}</body></html>")


def test_inline_tags_do_not_break_lines() -> None:
    """Water is one word."""
    assert html("<p>H<sub>2</sub>O is <b>wa</b>ter,<br>and <a href=x>wet</a>.</p>").text == "H2O is water,\nand wet."


def test_preformatted_text_keeps_its_form() -> None:
    """Indentation is what a program means."""
    assert "def f():\n    return 1" in html("<p>See</p><pre><code>def f():\n    return <b>1</b>\n</code></pre>").text


def test_what_nobody_sees_is_left_out() -> None:
    """Navigation, hidden elements, scripts and comments."""
    text = html(
        "<nav>Home</nav><div role=navigation>Up</div><p hidden>gone</p><p style='display: none'>none</p>"
        f"<!-- comment --><script>code()</script><template>empty</template><input type=hidden value=secret><p>{FRIDAY}"
    )
    assert text.text == FRIDAY


def test_cells_have_the_headers_of_their_table() -> None:
    """Also where cells span; a table for the layout is text."""
    text = html(
        "<table><tr><th>Day<th>Room<th>Who</tr><tr><td rowspan=2>Friday<td>A1<td>Ada</tr><tr><td>B2<td>Bob</tr></table>"
    ).text
    assert "Day: Friday | Room: A1 | Who: Ada" in text
    assert "Room: B2 | Who: Bob" in text
    assert html("<table><tr><td>left<td>right</table>").text.split() == ["left", "right"]


def test_headings_are_a_path() -> None:
    """Each block says under which headings it is."""
    text = html("<h1>Course</h1><h2>Dates</h2><p>Friday</p><h2>Rooms</h2><p>A1</p>", "<title>My course</title>")
    assert where(text, "Friday") == {"heading": "Course > Dates"}
    assert where(text, "A1") == {"heading": "Course > Rooms"}
    assert text.metadata == {"title": "My course"}


def test_a_page_nested_deeply_is_read() -> None:
    """However deep."""
    assert FRIDAY in html("<div>" * 5000 + FRIDAY).text


# ------------------------------------------------------------------ encodings


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("piña colada costs £5", "cp1252"),
        ("Müller", "cp1252"),
        ("“Hello” – it’s a naïve café…", "cp1252"),
        ("L’été, où les élèves façonnent des cœurs", "cp1252"),
        ("Zażółć gęślą jaźń, proszę bardzo", "cp1250"),
        ("Příliš žluťoučký kůň úpěl ďábelské ódy", "cp1250"),
        ("Árvíztűrő tükörfúrógép", "cp1250"),
        ("İstanbul'da güneşli bir gün", "cp1254"),
        ("Быстрая коричневая лиса прыгает через ленивую собаку. " * 5, "cp1251"),
        ("Быстрая коричневая лиса прыгает через ленивую собаку. " * 5, "koi8_r"),
        ("Η γρήγορη καφέ αλεπού πηδάει πάνω από το σκυλί. " * 5, "cp1253"),
        ("plain words, and some more of them", "utf-16-le"),
    ],
)
def test_the_likely_encoding_is_taken(text: str, encoding: str) -> None:
    """Also for a short text: Western letters before odd ones, unless the letters say otherwise."""
    assert read("a.txt", text.encode(encoding)).text == text


def test_one_bad_byte_is_one_bad_character() -> None:
    """A text that is nearly UTF-8 is UTF-8, and says that it is not whole."""
    text = read("a.txt", "Die Bäume über den schönen Dächern".encode() + b" \xff.")
    assert text.text == "Die Bäume über den schönen Dächern \ufffd."
    assert text.problems == ["1 bytes are not UTF-8"]


def test_a_declared_encoding_counts() -> None:
    """In HTML, XML and source code."""
    body = "Příliš žluťoučký kůň"
    assert body in read("a.html", f'<meta charset="iso-8859-2"><p>{body}</p>'.encode("iso8859-2")).text
    assert body in read("a.xml", f'<?xml version="1.0" encoding="iso-8859-2"?><a>{body}</a>'.encode("iso8859-2")).text
    assert "Größe" in read("a.py", "# coding: cp850\n# Größe\n".encode("cp850")).text
    assert decode("Größe".encode("cp1252"), "no-such-encoding") == ("Größe", None)


# ------------------------------------------------------------------ other kinds


def test_slides_say_their_number() -> None:
    """With their tables and notes."""
    made = pptx.Presentation()
    for title in ("Welcome", "Dates"):
        slide = made.slides.add_slide(made.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = f"{title} in words"
    slide.notes_slide.notes_text_frame.text = "Say it slowly"
    table = slide.shapes.add_table(2, 2, 0, 0, 999999, 999999).table
    for n, words in enumerate(("Day", "Room", "Friday", "A1")):
        table.cell(n // 2, n % 2).text = words
    out = io.BytesIO()
    made.save(out)
    text = read("a.pptx", out.getvalue())
    assert where(text, "Dates in words") == {"slide": 2, "heading": "Dates"}
    assert where(text, "slowly")["slide"] == 2
    assert "Day: Friday | Room: A1" in text.text


def test_rows_of_a_sheet_say_their_cells() -> None:
    """With the names of their columns; dates and numbers as people write them."""
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "Rooms"
    for row in (["Day", "Room", "Seats"], ["Friday", "A1", 30], ["Monday", None, 12.5]):
        sheet.append(row)
    out = io.BytesIO()
    book.save(out)
    text = read("a.xlsx", out.getvalue())
    assert where(text, "Seats: 30") == {"sheet": "Rooms", "row": 2, "cells": "A2:C2", "heading": "Rooms"}
    assert "Day: Monday | Seats: 12.5" in text.text


ODT = """<office:document-content xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0"
 xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0"
 xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0">
 <office:body><office:text><text:tracked-changes><text:p>deleted</text:p></text:tracked-changes>
 <text:h text:outline-level="1">Dates</text:h><text:p>The exam<text:s text:c="2"/>is<text:note><text:note-body>
 <text:p>A note</text:p></text:note-body></text:note> on <text:span>Friday</text:span>.</text:p>
 <text:list><text:list-item><text:p>one</text:p></text:list-item></text:list>
 <table:table><table:table-header-rows><table:table-row><table:table-cell><text:p>Day</text:p></table:table-cell>
 </table:table-row></table:table-header-rows><table:table-row><table:table-cell><text:p>Monday</text:p></table:table-cell>
 </table:table-row></table:table></office:text></office:body></office:document-content>"""


def zipped(**parts: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for name, content in parts.items():
            made.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return out.getvalue()


def test_opendocument_texts_are_read() -> None:
    """Headings, notes, lists, tables; what was deleted is not."""
    text = read("a.odt", zipped(mimetype="application/vnd.oasis.opendocument.text", content_dot_xml=ODT))
    for words in ("The exam  is on Friday.", "A note", "- one", "Day: Monday"):
        assert text.text.count(words) == 1, text.text
    assert "deleted" not in text.text
    assert where(text, "Friday") == {"heading": "Dates"}


def test_books_are_read_in_their_order() -> None:
    """A missing chapter is named."""
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>'
        'Birds</dc:title></metadata><manifest><item id="b" href="b.xhtml"/><item id="a" href="a%20.xhtml"/>'
        '<item id="c" href="c.xhtml"/></manifest><spine><itemref idref="a"/><itemref idref="b"/>'
        '<itemref idref="c"/></spine></package>'
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("mimetype", "application/epub+zip")
        made.writestr("META-INF/container.xml", '<container><rootfile full-path="in/p.opf"/></container>')
        made.writestr("in/p.opf", package)
        made.writestr("in/a .xhtml", "<html><body><h1>One</h1><p>Heron</p></body></html>")
        made.writestr("in/b.xhtml", "<html><body><p>Crane</p></body></html>")
    text = read("a.epub", out.getvalue())
    assert text.text.index("Heron") < text.text.index("Crane")
    assert where(text, "Heron") == {"chapter": 1, "heading": "One"}
    assert text.metadata["title"] == "Birds"
    assert "chapter 3" in text.problems[0]


def test_messages_are_read_with_their_attachments() -> None:
    """One that cannot be read fails alone."""
    message = email.message.EmailMessage()
    message["Subject"], message["From"] = "The exäm", "ada@example.org"
    message.set_content(FRIDAY)
    message.add_alternative("<p>The same in HTML</p>", subtype="html")
    message.add_attachment(b"a,b\n1,2\n", maintype="text", subtype="csv", filename="t.csv")
    message.add_attachment(b"\x89PNG", maintype="image", subtype="png", filename="p.png")
    text = read("a.eml", message.as_bytes())
    assert text.text.startswith("From: ada@example.org\nSubject: The exäm")
    assert text.text.count(FRIDAY) == 1
    assert "a: 1\nb: 2" in text.text
    assert ("same in HTML" in text.text, "p.png" in text.problems[0]) == (False, True)


def test_every_text_of_a_message_is_read_once() -> None:
    """Texts one after the other, a forwarded message with its headers, and of alternatives one: HTML if it is alone."""
    forwarded = email.message.EmailMessage()
    forwarded["Subject"], forwarded["From"] = "The room", "bob@example.org"
    forwarded.set_content("It is in A1.")
    forwarded.add_attachment("Bring a pen.", filename="notes")
    message = email.message.EmailMessage()
    message["Subject"] = "Two things"
    message.set_content(FRIDAY)
    message.make_mixed()
    page = email.message.EmailMessage()
    page.set_content("<p>A <b>page</b></p>", subtype="html")
    footer = email.message.EmailMessage()
    footer.set_content("To unsubscribe, say so.")
    for part in (page, footer):
        message.attach(part)
    message.add_attachment(forwarded)
    text = read("a.eml", message.as_bytes())
    assert text.text.split("\n\n") == [
        "Subject: Two things",
        FRIDAY,
        "A page",
        "To unsubscribe, say so.",
        "From: bob@example.org\nSubject: The room",
        "It is in A1.",
        "Bring a pen.",
    ]
    assert (text.problems, text.metadata["title"]) == ([], "Two things")


def test_a_report_of_a_delivery_is_read() -> None:
    """Its fields are no text part."""
    text = read(
        "a.eml",
        "Subject: Undelivered\nContent-Type: multipart/report; boundary=b; report-type=delivery-status\n\n"
        "--b\nContent-Type: text/plain\n\nIt failed.\n--b\nContent-Type: message/delivery-status\n\n"
        "Reporting-MTA: dns; example.org\n\nAction: failed\nStatus: 5.7.1\n--b--\n",
    ).text
    assert text.endswith("It failed.\n\nReporting-MTA: dns; example.org\n\nAction: failed\nStatus: 5.7.1")
    broken = read("a.eml", f"Subject: x\nContent-Type: multipart/mixed\n\n--b\n\n{FRIDAY}\n--b--\n")
    assert (FRIDAY in broken.text, "damaged" in broken.problems[0]) == (True, True)


def test_notebooks_and_rich_text_are_read() -> None:
    """Cells in order; control words are not text."""
    cells = [
        {"cell_type": "markdown", "source": ["# Birds\n", "Herons"]},
        {"cell_type": "code", "source": "print(1)", "outputs": [{"output_type": "stream", "text": ["1\n"]}]},
    ]
    text = read("a.ipynb", json.dumps({"cells": cells, "nbformat": 4}))
    assert [line for line in text.text.split("\n") if line] == ["# Birds", "Herons", "print(1)", "1"]
    assert where(text, "print")["cell"] == 2
    assert read("a.rtf", rb"{\rtf1\ansi\b The exam\b0  is in M\'fcnchen.\par}").text == "The exam is in München."


def test_front_matter_is_metadata() -> None:
    """It is no text; what a document cannot say is left alone."""
    text = read(
        "a.md", "---\ntitle: Birds\ntags: [heron, crane]\ndate: 2026-05-01\n---\n# One\n\nText\n\n## Two\n\nMore\n"
    )
    assert text.metadata == {"title": "Birds", "tags": "heron, crane", "date": "2026-05-01"}
    assert "tags" not in text.text
    assert where(text, "More") == {"heading": "One > Two"}
    assert read("a.md", "---\nnot: [closed\n---\nText").text.startswith("---")


def test_sections_of_restructured_text_are_a_path() -> None:
    """By the order in which their underlines come, with an overline or without; the text is kept as it is."""
    text = "======\nCourse\n======\n\nIntro\n\nDates\n-----\n\nFriday\n\nRooms\n-----\n\nA1\n"
    made = read("a.rst", text)
    assert made.text == text
    assert where(made, "Friday") == {"heading": "Course > Dates"}
    assert where(made, "A1") == {"heading": "Course > Rooms"}


def test_json_says_the_path_of_its_values() -> None:
    """And each record of a list its number."""
    text = read("a.json", json.dumps([{"day": {"name": "Friday", "rooms": ["A1", "B2"]}, "seats": 30}, {"day": None}]))
    assert text.text == "day.name: Friday\nday.rooms: A1\nday.rooms: B2\nseats: 30"
    assert where(text, "Friday") == {"row": 1}


def test_a_bad_line_fails_alone() -> None:
    """It is named by its number."""
    text = read("a.jsonl", '{"a": 1}\n{oops\n{"a": 3}\n')
    assert text.text == "a: 1\n\na: 3"
    assert where(text, "a: 3") == {"row": 3}
    assert "line 2" in text.problems[0]


def test_tabs_separate_too() -> None:
    """A table in text says the row of each record."""
    text = read("a.tsv", "day\troom\nFriday\tA1\n")
    assert (text.text, where(text, "Friday")) == ("day: Friday\nroom: A1", {"row": 2})


def test_source_code_says_its_lines() -> None:
    """And is kept as it is."""
    code = "".join(f"def f{n}():\n    return {n}\n\n" for n in range(100))
    text = read("a.py", code)
    assert text.text == code
    assert [block.where["line"] for block in text.blocks][:2] == [1, 42]


def test_xml_says_what_its_fields_are() -> None:
    """Paragraphs are text, records have names."""
    text = read("a.xml", "<a><p>Some <b>bold</b> words</p><r><day>Friday</day><room>A1</room></r></a>").text
    assert text == "Some bold words\n\nday: Friday\nroom: A1"


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("a.html", "<p>Some <b>bold</b> and <i>other</i> words</p>"),
        ("a.html", "word <b>bold</b> "),
        ("a.html", "x" * 100),
        ("a.html", "<div>"),
        ("a.md", "word `code` *more* "),
        ("a.md", "# Heading\n\ntext\n\n"),
        ("a.rst", "Heading\n=======\n\ntext\n\n"),
        ("a.txt", "word " * 20),
        ("a.csv", '"a","b"\n'),
        ("a.py", "x = 1\n"),
    ],
)
def test_reading_takes_time_that_grows_with_the_document(name: str, unit: str) -> None:
    """Sixteen times the document takes about sixteen times as long, whatever it repeats."""

    def read_repeated(size: int) -> None:
        assert "the end" in read(name, unit * (size // len(unit)) + "\nthe end").text

    assert_grows_at_most(read_repeated, 1 << 14, 1 << 18, factor=64, least_s=0.02)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "unit", "size"),
    [
        ("a.html", "<p>Some <b>bold</b> and <i>other</i> words</p>", 26 << 20),
        ("a.html", "word ", 26 << 20),
        ("a.txt", "x", 5 << 20),
        ("a.csv", "1,Friday,A1\n", 16 << 20),
    ],
    ids=["HTML", "HTML on one line", "no space", "CSV"],
)
def test_a_large_document_is_read_and_split_within_its_time(name: str, unit: str, size: int) -> None:
    """In less than half of the time after which its reader would be ended."""
    data = (unit * (size // len(unit)) + "\nthe end").encode()
    since = time.process_time()
    chunks = sum(1 for _ in split(read(name, data), Splitting()))
    assert chunks > 1000
    assert time.process_time() - since < (_READ_TIMEOUT_S + _READ_TIMEOUT_S_PER_MB * (size >> 20)) / 2


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.txt", b"\x89PNG\r\n", "PNG"),
        ("a.docx", zipped(a_dot_txt="x"), "ZIP"),
        ("a.pdf", b"\x1f\x8b\x08", "gzip"),
        ("a.jsonl", b"{oops", "line 1"),
        ("a.ipynb", b"[]", "no cells"),
    ],
)
def test_what_is_something_else_says_what(name: str, data: bytes, why: str) -> None:
    """By its bytes."""
    with pytest.raises(NoText, match=why):
        read(name, data)


def test_every_kind_has_a_reader() -> None:
    """Each suffix leads to one."""
    for suffix in kinds.suffixes():
        kind = kinds.kind_of_name(f"a{suffix}")
        assert kind == "mail" or kind in kinds._READERS
