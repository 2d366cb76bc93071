"""E-mail messages with their attachments, and Rich Text."""

import email
import email.policy
from collections.abc import Callable
from email.message import EmailMessage

from striprtf.striprtf import rtf_to_text

from gateway.documents.readers.encoding import decode
from gateway.documents.readers.html import add_html
from gateway.documents.readers.text import NoText, TextBuilder, clean

_HEADERS = ("From", "To", "Cc", "Date", "Subject")
_MAX_PARTS = 1000


def read_mail(data: bytes, out: TextBuilder, read_attachment: Callable[[bytes, str, TextBuilder], None]) -> None:
    """Add a message: its headers, its text and its attachments. An attachment that cannot be read fails alone."""
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    headers = ((name, _header(message, name)) for name in _HEADERS)
    lines = [f"{name}: {value}" for name, value in headers if value]
    if not lines:
        raise NoText("it is not an e-mail message")
    out.set("title", _header(message, "Subject"))
    out.add("\n".join(lines))
    body = message.get_body(("plain", "html"))
    for number, part in enumerate(message.walk()):
        if number >= _MAX_PARTS:
            out.problem("it has too many parts")
            return
        if part.is_multipart() or (
            part is not body and part.get_content_maintype() == "text" and not part.get_filename()
        ):
            continue
        payload = part.get_payload(decode=True)
        if not isinstance(payload, bytes):
            continue
        name = part.get_filename()
        if part is body:
            text, problem = decode(payload, part.get_content_charset())
            if problem:
                out.problem(problem)
            if part.get_content_subtype() == "html":
                add_html(text, out)
            else:
                out.add(clean(text))
        elif name:
            try:
                read_attachment(payload, name, out)
            except NoText as error:
                out.problem(f"attachment {name!r}: {error}")


def _header(message: EmailMessage, name: str) -> str:
    try:
        return clean(" ".join(str(message.get(name) or "").split()))
    except (ValueError, IndexError, AttributeError, TypeError):  # the parser of headers raises these at broken ones
        return ""


def read_rtf(data: bytes, out: TextBuilder) -> None:
    """Add the text of a Rich Text document."""
    text = rtf_to_text(data.decode("cp1252", "replace"), errors="replace")  # type: ignore[no-untyped-call]
    out.add(clean(text))
