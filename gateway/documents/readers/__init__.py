"""Readers: the text of documents of every kind. They run in the worker, because what they open may be hostile.

Vocabulary: a *kind* is what a document is, told by its bytes first and its name second (`kinds`). A *reader* adds the
*blocks* of one kind to a `TextBuilder` (`text`). A block says where it was found: its page, heading, row, slide, cells.
Bytes become characters in `encoding`, scanned pages in `ocr`.

    bytes → kind (`kinds`) → reader (`pdf`, `docx`, `html`, …) → blocks (`text`) → chunks (`gateway.documents.split`)

A part that cannot be read, such as a page or a row, becomes a *problem* of the text; the rest is read. A document
without any text raises `NoText`.
"""
