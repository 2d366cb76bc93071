"""PDF documents, by PDFium. Each page fails alone."""

import contextlib
import ctypes
import math
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pypdfium2
import pypdfium2.raw as pdfium

from gateway.documents.readers.ocr import OcrFailed
from gateway.documents.readers.text import NoText, TextBuilder, clean

# Ligatures, and letters in the forms that they have within a word. Other characters are kept as they are.
_PRESENTATION_FORMS = re.compile("[\ufb00-\ufb4f\ufb50-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc]")
# PDFium marks a hyphen at the end of a line, which is no part of the word.
_SOFT_HYPHEN = re.compile("[\ufffe\x02\u00ad]\\s*\n?")
_SHOWN_PAGES = 20
_OCR_DOTS_PER_INCH = 300
_POINTS_PER_INCH = 72
_OCR_MAX_PIXELS = 25_000_000
_MAX_VALUE_BYTES = 1 << 16
_WORD = re.compile(r"[^\W_]+")
# What may be before a heading in its line: its number.
_MAX_NUMBER_CHARACTERS = 12
_MAX_HEADINGS_OF_PAGE = 200
# Where the views that an outline leads to have their upper edge.
_TOP_IN_VIEW = {pdfium.PDFDEST_VIEW_XYZ: 1, pdfium.PDFDEST_VIEW_FITH: 0, pdfium.PDFDEST_VIEW_FITBH: 0}
_COMPRESSED = re.compile(rb"/FlateDecode[^<>\]]{0,200}>>\s*stream\r?\n")
_CHECKED_BYTES = 1 << 16


def read_pdf(data: bytes, out: TextBuilder) -> None:
    """Add the text of a PDF, page after page, and the values of its form. Raises NoText if it cannot be opened.

    A page that has images and no text is recognised if `out` has an OCR, and named as a problem otherwise.
    """
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise NoText("it is encrypted") from None
        raise NoText(f"it cannot be read: {error}") from None
    open_page = None
    try:
        described = document.get_metadata_dict(skip_empty=True)
        out.set("title", described.get("Title"))
        out.set("author", described.get("Author"))
        if document.get_formtype():
            document.init_forms()
        outline = _outline(document)
        without_text = _PagesWithoutText([], [])
        for index in range(len(document)):
            try:
                page = _loaded(document, index)
            except pypdfium2.PdfiumError as error:
                out.problem(f"page {index + 1} cannot be read: {error}")
                for lost in outline.get(index, []):
                    out.start_section(lost.title, lost.level)
                continue
            # PDFium drops a font with the last open page that uses it. So the next page is loaded before one is closed.
            _close(document, open_page)
            open_page = page
            try:
                _add_page(document, page, index, outline.get(index, []), without_text, out)
            except pypdfium2.PdfiumError as error:
                out.problem(f"page {index + 1} cannot be read: {error}")
        if scanned := without_text.scanned:
            out.problem(f"{len(scanned)} pages have images and no text, they may be scanned: {_listed(scanned)}")
        if (empty := without_text.empty) and _is_damaged(data):
            out.problem(f"the file is damaged, and {len(empty)} pages are empty: {_listed(empty)}")
    finally:
        _close(document, open_page)
        document.close()


class _Heading(NamedTuple):
    """An entry of the outline. `top` is how far above the page's bottom it is, in points; None if that is not said."""

    level: int
    title: str
    top: float | None


class _PagesWithoutText(NamedTuple):
    """Numbers of pages: those with images, and those with nothing at all."""

    scanned: list[int]
    empty: list[int]


def _listed(numbers: list[int]) -> str:
    more = f" and {len(numbers) - _SHOWN_PAGES} more" if len(numbers) > _SHOWN_PAGES else ""
    return ", ".join(map(str, numbers[:_SHOWN_PAGES])) + more


def _is_damaged(data: bytes) -> bool:
    """Return whether a compressed stream cannot be decompressed. PDFium reports no error and leaves the page empty."""
    if b"/Encrypt" in data:
        return False
    for match in _COMPRESSED.finditer(data):
        try:
            zlib.decompressobj().decompress(data[match.end() : match.end() + _CHECKED_BYTES], _CHECKED_BYTES)
        except zlib.error:
            return True
    return False


# Pages and their text by PDFium's own functions: the objects that pypdfium2 wraps round them take a tenth of the time.
def _loaded(document: pypdfium2.PdfDocument, index: int) -> Any:
    page = pdfium.FPDF_LoadPage(document, index)
    if not page:
        raise pypdfium2.PdfiumError("it cannot be loaded")
    if document.formenv is not None:
        pdfium.FORM_OnAfterLoadPage(page, document.formenv)
    return page


def _close(document: pypdfium2.PdfDocument, page: Any) -> None:
    if page is None:
        return
    if document.formenv is not None:
        pdfium.FORM_OnBeforeClosePage(page, document.formenv)
    pdfium.FPDF_ClosePage(page)


@contextlib.contextmanager
def _text_page(page: Any) -> Iterator[Any]:
    text_page = pdfium.FPDFText_LoadPage(page)
    if not text_page:
        raise pypdfium2.PdfiumError("its text cannot be loaded")
    try:
        yield text_page
    finally:
        pdfium.FPDFText_ClosePage(text_page)


def _text(text_page: Any) -> str:
    first, last = 0, pdfium.FPDFText_CountChars(text_page) - 1
    # PDFium returns nothing of a range whose first or last character is no text (crbug.com/pdfium/2079).
    while first <= last and pdfium.FPDFText_GetTextIndexFromCharIndex(text_page, first) == -1:
        first += 1
    while first <= last and pdfium.FPDFText_GetTextIndexFromCharIndex(text_page, last) == -1:
        last -= 1
    if first > last:
        return ""
    begin, end = (pdfium.FPDFText_GetTextIndexFromCharIndex(text_page, each) for each in (first, last))
    buffer = (ctypes.c_ushort * (end - begin + 2))()
    size = pdfium.FPDFText_GetText(text_page, first, last - first + 1, buffer)
    return bytes(buffer)[: 2 * (size - 1)].decode("utf-16-le", "ignore")


def _characters_above(text_page: Any, page: Any, heading: _Heading) -> int:
    if heading.top is None:
        return 0
    width, height = pdfium.FPDF_GetPageWidthF(page), pdfium.FPDF_GetPageHeightF(page)
    return int(pdfium.FPDFText_GetBoundedText(text_page, 0, height, width, heading.top, None, 0))


def _add_page(
    document: pypdfium2.PdfDocument,
    page: Any,
    index: int,
    headings: list[_Heading],
    without_text: _PagesWithoutText,
    out: TextBuilder,
) -> None:
    with _text_page(page) as text_page:
        text = _normalised(_text(text_page))
        places = _places(headings, text, lambda heading: _characters_above(text_page, page, heading))
    where: dict[str, Any] = {"page": index + 1}
    added = 0
    for at, heading in places:
        out.add(text[added:at], **where)
        out.start_section(heading.title, heading.level)
        added = at
    out.add(text[added:], **where)
    if document.formenv is not None:
        out.add("\n".join(_form_values(page, document.formenv)), **where)
    if not text.strip():
        if pdfium.FPDFPage_CountObjects(page) == 0:
            without_text.empty.append(index + 1)
        else:
            _add_scanned(document, index, where, without_text.scanned, out)


def _add_scanned(
    document: pypdfium2.PdfDocument, index: int, where: dict[str, Any], scanned: list[int], out: TextBuilder
) -> None:
    """Add what OCR finds on a page, if it has images. Without OCR, add its number to `scanned`."""
    page = document[index]
    try:
        if not _has_images(page):
            return
        if out.ocr is None:
            scanned.append(index + 1)
        else:
            out.add(clean(out.ocr.text(_image(page))), ocr=True, **where)
    except OcrFailed as error:
        out.problem(f"page {index + 1} has images and no text, and OCR failed: {error}")
    finally:
        page.close()


def _image(page: pypdfium2.PdfPage) -> bytes:
    """Return a page as a grey image in PNM format."""
    width, height = page.get_size()
    scale = min(_OCR_DOTS_PER_INCH / _POINTS_PER_INCH, math.sqrt(_OCR_MAX_PIXELS / (width * height)))
    bitmap = page.render(scale=scale, grayscale=True)
    try:
        pixels = bytes(bitmap.buffer)
        rows = (pixels[at : at + bitmap.width] for at in range(0, bitmap.stride * bitmap.height, bitmap.stride))
        return b"P5 %d %d 255\n" % (bitmap.width, bitmap.height) + b"".join(rows)
    finally:
        bitmap.close()


def _normalised(text: str) -> str:
    text = _SOFT_HYPHEN.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _PRESENTATION_FORMS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)


def _has_images(page: pypdfium2.PdfPage) -> bool:
    return next(iter(page.get_objects(filter=[pdfium.FPDF_PAGEOBJ_IMAGE], max_depth=2)), None) is not None


def _outline(document: pypdfium2.PdfDocument) -> dict[int, list[_Heading]]:
    """Return the headings on each page that the outline names."""
    found: dict[int, list[_Heading]] = {}
    try:
        for item in document.get_toc():
            title = _normalised(" ".join((item.get_title() or "").split()))
            dest = item.get_dest()
            index = dest.get_index() if dest is not None else None
            if dest is not None and index is not None and title and len(found.get(index, [])) < _MAX_HEADINGS_OF_PAGE:
                mode, view = dest.get_view()
                at = _TOP_IN_VIEW.get(mode)
                top = view[at] if at is not None and at < len(view) else None
                found.setdefault(index, []).append(_Heading(item.level + 1, title, top))
    except (pypdfium2.PdfiumError, ValueError):
        return found
    return found


def _places(
    headings: list[_Heading], text: str, characters_above: Callable[[_Heading], int]
) -> list[tuple[int, _Heading]]:
    """Return where each heading begins in the text of its page, in order.

    That is where its words begin a line, after a number at most. If that is nowhere, or in several places because a
    running head has the same words, it is the line nearest to where the heading is on the page.
    """
    lowered = text.lower() if headings else ""
    places = []
    for heading in headings:
        found = _lines_with(heading.title.lower(), lowered)
        if len(found) == 1:
            places.append((found[0], heading))
        else:
            expected = characters_above(heading)
            line = text.rfind("\n", 0, expected) + 1
            places.append((min(found, key=lambda at: abs(at - expected), default=line), heading))
    return sorted(places, key=lambda place: place[0])


def _lines_with(title: str, text: str) -> list[int]:
    """Return where the lines begin that begin with a title, or else with its words and any other signs between them."""
    # Compiling a pattern for each title takes longer than to search for it.
    found = _lines_at(text, _occurrences(title, text))
    if not found and (words := _WORD.findall(title)):
        found = _lines_at(text, (match.start() for match in re.finditer(r"\W{1,8}".join(words), text)))
    return found


def _occurrences(part: str, text: str) -> Iterator[int]:
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


def _lines_at(text: str, places: Iterable[int]) -> list[int]:
    lines = []
    for at in places:
        first = max(0, at - _MAX_NUMBER_CHARACTERS - 1)
        line = text.rfind("\n", first, at) + 1
        if line or first == 0:
            lines.append(line)
    return lines


def _form_values(page: Any, form: Any) -> list[str]:
    """Return `name: value` of each field of a form that has a value. Values are no part of a page's text."""
    lines = []
    for index in range(pdfium.FPDFPage_GetAnnotCount(page)):
        annotation = pdfium.FPDFPage_GetAnnot(page, index)
        if not annotation:
            continue
        try:
            if pdfium.FPDFAnnot_GetSubtype(annotation) != pdfium.FPDF_ANNOT_WIDGET:
                continue
            kind = pdfium.FPDFAnnot_GetFormFieldType(form, annotation)
            value = _string(pdfium.FPDFAnnot_GetFormFieldValue, form, annotation)
            if kind in (pdfium.FPDF_FORMFIELD_CHECKBOX, pdfium.FPDF_FORMFIELD_RADIOBUTTON):
                if not pdfium.FPDFAnnot_IsChecked(form, annotation):
                    continue
                value = _string(pdfium.FPDFAnnot_GetFormFieldExportValue, form, annotation) or "yes"
            elif kind == pdfium.FPDF_FORMFIELD_PUSHBUTTON:
                continue
            name = _string(pdfium.FPDFAnnot_GetFormFieldAlternateName, form, annotation) or _string(
                pdfium.FPDFAnnot_GetFormFieldName, form, annotation
            )
            if value.strip():
                lines.append(f"{name}: {value}" if name else value)
        finally:
            pdfium.FPDFPage_CloseAnnot(annotation)
    return lines


def _string(function: Any, form: Any, annotation: Any) -> str:
    """Return what a function of PDFium writes as UTF-16 into a buffer."""
    size = min(function(form, annotation, None, 0), _MAX_VALUE_BYTES)
    if size <= 2:
        return ""
    buffer = ctypes.create_string_buffer(size)
    function(form, annotation, ctypes.cast(buffer, ctypes.POINTER(pdfium.FPDF_WCHAR)), size)
    return buffer.raw[: size - 2].decode("utf-16-le", "replace")
