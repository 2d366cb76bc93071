"""Optical character recognition of scanned pages, by the program tesseract. It is not installed with the gateway."""

import re
import shutil
import subprocess
import time

# `eng`, `deu+eng`, `script/Latin`: the names of tesseract's own files, and nothing that is a path elsewhere.
LANGUAGES = re.compile(r"(?:script/)?[A-Za-z0-9_]+(?:\+(?:script/)?[A-Za-z0-9_]+)*")
# For all pages of one document. A page takes one to ten seconds.
OCR_BUDGET_S = 1800.0
_PAGE_TIMEOUT_S = 120.0
_LIST_TIMEOUT_S = 30.0
_PROGRAM = "tesseract"


class OcrFailed(Exception):
    """A page could not be recognised. The message says why."""


class NoOcr(Exception):
    """OCR is not possible here: tesseract or a language of it is not installed."""


def require_ocr(languages: str) -> None:
    """Raise NoOcr unless tesseract and its data for each of `languages` (`eng+deu`) are installed."""
    try:
        listed = _run("--list-langs", timeout_s=_LIST_TIMEOUT_S).stdout.decode(errors="replace").split()
    except (OSError, subprocess.TimeoutExpired):
        raise NoOcr(f"OCR needs the program {_PROGRAM}, which is not installed or does not start") from None
    if missing := [language for language in languages.split("+") if language not in listed]:
        raise NoOcr(f"{_PROGRAM} has no data for the language {missing[0]!r}")


class Ocr:
    """Recognises the pages of one document, within a budget of time."""

    def __init__(self, languages: str, budget_s: float = OCR_BUDGET_S) -> None:
        self._languages, self._ends_at = languages, time.monotonic() + budget_s

    def text(self, image: bytes) -> str:
        """Return the text of an image in PNM format, "" if none is recognised. Raises OcrFailed."""
        timeout_s = min(_PAGE_TIMEOUT_S, self._ends_at - time.monotonic())
        if timeout_s <= 0:
            raise OcrFailed("the time for OCR of this document is over")
        try:
            done = _run("stdin", "stdout", "-l", self._languages, data=image, timeout_s=timeout_s)
        except subprocess.TimeoutExpired:
            raise OcrFailed(f"{_PROGRAM} took longer than {timeout_s:.0f} s") from None
        except OSError as error:
            raise OcrFailed(f"{_PROGRAM} does not start: {error.strerror}") from None
        if done.returncode != 0:
            raise OcrFailed(f"{_PROGRAM}: {done.stderr.decode(errors='replace').strip()[-200:] or 'it failed'}")
        return done.stdout.decode(errors="replace")


def _run(*arguments: str, data: bytes = b"", timeout_s: float) -> "subprocess.CompletedProcess[bytes]":
    program = shutil.which(_PROGRAM) or _PROGRAM
    command = [program, *arguments]
    return subprocess.run(  # noqa: S603  # the languages were checked by the pattern above
        command, input=data, capture_output=True, timeout=timeout_s, check=False
    )
