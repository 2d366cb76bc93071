"""The overview is live: what happens is seen without reloading, and so is a gateway that goes away."""

import os
import signal

from playwright.sync_api import expect

from tests.console.conftest import Console, Open, shoot


def test_a_snapshot_appears_without_reloading(console: Console, open_page: Open) -> None:
    """Somebody else takes it: its age, its label, and that nobody has verified it."""
    page = open_page("overview")
    card = page.locator(".stat").filter(has_text="Newest snapshot")
    expect(card).not_to_contain_text("before the import")
    assert console.admin("POST", "/snapshot", json={"label": "before the import"}).status_code == 201
    expect(card).to_contain_text("before the import")
    expect(card).to_contain_text("not verified")
    shoot(page, "overview-snapshot")


def test_a_snapshot_is_taken_and_verified_by_hand(open_page: Open) -> None:
    """Each button says what came of it, and the card shows it."""
    page = open_page("overview")
    page.get_by_role("button", name="Take a snapshot").click()
    expect(page.locator("#notices")).to_contain_text("is in the store")
    page.get_by_role("button", name="Verify the newest").click()
    expect(page.locator("#notices")).to_contain_text("can be restored")
    card = page.locator(".stat").filter(has_text="Newest snapshot")
    expect(card.get_by_text("verified", exact=True)).to_be_visible(timeout=30_000)


def test_requests_are_counted(console: Console, open_page: Open) -> None:
    """While they come."""
    page = open_page("overview")
    collection = console.collection("handbook")
    card = page.locator(".stat").filter(has_text="Requests a second")
    expect(card).to_contain_text("0 reads")
    for _ in range(50):
        collection.count()
    expect(card).not_to_contain_text("0 reads · ")


def test_a_gateway_that_goes_away_is_seen_and_comes_back(console: Console, open_page: Open) -> None:
    """Also one that keeps its connections and is silent. The page stays as it was, and nothing has to be reloaded."""
    page = open_page("overview", width="phone")
    expect(page.locator("#connection")).to_have_text("Live")
    pid = int(console.admin("GET", "/status").json()["lease"]["holder"].rpartition(":")[2])
    os.kill(pid, signal.SIGSTOP)
    try:
        expect(page.locator("#connection")).to_have_text("The gateway does not answer", timeout=20_000)
        expect(page.get_by_text("Newest snapshot")).to_be_visible()
        shoot(page, "away-phone")
    finally:
        os.kill(pid, signal.SIGCONT)
    expect(page.locator("#connection")).to_have_text("Live", timeout=20_000)
    page.context.set_offline(True)
    page.get_by_role("link", name="Check").click()
    expect(page.get_by_role("alert")).to_contain_text("The gateway does not answer")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("button", name="Check again")).to_be_visible()


def test_the_check_names_what_is_wrong_first(open_page: Open) -> None:
    """The store of the tests is on the disk of the data. What passed is folded away."""
    page = open_page("check")
    first = page.locator("#page details").first
    expect(first).to_contain_text("Failed")
    expect(first).to_contain_text("a lost disk takes both")
    passed = page.locator("#page details").filter(has_text="as it should be")
    expect(passed.get_by_text("one-writer")).to_be_hidden()
    passed.locator("summary").press("Enter")
    expect(passed.get_by_text("one-writer")).to_be_visible()
    page.get_by_role("button", name="Check again").click()
    expect(page.get_by_text("Looked up just now")).to_be_visible()
