"""Text from every kind of document, made by other libraries; and from what only pretends to be one."""

import io
import json
import os
import zipfile

import docx
import pypdf
import pytest
from fpdf import FPDF

from gateway.documents.readers import kinds
from gateway.documents.readers.text import NoText

WORDS = "The heron stands in the reeds"


def pdf() -> bytes:
    made = FPDF()
    made.set_font("helvetica", size=12)
    for n in range(3):
        made.add_page()
        made.multi_cell(0, 8, f"Page {n}. {WORDS}.")
    return bytes(made.output())


def encrypted_pdf() -> bytes:
    writer, out = pypdf.PdfWriter(io.BytesIO(pdf())), io.BytesIO()
    writer.encrypt("secret", algorithm="AES-256")
    writer.write(out)
    return out.getvalue()


def word() -> bytes:
    made, out = docx.Document(), io.BytesIO()
    made.add_heading("Birds")
    made.add_paragraph(WORDS)
    made.add_table(1, 2).rows[0].cells[1].text = "in a table"
    made.save(out)
    return out.getvalue()


def bomb() -> bytes:
    """A .docx that unpacks to more than anybody has."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(word())) as good, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bad:
        for entry in good.infolist():
            bad.writestr(entry, good.read(entry))
        bad.writestr("word/filler.xml", b"\0" * (600 << 20), compresslevel=1)
    return out.getvalue()


def laughs() -> bytes:
    """A .docx whose XML names an entity of entities of entities."""
    entities = '<!DOCTYPE w [<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9)
    )
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(word())) as good, zipfile.ZipFile(out, "w") as bad:
        for entry in good.infolist():
            data = good.read(entry)
            if entry.filename == "word/document.xml":
                text = data.decode().replace("<w:document", entities + "]><w:document", 1).replace(WORDS, "&j;")
                data = text.encode()
            bad.writestr(entry, data)
    return out.getvalue()


def read(name: str, data: bytes) -> str:
    return kinds.read(data, name).text


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", WORDS.encode()),
        ("a.TXT", WORDS.encode("utf-16")),
        ("a.md", b"\xef\xbb\xbf# Birds\n\n" + WORDS.encode()),
        ("a.html", f"<html><script>no()</script><style>no</style><p>{WORDS}</p>".encode()),
        ("a.json", json.dumps({"birds": [{"text": WORDS, "n": 1}]}).encode()),
        ("a.jsonl", (json.dumps({"t": WORDS}) + "\n\n" + json.dumps(["x"])).encode()),
        ("a.csv", f"name;text\nheron;{WORDS}\n".encode()),
        ("a.pdf", pdf()),
        ("a.docx", word()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_words_are_found(name: str, data: bytes) -> None:
    """In every kind that we say we read, and nothing of scripts."""
    text = read(name, data)
    assert WORDS in " ".join(text.split())
    assert "no()" not in text


def test_encodings_are_told() -> None:
    """Old encodings are recognised by what their bytes say in the language."""
    text = "Die Größe der Bäume überrascht, so schön grün wächst das Gemüse auf den Äckern von Köln. " * 5
    assert read("a.txt", text.encode("cp1252")) == text
    html = '<html><head><meta charset="iso-8859-1"></head><body>Größe</body></html>'
    assert read("a.html", html.encode("latin-1")) == "Größe"


@pytest.mark.parametrize("encoding", ["shift_jis", "gb18030", "euc-jp"])
@pytest.mark.parametrize("pad", ["", "a"])
def test_a_long_text_in_an_old_encoding_is_told_too(encoding: str, pad: str) -> None:
    """Wherever the beginning that is looked at ends: also amid a character."""
    text = pad + "日本語の文章です。鷺は葦の中に立っている、夏の朝に。\n" * 9000
    assert read("a.txt", text.encode(encoding)) == text


def test_lines_of_json_end_where_json_says() -> None:
    """What Unicode also calls the end of a line may be in a string as it is."""
    line = json.dumps({"a": "one\u2028two\x85three"}, ensure_ascii=False)
    assert read("a.jsonl", f"{line}\r\n{line}\n".encode()).count("one\u2028two\x85three") == 2


def test_half_a_character_does_not_cost_the_document() -> None:
    """JSON that was cut within an emoji is read, without it."""
    assert read("a.json", b'{"a": "x\\ud83d"}') == "a: x?"


def test_nothing_of_a_csv_is_lost() -> None:
    """Quotes that come late, cells beyond the header, and lines that end as on old Macs."""
    late = "a,b\n" + "".join(f'{n},"word {n}"\n' for n in range(2000)) + '7,"he said ""hi, there"" twice, really"\n'
    assert read("a.csv", late.encode()).endswith('b: he said "hi, there" twice, really')
    assert read("a.csv", b"a,b\n1,2,three\n") == "a: 1\nb: 2\nthree"
    assert read("a.csv", b"a,b\r1,2\r") == "a: 1\nb: 2"
    assert read("a.csv", b"a,b\n1," + b"x" * 300_000) == "a: 1\nb: " + "x" * 300_000


def test_tables_are_read() -> None:
    """Also those of Word, and each row of a CSV with the names of its columns."""
    assert "in a table" in read("a.docx", word())
    assert read("a.csv", b"a,b\n1,2\n3,4\n") == "a: 1\nb: 2\n\na: 3\nb: 4"


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.exe", b"x", "no text can be read from"),
        ("a", b"x", "no text can be read from"),
        ("a.txt", b" \n", "no text"),
        ("a.txt", os.urandom(5000) + b"\0\0", ""),
        ("a.pdf", b"%PDF-1.4 broken", "cannot be read"),
        ("a.pdf", pdf()[:600], ""),
        ("a.pdf", b"", ""),
        ("a.pdf", encrypted_pdf(), "encrypted"),
        ("a.docx", b"PK\x03\x04broken", "cannot be read"),
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 512, "encrypted"),
        ("a.json", b"{", "cannot be read"),
        ("a.json", b"[" * 1_000_000, ""),
        ("a.json", b"[" * 50_000 + b"]" * 50_000, "nested"),
        ("a.jsonl", b"{}\n{", "cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_broken_says_why(name: str, data: bytes, why: str) -> None:
    """As NoText with a reason, whatever the library raises."""
    with pytest.raises(NoText, match=why or "."):
        read(name, data)


def test_what_unpacks_to_too_much_says_so() -> None:
    """Without being unpacked."""
    with pytest.raises(NoText, match="unpacks to too much"):
        read("a.docx", bomb())


def test_entities_do_not_multiply() -> None:
    """A billion laughs are refused, or read as nothing: never expanded."""
    try:
        text = read("a.docx", laughs())
    except NoText:
        return
    assert len(text) < 10_000
