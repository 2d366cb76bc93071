"""E-books in EPUB: their chapters in reading order."""

import posixpath
from urllib.parse import unquote

from gateway.documents.readers.archive import Archive, child, find_all
from gateway.documents.readers.encoding import decode
from gateway.documents.readers.html import add_html
from gateway.documents.readers.text import NoText, TextBuilder


def read_epub(data: bytes, out: TextBuilder) -> None:
    """Add the text of an e-book, chapter after chapter. Raises NoText if it is none."""
    archive = Archive(data)
    container = archive.xml("META-INF/container.xml")
    rootfile = next(find_all(container, "rootfile"), None) if container is not None else None
    path = str(rootfile.get("full-path")) if rootfile is not None else ""
    package = archive.xml(path)
    if package is None:
        raise NoText("it cannot be read: it has no package document")
    folder = posixpath.dirname(path)
    items = {item.get("id"): item.get("href", "") for item in find_all(package, "item")}
    chapters = [items.get(item.get("idref"), "") for item in find_all(package, "itemref")]
    for number, href in enumerate(chapters, 1):
        name = posixpath.normpath(posixpath.join(folder, unquote(href)))
        try:
            content = archive.read(name)
            if content is None:
                raise NoText("it is missing")
            text, _ = decode(content)
            add_html(text, out, chapter=number)
        except NoText as error:
            out.problem(f"chapter {number} ({href}) cannot be read: {error}")
    for name, key in (("title", "title"), ("creator", "author"), ("language", "language")):
        found = child(child(package, "metadata"), name)
        out.set(key, found.text if found is not None else None)
