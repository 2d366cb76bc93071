"""What kind of document some bytes are, and the reader of each kind."""

import re
from collections.abc import Callable
from pathlib import PurePosixPath

from gateway.documents.readers.archive import Archive
from gateway.documents.readers.docx import read_docx
from gateway.documents.readers.epub import read_epub
from gateway.documents.readers.html import read_html
from gateway.documents.readers.mail import read_mail, read_rtf
from gateway.documents.readers.ocr import Ocr
from gateway.documents.readers.opendocument import read_opendocument
from gateway.documents.readers.pdf import read_pdf
from gateway.documents.readers.plain import read_code, read_markdown, read_plain, read_rst
from gateway.documents.readers.pptx import read_pptx
from gateway.documents.readers.records import (
    read_csv,
    read_json,
    read_json_lines,
    read_notebook,
    read_spreadsheet,
    read_xml,
)
from gateway.documents.readers.text import NoText, Text, TextBuilder

Reader = Callable[[bytes, TextBuilder], None]

_SUFFIXES = {
    "plain": ".txt .text .log .tex .org .adoc .asciidoc .srt .vtt .textile .wiki .bib",
    "markdown": ".md .markdown .mdx",
    "rst": ".rst",
    "html": ".html .htm .xhtml .shtml",
    "json": ".json .geojson",
    "json_lines": ".jsonl .ndjson",
    "notebook": ".ipynb",
    "csv": ".csv .tsv .tab",
    "xml": ".xml .rss .atom .dbk .svg",
    "pdf": ".pdf",
    "docx": ".docx .docm .dotx",
    "pptx": ".pptx .pptm .ppsx",
    "spreadsheet": ".xlsx .xlsm .xlsb .xls .ods",
    "opendocument": ".odt .ott .odp",
    "epub": ".epub",
    "rtf": ".rtf",
    "mail": ".eml",
    "code": ".py .pyi .js .mjs .cjs .jsx .ts .tsx .java .kt .kts .scala .c .h .cc .cpp .cxx .hpp .hh .cs .go .rs .rb "
    ".php .pl .pm .sh .bash .zsh .fish .ps1 .sql .css .scss .less .yaml .yml .toml .ini .cfg .conf .properties .swift "
    ".m .r .jl .lua .ex .exs .erl .hs .clj .dart .vue .svelte .proto .graphql .tf .cmake .gradle .groovy .el .lisp",
}
_KIND_OF_SUFFIX = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
_NAMES = {"readme": "plain", "license": "plain", "copying": "plain", "changelog": "plain", "authors": "plain",
          "news": "plain", "todo": "plain", "makefile": "code", "dockerfile": "code"}  # fmt: skip

_READERS: dict[str, Reader] = {
    "plain": read_plain,
    "markdown": read_markdown,
    "rst": read_rst,
    "html": read_html,
    "json": read_json,
    "json_lines": read_json_lines,
    "notebook": read_notebook,
    "csv": read_csv,
    "xml": read_xml,
    "pdf": read_pdf,
    "docx": read_docx,
    "pptx": read_pptx,
    "spreadsheet": read_spreadsheet,
    "opendocument": read_opendocument,
    "epub": read_epub,
    "rtf": read_rtf,
    "code": read_code,
}
# What these kinds begin with; a document that only has the suffix is not of the kind.
_BINARY_KINDS = {"pdf", "docx", "pptx", "spreadsheet", "opendocument", "epub"}
_OTHER_FORMATS = (
    (b"\x89PNG", "a PNG image"), (b"\xff\xd8\xff", "a JPEG image"), (b"GIF8", "a GIF image"), (b"\x1f\x8b", "gzip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"), (b"Rar!", "a RAR archive"), (b"\x7fELF", "a program"), (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"), (b"MZ\x90", "a program"), (b"ID3", "audio"), (b"OggS", "audio or video"),
    (b"RIFF", "audio, video or an image"), (b"SQLite format 3", "a database"), (b"\x28\xb5\x2f\xfd", "zstd"),
)  # fmt: skip
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_HTML = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.{0,500}?-->\s*)*<(?:!doctype\s+html|html)[\s>]", re.IGNORECASE | re.DOTALL
)
_XML = re.compile(rb"\s*<\?xml\s")
_SNIFFED_BYTES = 4096
_MAX_DEPTH = 3


def suffixes() -> list[str]:
    """Return the suffixes of names that are read."""
    return sorted(_KIND_OF_SUFFIX)


def kind_of_name(name: str) -> str | None:
    """Return the kind that a name stands for, or None."""
    path = PurePosixPath(name.rpartition("/")[2].lower())
    return _KIND_OF_SUFFIX.get(path.suffix) or (_NAMES.get(path.name) if not path.suffix else None)


def kind_of(data: bytes, name: str) -> str:
    """Return the kind of a document, by its bytes first and its name second. Raises NoText if it is none we read."""
    named, head = kind_of_name(name), data[:_SNIFFED_BYTES]
    if b"%PDF-" in head[:1024] and (named in (None, "pdf") or head.lstrip().startswith(b"%PDF-")):
        return "pdf"
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(data)
    if head.startswith(_OLE):
        if b"W\x00o\x00r\x00k\x00b\x00o\x00o\x00k\x00" in data or b"B\x00o\x00o\x00k\x00" in data:
            return "spreadsheet"
        raise NoText("it is encrypted, or of an older format such as .doc: save it in a newer one")
    if head.startswith(b"{\\rtf"):
        return "rtf"
    for magic, title in _OTHER_FORMATS:
        if head.startswith(magic):
            raise NoText(f"no text can be read from it: it is {title}")
    if named is None:
        if _HTML.match(head):
            return "html"
        if _XML.match(head):
            return "xml"
        raise NoText(f"no text can be read from {PurePosixPath(name).suffix or 'a name without an ending'!r}")
    if named in ("plain", "xml", *_BINARY_KINDS) and _HTML.match(head):
        return "html"
    return named


def _kind_of_zip(data: bytes) -> str:
    archive = Archive(data)
    names = archive.names
    if "[Content_Types].xml" in names:
        for folder, kind in (("word/", "docx"), ("ppt/", "pptx"), ("xl/", "spreadsheet")):
            if any(name.startswith(folder) for name in names):
                return kind
    if "mimetype" in names:
        media_type = (archive.read("mimetype") or b"").strip()
        if media_type == b"application/epub+zip":
            return "epub"
        if media_type.startswith(b"application/vnd.oasis.opendocument.spreadsheet"):
            return "spreadsheet"
        if media_type.startswith(b"application/vnd.oasis.opendocument."):
            return "opendocument"
    if "META-INF/container.xml" in names:
        return "epub"
    raise NoText("no text can be read from it: it is a ZIP archive")


def read(data: bytes, name: str, ocr: Ocr | None = None) -> Text:
    """Return the text of a document. Raises NoText if it has none; MemoryError is not caught.

    `ocr` recognises scanned pages. Without it they are a problem of the text.
    """
    out = TextBuilder(ocr)
    _read_into(data, name, out, 0)
    return out.build()


def _read_into(data: bytes, name: str, out: TextBuilder, depth: int) -> None:
    try:
        kind = kind_of(data, name)
        if kind == "mail":
            if depth >= _MAX_DEPTH:
                raise NoText("messages are attached to each other too deeply")
            read_mail(data, out, lambda part, called, into: _read_into(part, called, into, depth + 1))
        else:
            _READERS[kind](data, out)
    except (NoText, MemoryError):
        raise
    except RecursionError:
        raise NoText("it is nested too deeply") from None
    except Exception as error:  # these libraries raise anything at broken documents
        raise NoText(f"it cannot be read: {type(error).__name__}: {str(error)[:300]}") from error
