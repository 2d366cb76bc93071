"""Every page in light and dark, on a phone and on a desktop: what axe-core finds, and a picture of each."""

import pytest
from playwright.sync_api import Page, expect

from tests.console.conftest import AXE, Console, Open, serious_violations, shoot
from tests.gateway_process import ADMIN_TOKEN

pytestmark = pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: it needs npm")

SCHEMES = ("light", "dark")
SIZES = ("phone", "desktop")


def addresses(console: Console) -> dict[str, str]:
    """Where each page is, by the name of its picture."""
    found = console.admin("GET", "/collections?name=handbook").json()["collections"][0]["id"]
    return {
        "overview": "overview",
        "timeline": "timeline",
        "collections": "collections",
        "collection": f"collections/{found}",
        "record": f"collections/{found}/note-0003",
        "avatars": "documents",
        "documents": "documents/ada",
        "jobs": "jobs",
        "check": "check",
    }


def settle(page: Page) -> None:
    """Wait until nothing of the page is being loaded."""
    page.locator("#main:not([aria-busy])").wait_for()
    expect(page.locator("#page [aria-busy=true]")).to_have_count(0)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", SIZES)
def test_no_page_keeps_people_out(console: Console, open_page: Open, width: str, scheme: str) -> None:
    """No violation that axe-core calls serious or critical, and nothing that is wider than the screen."""
    page = open_page(width=width, scheme=scheme)
    expect(page.get_by_text("Live", exact=True)).to_be_attached()
    found = {}
    for name, address in addresses(console).items():
        page.evaluate("address => { location.hash = `#/${address}` }", address)
        page.locator(f"#page > .page-{address.partition('/')[0]}").wait_for()
        settle(page)
        found[name] = serious_violations(page)
        if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
            found[name].append("the page is wider than the screen")
        shoot(page, f"{name}-{width}-{scheme}")
    assert {name: each for name, each in found.items() if each} == {}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", SIZES)
def test_the_sign_in_keeps_nobody_out(open_page: Open, width: str, scheme: str) -> None:
    page = open_page(who=None, width=width, scheme=scheme)
    expect(page.get_by_label("Key")).to_be_focused()
    assert serious_violations(page) == []
    shoot(page, f"sign-in-{width}-{scheme}")


def test_the_keyboard_is_enough(open_page: Open) -> None:
    """To sign in, to skip the navigation, and to open a page, whose title has the focus then."""
    page = open_page(who=None)
    expect(page.get_by_label("Key")).to_be_focused()
    page.keyboard.insert_text("no such key")
    page.keyboard.press("Enter")
    expect(page.get_by_text("This key is not known here.")).to_be_visible()
    page.keyboard.insert_text(ADMIN_TOKEN)  # what was wrong is selected
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    page.get_by_role("link", name="Jobs").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="Jobs")).to_be_focused()
    page.locator("#skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()


def test_a_dialog_takes_the_focus_and_gives_it_back(open_page: Open) -> None:
    """Escape is a no."""
    page = open_page("documents/ada")
    button = page.get_by_role("button", name="Delete canteen-4.md")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(button).to_be_focused()
    expect(page.get_by_role("switch", name="Use canteen-4.md")).to_be_visible()
