"""Uses one of the chat examples in a real browser; tests/system/test_examples.py runs it.

    python chat.py gradio|streamlit BROWSER URL QUESTION SCREENSHOT FILE…

Prints as JSON what the page said: while the files were ingested, afterwards, and to the question.
"""

import json
import sys

from playwright.sync_api import Page, expect, sync_playwright

_TIMEOUT_MS = 120_000
_PROGRESS = ("upload ", "train", "look", "load the embedding function")


def text_of(page: Page) -> str:
    """What is seen, also in boxes of text."""
    said: str = page.evaluate(
        "[document.body.innerText, ...[...document.querySelectorAll('textarea')].map((box) => box.value)].join('\\n')"
    )
    return said


def said_until(page: Page, words: str) -> list[str]:
    """What the page said of the progress until it said `words`."""
    seen: list[str] = []
    for _ in range(_TIMEOUT_MS // 50):
        text = text_of(page)
        seen += [each for each in _PROGRESS if each in text and each not in seen]
        if words in text:
            return seen
        page.wait_for_timeout(50)
    raise AssertionError(f"the page never said {words!r} but: {text}")


def gradio(page: Page, files: list[str], question: str) -> list[str]:
    page.locator("input[type=file]").first.set_input_files(files)
    progress = said_until(page, " added, ")
    box = page.get_by_role("textbox").last
    box.fill(question)
    box.press("Enter")
    said_until(page, ".md (0.")
    return progress


def streamlit(page: Page, files: list[str], question: str) -> list[str]:
    page.locator("input[type=file]").set_input_files(files)
    add = page.get_by_role("button", name="Add", exact=True)
    expect(add).to_be_enabled()
    add.click()
    progress = said_until(page, " added, ")
    box = page.get_by_test_id("stChatInputTextArea")
    box.fill(question)
    box.press("Enter")
    said_until(page, ".md (0.")
    return progress


def main() -> None:
    kind, browser_path, url, question, screenshot, *files = sys.argv[1:]
    expect.set_options(timeout=_TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(_TIMEOUT_MS)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        try:
            progress = {"gradio": gradio, "streamlit": streamlit}[kind](page, files, question)
            page.wait_for_timeout(1000)  # until what moves stands still in the picture
        finally:
            page.screenshot(path=screenshot)
        # What a document has in it, as a part of the page.
        injected = page.locator("#injected, img[src*=injected]").count()
        print(json.dumps({"progress": progress, "text": text_of(page), "injected": injected, "errors": errors}))
        browser.close()


main()
