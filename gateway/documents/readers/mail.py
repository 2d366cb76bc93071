"""E-mail messages with their attachments, and Rich Text."""

import email
import email.policy
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from typing import Any

from striprtf.striprtf import rtf_to_text

from gateway.documents.readers.encoding import decode
from gateway.documents.readers.html import add_html
from gateway.documents.readers.text import NoText, TextBuilder, clean

_HEADERS = ("From", "To", "Cc", "Date", "Subject")
_MAX_PARTS = 1000


ReadAttachment = Callable[[bytes, str, TextBuilder], None]


def read_mail(data: bytes, out: TextBuilder, read_attachment: ReadAttachment) -> None:
    """Add a message: its headers, its texts, its attachments and the messages in it.

    Of alternatives, the plain text is added, or else HTML. An attachment that cannot be read fails alone.
    """
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    if not message.keys():
        raise NoText("it is not an e-mail message")
    out.set("title", _header(message, "Subject"))
    out.add(_headers(message))
    if defects := sorted({type(defect).__name__ for part in message.walk() for defect in part.defects}):
        out.problem(f"the message is damaged: {', '.join(defects)}")
    for number, part in enumerate(_parts(message)):
        if number >= _MAX_PARTS:
            out.problem("it has too many parts")
            return
        if not part.is_multipart():
            _add_part(part, out, read_attachment)
        elif part.get_content_type() == "message/rfc822":
            out.add(_headers(part.get_payload(0)))
        else:  # message/delivery-status
            for fields in part.get_payload():
                out.add(clean("\n".join(f"{name}: {value}" for name, value in fields.items())))


def _parts(message: Any) -> Iterator[Any]:
    """Yield, in order, what has content: parts, and each message in the message before its own parts."""
    # Not recursive: messages can be nested deeply.
    stack = [message]
    while stack:
        part = stack.pop()
        if not part.is_multipart():
            yield part
        elif part.get_content_subtype() == "alternative":
            stack += _preferred(part.get_payload())
        elif part.get_content_type() == "message/delivery-status":
            yield part
        else:
            if part.get_content_type() == "message/rfc822":
                yield part
            stack += reversed(part.get_payload())


def _preferred(alternatives: list[Any]) -> list[Any]:
    for wanted in ("text/plain", "text/html", "multipart/"):
        for part in alternatives:
            if part.get_content_type().startswith(wanted):
                return [part]
    return alternatives[:1]


def _add_part(part: Any, out: TextBuilder, read_attachment: ReadAttachment) -> None:
    payload, name = part.get_payload(decode=True), part.get_filename()
    # A message whose parts cannot be told apart is one part.
    is_text = part.get_content_maintype() in ("text", "multipart", "message")
    if not isinstance(payload, bytes) or not (name or is_text):
        return
    try:
        if not name or (is_text and "." not in name):
            _add_text(part, payload, out)
        else:
            read_attachment(payload, name, out)
    except NoText as error:
        out.problem(f"attachment {name!r}: {error}" if name else str(error))


def _add_text(part: Any, payload: bytes, out: TextBuilder) -> None:
    text, problem = decode(payload, part.get_content_charset())
    if problem:
        out.problem(problem)
    if part.get_content_subtype() == "html":
        add_html(text, out)
    else:
        out.add(clean(text))


def _headers(message: EmailMessage) -> str:
    headers = ((name, _header(message, name)) for name in _HEADERS)
    return "\n".join(f"{name}: {value}" for name, value in headers if value)


def _header(message: EmailMessage, name: str) -> str:
    try:
        return clean(" ".join(str(message.get(name) or "").split()))
    except (ValueError, IndexError, AttributeError, TypeError):  # the parser of headers raises these at broken ones
        return ""


def read_rtf(data: bytes, out: TextBuilder) -> None:
    """Add the text of a Rich Text document."""
    text = rtf_to_text(data.decode("cp1252", "replace"), errors="replace")  # type: ignore[no-untyped-call]
    out.add(clean(text))
