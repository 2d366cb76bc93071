"""Collections: listed, browsed, filtered, checked, repaired and exported by hand."""

import json
import re
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing

import pytest
from playwright.sync_api import Page, expect

from tests.console.conftest import Console, Open
from tests.console.data import LARGE, MARKUP, RECORDS

MANY = 10_000


def open_collection(open_page: Open, name: str, **options: str) -> Page:
    page = open_page("collections", **options)
    page.get_by_role("link", name=name, exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(name)
    return page


def test_every_collection_is_listed(open_page: Open) -> None:
    """With tenant and database where they are not Chroma's, records, dimension, distance and state of the index."""
    page = open_page("collections")
    row = page.get_by_role("row", name=re.compile("^handbook"))
    for text in (str(RECORDS), "8", "cosine"):
        expect(row.get_by_role("cell", name=text, exact=True)).to_have_count(1)
    expect(page.get_by_role("row", name=re.compile("^products"))).to_contain_text("acme / web")
    page.get_by_label("Name").fill("HAND")
    expect(page.get_by_role("row")).to_have_count(2)
    page.get_by_label("Name").fill("no such name")
    expect(page.get_by_text("No collection has such a name.")).to_be_visible()
    page.get_by_label("Name").fill("")
    page.get_by_label("Tenant and database").select_option(label="acme / web (1)")
    expect(page.get_by_role("row")).to_have_count(2)
    expect(page.get_by_role("link", name="products")).to_be_visible()


def test_records_are_browsed_and_filtered(open_page: Open) -> None:
    """In pages, by metadata and by text."""
    page = open_collection(open_page, "handbook")
    expect(page.get_by_text(f"1 to 20 of {RECORDS}")).to_be_visible()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_text(f"21 to 40 of {RECORDS}")).to_be_visible()
    page.get_by_label("The document contains").fill("library")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("1 to 20 of those that fit")).to_be_visible()
    page.get_by_label("Metadata", exact=True).fill("page")
    page.get_by_label("Condition", exact=True).select_option("$lt")
    page.get_by_label("Value").fill("20")
    page.get_by_role("button", name="Add condition").click()
    page.get_by_label("Metadata", exact=True).fill("final")
    page.get_by_label("Condition", exact=True).select_option("$eq")
    page.get_by_label("Value").fill("true")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator(".record h3")).to_have_text(["note-0002", "note-0008", "note-0014"])
    page.get_by_role("button", name="Reset").click()
    expect(page.get_by_text(f"1 to 20 of {RECORDS}")).to_be_visible()


def test_neighbours_lead_from_record_to_record(console: Console, open_page: Open) -> None:
    """They are those that Chroma finds, without the record itself."""
    page = open_collection(open_page, "handbook")
    page.get_by_role("link", name="note-0003").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("note-0003")
    handbook = console.collection("handbook")
    vector = handbook.get("note-0003", include=["embeddings"])["embeddings"][0]
    nearest = handbook.query(query_embeddings=[vector], n_results=11)["ids"][0]
    expect(page.locator(".record h3")).to_have_text([each for each in nearest if each != "note-0003"])
    second = page.locator(".record h3").first.inner_text()
    page.locator(".record h3 a").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(second)


def test_an_index_is_checked_and_repaired(console: Console, open_page: Open) -> None:
    """A check reads its files; a repair tells what it found."""
    page = open_collection(open_page, "handbook")
    page.get_by_role("button", name="Check the index").click()
    expect(page.locator("dl.pairs").first).to_contain_text("Sound")
    page.get_by_role("button", name="Repair the index").click()
    page.get_by_role("dialog").get_by_role("button", name="Repair the index").click()
    result = page.locator("section.card").filter(has=page.get_by_role("heading", name="Repair"))
    expect(result.locator("dl")).to_contain_text("is sound", timeout=60_000)
    console.gateway.wait_until_ready()


def test_an_export_has_every_record(console: Console, open_page: Open) -> None:
    """As JSON lines, with vectors, and with integers that JavaScript's numbers cannot hold."""
    page = open_collection(open_page, "hostile")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    lines = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    found = console.collection("hostile").get(include=["documents", "metadatas", "embeddings"])
    assert [each["id"] for each in lines] == found["ids"]
    assert [each["document"] for each in lines] == found["documents"]
    assert [each["metadata"] for each in lines] == found["metadatas"]
    assert lines[1]["metadata"]["whole"] == 9007199254740993
    assert lines[0]["embedding"] == pytest.approx(list(found["embeddings"][0]))
    page = open_collection(open_page, "handbook")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    assert len(download.value.path().read_text().splitlines()) == RECORDS


def test_markup_is_only_a_text(open_page: Open) -> None:
    """In ids, documents, keys and values of metadata, and in the metadata of the collection."""
    page = open_collection(open_page, "hostile")
    expect(page.locator("dl.pairs").first).to_contain_text(MARKUP[:60])
    record = page.locator(".record").first
    expect(record.locator("h3")).to_have_text(MARKUP)
    expect(record.locator(".text")).to_have_text(MARKUP)
    record.locator("h3 a").click()
    expect(page.locator("pre.text")).to_have_text(MARKUP)
    expect(page.locator(".record").first).to_be_visible()
    assert page.locator("#page img, #page script").count() == 0


def test_a_document_of_10_mb_is_cut(open_page: Open) -> None:
    """In the list to a few words, on its own page to what can be shown; all of it can be saved."""
    page = open_collection(open_page, "large")
    expect(page.locator(".record")).to_have_count(2)
    assert len(page.locator(".record .text").first.inner_text()) < 400
    page.get_by_role("link", name="large").last.click()
    expect(page.locator("pre.text")).to_be_visible()
    assert len(page.locator("pre.text").inner_text()) <= 20_000
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as a file").click()
    assert download.value.path().read_text() == LARGE
    page.get_by_role("button", name="Show more").click()
    expect(page.get_by_text(re.compile("The first 1,000,000 of"))).to_be_visible()


@pytest.fixture
def many(console: Console) -> Iterator[None]:
    """10,000 collections more, in the database alone: to make them through Chroma would take minutes."""
    path = console.gateway.data_dir / "chroma.sqlite3"
    with closing(sqlite3.connect(path, timeout=30)) as database:
        (home,) = database.execute(
            "select id from databases where tenant_id = 'default_tenant' and name = 'default_database'"
        ).fetchone()
        rows = [(str(uuid.uuid4()), f"many-{number:05}", home) for number in range(MANY)]
        database.executemany(
            "insert into collections (id, name, database_id, config_json_str) values (?, ?, ?, '{}')", rows
        )
        database.executemany(
            "insert into segments (id, type, scope, collection) values (?, ?, ?, ?)",
            [
                (str(uuid.uuid4()), f"urn:chroma:segment/{kind}", scope, id_)
                for id_, _, _ in rows
                for scope, kind in (("VECTOR", "vector/hnsw-local-persisted"), ("METADATA", "metadata/sqlite"))
            ],
        )
        database.commit()
        yield
        database.execute(
            "delete from segments where collection in (select id from collections where name like 'many-%')"
        )
        database.execute("delete from collections where name like 'many-%'")
        database.commit()


def test_10_000_collections_come_in_pages(many: None, open_page: Open) -> None:
    """A page has fifty, the way on and back works, and a name finds one among all."""
    page = open_page("collections")
    expect(page.get_by_text(re.compile("^1 to 50 of 10,0"))).to_be_visible()
    expect(page.get_by_role("row")).to_have_count(51)
    for first in ("51", "101"):
        page.get_by_role("button", name="Next").click()
        expect(page.get_by_text(re.compile(f"^{first} to "))).to_be_visible()
    page.get_by_role("button", name="Previous").click()
    expect(page.get_by_text(re.compile("^51 to "))).to_be_visible()
    page.get_by_label("Name").fill("many-09999")
    expect(page.get_by_role("row")).to_have_count(2)
    page.get_by_role("link", name="many-09999").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("many-09999")
    page.go_back()
    expect(page.get_by_label("Name")).to_have_value("many-09999")
