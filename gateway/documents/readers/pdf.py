"""PDF documents, by PDFium. Each page fails alone."""

import ctypes
import re
import unicodedata
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium

from gateway.documents.readers.text import NoText, TextBuilder

# Ligatures, and letters in the forms that they have within a word. Other characters are kept as they are.
_PRESENTATION_FORMS = re.compile("[\ufb00-\ufb4f\ufb50-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc]")
# PDFium marks a hyphen at the end of a line, which is no part of the word.
_SOFT_HYPHEN = re.compile("[\ufffe\x02\u00ad]\\s*\n?")
_SHOWN_PAGES = 20
_MAX_VALUE_BYTES = 1 << 16


def read_pdf(data: bytes, out: TextBuilder) -> None:
    """Add the text of a PDF, page after page, and the values of its form. Raises NoText if it cannot be opened."""
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise NoText("it is encrypted") from None
        raise NoText(f"it cannot be read: {error}") from None
    try:
        out.set("title", document.get_metadata_dict(skip_empty=True).get("Title"))
        out.set("author", document.get_metadata_dict(skip_empty=True).get("Author"))
        if document.get_formtype():
            document.init_forms()
        form = document.formenv
        headings = _outline(document)
        scanned: list[int] = []
        for index in range(len(document)):
            if index in headings:
                heading = headings[index]
            else:
                heading = headings[index] = headings.get(index - 1, "")
            try:
                _add_page(document, index, form, heading, scanned, out)
            except pypdfium2.PdfiumError as error:
                out.problem(f"page {index + 1} cannot be read: {error}")
        if scanned:
            shown = ", ".join(str(number) for number in scanned[:_SHOWN_PAGES])
            more = f" and {len(scanned) - _SHOWN_PAGES} more" if len(scanned) > _SHOWN_PAGES else ""
            out.problem(f"{len(scanned)} pages have images and no text, they may be scanned: {shown}{more}")
    finally:
        document.close()


def _add_page(
    document: pypdfium2.PdfDocument, index: int, form: Any, heading: str, scanned: list[int], out: TextBuilder
) -> None:
    page = document[index]
    try:
        text_page = page.get_textpage()
        text = _normalised(text_page.get_text_range())
        text_page.close()
        where: dict[str, Any] = {"page": index + 1, "heading": heading or None}
        out.add(text, **where)
        if form is not None:
            out.add("\n".join(_form_values(page, form)), **where)
        if not text.strip() and _has_images(page):
            scanned.append(index + 1)
    finally:
        page.close()


def _normalised(text: str) -> str:
    text = _SOFT_HYPHEN.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _PRESENTATION_FORMS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)


def _has_images(page: pypdfium2.PdfPage) -> bool:
    return next(iter(page.get_objects(filter=[pdfium.FPDF_PAGEOBJ_IMAGE], max_depth=2)), None) is not None


def _outline(document: pypdfium2.PdfDocument) -> dict[int, str]:
    """Return the path of headings at the beginning of each page that the outline names."""
    found: dict[int, str] = {}
    path: list[str] = []
    try:
        for item in document.get_toc():
            title = " ".join((item.get_title() or "").split())
            path = [*path[: item.level], title]
            dest = item.get_dest()
            index = dest.get_index() if dest is not None else None
            if index is not None and title:
                found.setdefault(index, " > ".join(path)[:500])
    except (pypdfium2.PdfiumError, ValueError):
        return found
    return found


def _form_values(page: pypdfium2.PdfPage, form: Any) -> list[str]:
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
