"""The timeline: choose a moment, compare it with now, restore it, and go back."""

import re
import time
from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.console.conftest import Console, Open, shoot


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def type_restore(page: Page, button: str | re.Pattern[str]) -> None:
    page.get_by_role("button", name=button).click()
    page.get_by_label("Type restore to go on").fill("restore")
    page.get_by_role("dialog").get_by_role("button", name="Restore").click()


def test_any_moment_is_restored_and_undone(console: Console, open_page: Open) -> None:
    """A record is lost by mistake, comes back with the moment before, and goes again with the way back."""
    collection = console.collection("handbook")
    assert console.admin("POST", "/flush").status_code == 200
    before = collection.count()
    snapshot = console.admin("POST", "/snapshot", json={"label": "all is well"}).json()
    collection.delete(ids=["note-0001", "note-0002"])
    assert console.admin("POST", "/flush").status_code == 200

    page = open_page("timeline")
    event = page.locator(".event").filter(has_text="all is well")
    event.get_by_role("button").click()
    expect(page.get_by_role("heading", name=f"The snapshot {snapshot['id']}")).to_be_visible()
    page.get_by_role("button", name="Compare with now").click()
    row = page.get_by_role("row").filter(has_text="handbook")
    expect(row).to_contain_text(f"{before}")
    expect(row).to_contain_text(f"{before - 2}")
    expect(row).to_contain_text("+2")
    shoot(page, "timeline-compared")

    page.get_by_role("button", name="Restore…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Type restore to go on").fill("Restor")
    expect(dialog.get_by_role("button", name="Restore")).to_be_disabled()
    page.keyboard.press("Enter")
    expect(dialog).to_be_visible()
    shoot(page, "timeline-typed")
    dialog.get_by_role("button", name="Cancel").click()
    assert collection.count() == before - 2

    type_restore(page, "Restore…")
    done = page.locator(".box").filter(has_text="are served now")
    expect(done).to_be_visible(timeout=60_000)
    shoot(page, "timeline-restored")
    wait_until(lambda: console.admin("GET", "/status").json()["ready"])
    assert collection.count() == before
    expect(page.locator(".event").filter(has_text="Restore").first).to_be_visible()

    type_restore(page, re.compile("^Go back to"))
    expect(done).to_have_count(0)
    expect(done).to_be_visible(timeout=60_000)
    wait_until(lambda: console.admin("GET", "/status").json()["ready"])
    assert collection.count() == before - 2


def test_a_moment_is_chosen_by_picture_keyboard_and_clock(open_page: Open) -> None:
    """All three mean the same moment."""
    page = open_page("timeline")
    slider = page.get_by_label("Choose a moment")
    picture = page.locator(".picture svg")
    expect(picture).to_have_attribute("aria-label", re.compile(r"journal entries.* snapshots"))
    box = picture.bounding_box()
    assert box is not None
    picture.click(position={"x": box["width"] * 0.75, "y": 60})
    picked = int(slider.input_value())
    exact = page.get_by_label("To the second").input_value()
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert int(slider.input_value()) == picked + 1000
    assert page.get_by_label("To the second").input_value() > exact
    page.get_by_role("button", name="10 min").click()
    expect(page.get_by_role("button", name="10 min")).to_have_attribute("aria-pressed", "true")
    page.get_by_label("To the second").fill("2020-01-01T00:00:00")
    page.get_by_label("To the second").press("Tab")
    expect(page.get_by_text("Nothing can be restored from so long ago.")).to_be_visible()
