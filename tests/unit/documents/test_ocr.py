"""Scanned pages: recognised where that is asked for, named otherwise. tesseract itself is used if it is installed."""

import io
import shutil
from pathlib import Path

import pytest
from fpdf import FPDF
from PIL import Image, ImageDraw, ImageFont
from pydantic import ValidationError

from gateway.documents.plan import training_of
from gateway.documents.readers import kinds
from gateway.documents.readers.ocr import NoOcr, Ocr, require_ocr
from gateway.documents.readers.text import NoText
from gateway.documents.train import Training

SAYS = "The exam is on Friday"
# It writes the size that the image's head says, so that the test sees what it was given.
FAKE = """#!/bin/sh
if [ "$1" = --list-langs ]; then printf 'List of available languages in "/x" (2):\\neng\\nchi_sim\\n'; exit 0; fi
if [ "$4" = deu ]; then echo 'no such language' >&2; exit 1; fi
echo "$1 $2 $3 $4 $(head -c 13 | tr '\\n' ' ')"
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is called as tesseract is."""
    (tmp_path / "tesseract").write_text(FAKE)
    (tmp_path / "tesseract").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def scanned(*pages: str, pictures: int = 1) -> bytes:
    """A PDF with a page of text for each of `pages`, and pages that are pictures of a sentence."""
    picture = Image.new("L", (1000, 120), 255)
    ImageDraw.Draw(picture).text((20, 20), SAYS, fill=0, font=ImageFont.load_default(size=60))
    out = io.BytesIO()
    picture.save(out, "PNG")
    made = FPDF(format=(100, 50))
    made.set_font("helvetica", size=12)
    for text in pages:
        made.add_page()
        made.multi_cell(0, 8, text)
    for _ in range(pictures):
        made.add_page()
        made.image(io.BytesIO(out.getvalue()), x=5, y=5, w=90)
    return bytes(made.output())


@pytest.mark.usefixtures("fake")
def test_a_page_without_text_is_given_to_tesseract() -> None:
    """As a grey image of 300 dots an inch; pages with text are not. The record says that it was recognised."""
    text = kinds.read(scanned("A page with text"), "a.pdf", Ocr("eng"))
    assert text.text == "A page with text\n\nstdin stdout -l eng P5 1182 591 2"
    assert [block.where for block in text.blocks] == [{"page": 1}, {"page": 2, "ocr": True}]
    assert text.problems == []


def test_ocr_is_off_by_default() -> None:
    """Scanned pages are named; a document of nothing else fails and says why."""
    assert "scanned: 2" in kinds.read(scanned("A page with text"), "a.pdf").problems[0]
    with pytest.raises(NoText, match="may be scanned: 1, 2"):
        kinds.read(scanned(pictures=2), "a.pdf")


@pytest.mark.usefixtures("fake")
def test_a_page_that_cannot_be_recognised_fails_alone() -> None:
    """It is named with the reason: what tesseract says, or that the time is over."""
    text = kinds.read(scanned("A page with text"), "a.pdf", Ocr("deu"))
    assert text.text == "A page with text"
    assert ("page 2" in text.problems[0], "no such language" in text.problems[0]) == (True, True)
    assert "time" in kinds.read(scanned("A page with text"), "a.pdf", Ocr("eng", budget_s=0)).problems[0]


def test_what_ocr_needs_is_named(fake: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The program, or the language."""
    require_ocr("eng+chi_sim")
    with pytest.raises(NoOcr, match="'deu'"):
        require_ocr("eng+deu")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(NoOcr, match="tesseract"):
        require_ocr("eng")


@pytest.mark.parametrize("languages", ["", "-l", "eng+", "../eng", "/etc/eng", "eng deu", "eng;x", "script/../eng"])
def test_languages_are_names_and_nothing_else(languages: str) -> None:
    """They become arguments of a program."""
    with pytest.raises(ValidationError):
        Training(ocr=languages)
    assert Training(ocr="deu+script/Latin").ocr == "deu+script/Latin"


def test_documents_are_read_again_when_ocr_is_switched_on() -> None:
    """Also in other languages; without OCR nothing changes."""
    made = [training_of(Training(ocr=languages).reading(), {}) for languages in (None, "eng", "deu")]
    assert len(set(made)) == 3
    assert made[0] == training_of(Training().splitting.model_dump(), {})


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed")
def test_tesseract_reads_a_scanned_page() -> None:
    """The words of the picture."""
    require_ocr("eng")
    assert SAYS in kinds.read(scanned(), "a.pdf", Ocr("eng")).text
