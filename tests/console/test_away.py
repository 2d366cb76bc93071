"""A gateway that is started again while pages are open."""

import pytest
from playwright.sync_api import Page, expect

from tests.console.conftest import Console, Open

PAGES = ("overview", "timeline", "collections", "documents/ada", "jobs", "check")
BACK_MS = 60_000


def is_live(page: Page) -> None:
    expect(page.locator("#connection")).to_have_text("Live", timeout=BACK_MS)


@pytest.fixture
def opened(open_page: Open) -> dict[str, Page]:
    """Every page, in a browser of its own: one browser keeps six connections to a host, and each page has one open."""
    pages = {name: open_page(name) for name in PAGES}
    for page in pages.values():
        is_live(page)
    return pages


def test_after_a_restart_one_signs_in_again(console: Console, opened: dict[str, Page]) -> None:
    """Sessions end with the process: each page asks for the key, and shows the same again afterwards."""
    console.gateway.kill_gateway()
    console.gateway.wait_until_ready()
    for name, page in opened.items():
        expect(page.get_by_text("The session has ended. Sign in again.")).to_be_visible(timeout=BACK_MS)
        page.get_by_label("Key").fill(console.token("admin"))
        page.get_by_role("button", name="Sign in").click()
        is_live(page)
        assert page.url == f"{console.url}#/{name}"
