"""ZIP files with XML in them: what Word, PowerPoint, LibreOffice and e-books are made of."""

import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from urllib.parse import unquote

from lxml import etree

from gateway.documents.readers.text import NoText, TooMuchText

_MAX_UNZIPPED_BYTES = 512 << 20


class Archive:
    """The parts of a document that is a ZIP file. Names are as in the file's directory."""

    def __init__(self, data: bytes) -> None:
        """Raises NoText if `data` is no ZIP file, TooMuchText if it unpacks to too much."""
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except zipfile.BadZipFile as error:
            raise NoText(f"it cannot be read: {error}") from None
        entries = self._zip.infolist()
        if sum(entry.file_size for entry in entries) > _MAX_UNZIPPED_BYTES:
            raise TooMuchText
        if any(entry.flag_bits & 1 for entry in entries):
            raise NoText("it is encrypted")
        self.names = {entry.filename for entry in entries}

    def read(self, name: str) -> bytes | None:
        """Return a part, or None if there is none. Raises NoText if it is damaged."""
        if name not in self.names:
            return None
        try:
            return self._zip.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
            raise NoText(f"its part {name} is damaged: {error}") from None

    def xml(self, name: str) -> etree._Element | None:
        """Return the root of a part in XML, or None if there is none or it cannot be parsed."""
        data = self.read(name)
        return None if data is None else parse_xml(data)

    def relationships(self, part: str) -> dict[str, tuple[str, str]]:
        """Return the type's last word and the target's name of each relationship of an Office part, by its id."""
        folder, _, file = part.rpartition("/")
        root = self.xml(posixpath.join(folder, "_rels", f"{file}.rels"))
        found = {}
        for each in () if root is None else root:
            if isinstance(each.tag, str) and each.get("TargetMode") != "External":
                target = unquote(each.get("Target", ""))
                path = target[1:] if target.startswith("/") else posixpath.normpath(posixpath.join(folder, target))
                found[each.get("Id", "")] = (each.get("Type", "").rpartition("/")[2], path)
        return found


def parse_xml(data: bytes) -> etree._Element | None:
    """Return the root of an XML document, repaired where it is not well-formed. Entities are not expanded."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True, recover=True)
    try:
        return etree.fromstring(data, parser)
    except etree.XMLSyntaxError:
        return None


def local(element: etree._Element) -> str:
    """Return an element's name without its namespace: strict and transitional Office files differ only in that."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def attribute(element: etree._Element | None, name: str) -> str | None:
    """Return the attribute of that name in any namespace."""
    if element is not None:
        for key, value in element.attrib.items():
            if str(key).rpartition("}")[2] == name:
                return str(value)
    return None


def child(element: etree._Element | None, *path: str) -> etree._Element | None:
    """Return the first descendant at a path of names without namespaces, or None."""
    for name in path:
        element = next((each for each in element if local(each) == name), None) if element is not None else None
    return element


def find_all(element: etree._Element, name: str) -> Iterator[etree._Element]:
    """Yield the descendants of that name, in order."""
    yield from element.iter(f"{{*}}{name}")
