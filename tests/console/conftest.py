"""One gateway with data, and a browser whose pages are watched for what must never happen."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from chromadb import Collection

from tests.console.data import HEADERS, fill
from tests.gateway_process import ADMIN_TOKEN, ROOT, Gateway, gateway_process
from tests.keys import Keys

# At the end: where both have a package, that of this project's environment counts.
sys.path.append(str(ROOT / "var/console/python"))
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

SCREENSHOTS = ROOT / "var/console-screenshots"
AXE = ROOT / "var/console/node_modules/axe-core/axe.min.js"
WIDTHS = {"phone": (390, 844), "desktop": (1440, 900)}
PATIENCE_MS = 15_000

expect.set_options(timeout=PATIENCE_MS)

# What a browser says of a request that was refused or broke. The pages show it, and the tests look for it there.
_EXPECTED = re.compile(r"Failed to load resource|ERR_(?:CONNECTION|INCOMPLETE|EMPTY)")


class Console:
    """The console of one gateway, and who may sign in to it."""

    def __init__(self, gateway: Gateway, keys: Keys) -> None:
        self.gateway, self.keys = gateway, keys
        self.url = f"{gateway.url}/console"

    def token(self, who: str) -> str:
        return ADMIN_TOKEN if who == "admin" else self.keys.tokens[who]

    def collection(self, name: str) -> Collection:
        return self.gateway.client(headers=HEADERS).get_collection(name, embedding_function=None)

    def admin(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.gateway.admin(method, path, **options)


@pytest.fixture(scope="session")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    keys = Keys(tmp_path_factory.mktemp("keys") / "keys.json")
    keys.add("reader", "reader")
    env = {
        "GATEWAY_KEYS_FILE": str(keys.path),
        "GATEWAY_JOURNAL_INTERVAL_S": "1",
        "GATEWAY_EMBEDDING": "words_for_tests",
        "GATEWAY_EMBEDDING_MODULE": "tests.word_embedding",
    }
    with gateway_process(**env) as gateway:
        gateway.start()
        fill(gateway)
        yield Console(gateway, keys)
        gateway.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ["CONSOLE_BROWSER"])
        yield browser
        browser.close()


Open = Callable[..., Page]


@pytest.fixture
def open_page(console: Console, browser: Browser) -> Iterator[Open]:
    """A function that opens a page of the console, signed in: `open_page("jobs", who="reader", width="phone")`.

    A test fails if a page ran a script of the data, met an error of its own, or broke the Content-Security-Policy.
    """
    contexts: list[BrowserContext] = []
    bad: list[str] = []

    def note(message: ConsoleMessage) -> None:
        own = message.page is not None and message.page.url.startswith(console.url)
        if own and message.type == "error" and not _EXPECTED.search(message.text):
            bad.append(message.text)

    def open_(
        address: str = "", who: str | None = "admin", width: str = "desktop", scheme: str = "light", **options: Any
    ) -> Page:
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        context = browser.new_context(
            viewport=size, color_scheme=scheme, reduced_motion="reduce", locale="en-GB", timezone_id="UTC", **options
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        context.on("console", note)
        context.on("weberror", lambda error: bad.append(str(error.error)))
        context.on("dialog", lambda dialog: (bad.append(f"a script opened: {dialog.message}"), dialog.dismiss()))
        page = context.new_page()
        page.goto(f"{console.url}#/{address}")
        if who is not None:
            page.get_by_label("Key").fill(console.token(who))
            page.get_by_role("button", name="Sign in").click()
            page.locator("#main:not([aria-busy])").wait_for()
        return page

    yield open_
    for context in contexts:
        own = [page for page in context.pages if page.url.startswith(console.url)]
        bad += ["a script of the data was run" for page in own if page.evaluate("window.executed")]
        context.close()
    assert not bad


def shoot(page: Page, name: str) -> None:
    """Keep a picture of what the page shows."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def serious_violations(page: Page) -> list[str]:
    """What axe-core finds that keeps people out, as one line each."""
    # As a text, which the Content-Security-Policy does not forbid: the browser's debugger runs it.
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{each['id']} ({each['impact']}): {json.dumps([node['html'][:200] for node in each['nodes']][:3])}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]


@pytest.fixture(autouse=True)
def needs_axe() -> None:
    """In CI nothing is left out."""
    if os.environ.get("CI"):
        assert AXE.exists(), "axe-core is missing: is there no npm?"


def file_of(directory: Path, name: str, text: str) -> Path:
    """A file to upload."""
    path = directory / name
    path.write_text(text)
    return path
