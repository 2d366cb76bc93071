"""Documents: uploaded, flagged, trained and deleted by hand."""

import re
from pathlib import Path

from playwright.sync_api import expect

from tests.console.conftest import Console, Open, file_of
from tests.console.data import HOSTILE_DOCUMENT, store

TRAINING_MS = 90_000  # the first one loads the embedding function, which takes as long as the machine is busy
DROP = """(zone, [name, text]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([text], name));
  for (const kind of ["dragenter", "dragover", "drop"])
    zone.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


def flags(console: Console, avatar: str) -> dict[str, bool]:
    listed = console.admin("GET", f"/users/default/avatars/{avatar}/vectorstore_data").json()["documents"]
    return {each["name"]: each["used"] for each in listed}


def test_an_avatar_is_made_filled_and_trained(console: Console, open_page: Open, tmp_path: Path) -> None:
    """Files are chosen and dropped, one is switched off, and training says what became of each document."""
    page = open_page("documents")
    page.get_by_label("ID of the new avatar").fill("grace")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("grace")
    good, bad = file_of(tmp_path, "good.md", "# Good\n\nwords"), file_of(tmp_path, "bad.pdf", "%PDF-1.7 nothing")
    page.get_by_label("choose files").set_input_files([good, bad])
    expect(page.locator(".uploads")).to_contain_text("good.md")
    page.locator(".drop").evaluate(DROP, ["dropped.md", "# Dropped\n\nmore words"])
    for name in ("good.md", "bad.pdf", "dropped.md"):
        expect(page.get_by_role("switch", name=f"Use {name}")).to_be_checked()
    page.get_by_role("switch", name="Use dropped.md").uncheck()
    expect(page.get_by_role("switch", name="Use dropped.md")).to_be_enabled()
    assert flags(console, "grace") == {"bad.pdf": True, "dropped.md": False, "good.md": True}
    page.get_by_role("button", name="Train").click()
    result = page.get_by_role("region", name="Documents of the training")
    result.wait_for(timeout=TRAINING_MS)
    expect(result.get_by_role("row", name=re.compile("bad.pdf"))).to_contain_text("Failed")
    expect(result.get_by_role("row", name=re.compile("good.md"))).to_contain_text("Added")
    expect(result).not_to_contain_text("dropped.md")
    assert console.collection("avatar-grace").count() == 1


def test_what_a_training_would_change_is_told(console: Console, open_page: Open) -> None:
    """Nothing is written."""
    store(console.gateway, "plan.md", "# Plan\n\nwords", avatar="dry")
    page = open_page("documents/dry")
    page.get_by_role("button", name="What would change?").click()
    page.get_by_role("region", name="Documents of the training").wait_for(timeout=TRAINING_MS)
    expect(page.get_by_role("region", name="Documents of the training")).to_contain_text("plan.md")
    names = [each["name"] for each in console.admin("GET", "/collections?name=avatar-dry").json()["collections"]]
    assert names == []


def test_nothing_is_replaced_unasked(console: Console, open_page: Open, tmp_path: Path) -> None:
    """A document of the same name stays until the person says otherwise."""
    store(console.gateway, "same.md", "earlier", avatar="twice")
    page = open_page("documents/twice")
    page.get_by_label("choose files").set_input_files([file_of(tmp_path, "same.md", "later")])
    expect(page.locator(".uploads")).to_contain_text("There is a document of this name.")
    path = "/users/default/avatars/twice/vectorstore_data/same.md"
    assert console.admin("GET", path).text == "earlier"
    page.get_by_role("button", name="Replace same.md").click()
    expect(page.locator(".uploads .badge")).to_have_text("Replaced")
    assert console.admin("GET", path).text == "later"


def test_a_document_and_an_avatar_are_deleted(console: Console, open_page: Open) -> None:
    """A document after a question, an avatar after its name was typed."""
    store(console.gateway, "old.md", "words", avatar="short-lived")
    store(console.gateway, "new.md", "words", avatar="short-lived")
    page = open_page("documents/short-lived")
    page.get_by_role("button", name="Delete old.md").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("old.md")).to_have_count(0)
    assert flags(console, "short-lived") == {"new.md": True}
    page.get_by_role("button", name="Delete the avatar").click()
    confirm = page.get_by_role("dialog").get_by_role("button", name="Delete the avatar")
    expect(confirm).to_be_disabled()
    page.get_by_label("Type short-lived to go on").fill("short-lived")
    confirm.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Documents")
    assert "short-lived" not in console.admin("GET", "/users/default/avatars").json()["avatars"]


def test_a_name_is_only_a_text(console: Console, open_page: Open) -> None:
    """A document named `<script>` is listed, flagged and trained under that name; `open_page` looks for its script."""
    page = open_page("documents/ada")
    switch = page.get_by_role("switch", name=f"Use {HOSTILE_DOCUMENT}")
    switch.uncheck()
    expect(switch).to_be_enabled()
    assert flags(console, "ada")[HOSTILE_DOCUMENT] is False
    switch.check()
    expect(switch).to_be_enabled()
    assert flags(console, "ada")[HOSTILE_DOCUMENT] is True


def test_many_documents_come_in_pages(console: Console, open_page: Open) -> None:
    for number in range(130):
        store(console.gateway, f"page-{number:03}.md", "words", avatar="many")
    page = open_page("documents/many")
    expect(page.get_by_role("switch")).to_have_count(100)
    page.get_by_role("button", name="Show more").click()
    expect(page.get_by_role("switch")).to_have_count(130)
    page.get_by_label("Beginning of a name").fill("page-12")
    expect(page.get_by_role("switch")).to_have_count(10)


def test_a_reader_only_sees(open_page: Open) -> None:
    """No upload, no training, no deletion, and switches that do not switch."""
    page = open_page("documents/ada", who="reader")
    expect(page.get_by_role("switch").first).to_be_disabled()
    for name in ("Train", "Use all", "Delete the avatar"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    expect(page.get_by_label("choose files")).to_have_count(0)
