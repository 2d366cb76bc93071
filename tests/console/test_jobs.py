"""Jobs: what runs is seen with its progress and can be cancelled, what ended with its result or its error."""

import re
import socket
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from playwright.sync_api import Locator, Page, expect

from tests.console.conftest import Console, Open
from tests.gateway_process import ADMIN_TOKEN


@contextmanager
def slow_job(console: Console, label: str) -> Iterator[None]:
    """An upload of a snapshot that takes as long as the block, or until it is cancelled."""
    member = tarfile.TarInfo("chroma.sqlite3")
    member.size = 64 << 20
    head = (
        f"POST /admin/snapshot/upload?label={label} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n"
        f"Content-Length: {member.size + 512}\r\n\r\n"
    )
    ended = threading.Event()

    def send(client: socket.socket) -> None:
        with suppress(OSError):  # it was cancelled
            while not ended.wait(0.1):
                client.sendall(bytes(256 << 10))

    with socket.create_connection(("127.0.0.1", console.gateway.port)) as client:
        client.sendall(head.encode() + member.tobuf())
        thread = threading.Thread(target=send, args=(client,))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def job(page: Page, text: str) -> Locator:
    """The row of the newest job with this text."""
    return page.locator("li.job").filter(has_text=text).first


def test_a_running_job_is_followed_and_cancelled(console: Console, open_page: Open) -> None:
    """It appears without reloading, with its progress and rate; after Cancel it is shown as cancelled."""
    page = open_page("jobs")
    with slow_job(console, "by-hand"):
        row = job(page, "by-hand")
        expect(row).to_contain_text("Running")
        expect(row.locator("progress")).to_be_visible()
        expect(row).to_contain_text(re.compile(r"receiving · .+ of 67.1 MB · .+/s"))
        row.get_by_role("button", name="Cancel Upload of a snapshot by-hand").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("Cancel this job?")
        dialog.get_by_role("button", name="Cancel the job").click()
        expect(row.locator(".badge")).to_have_text("Cancelled")
    expect(row.get_by_role("button", name=re.compile("^Cancel "))).to_be_hidden()
    assert next(each for each in console.admin("GET", "/jobs").json()["jobs"] if each["subject"] == "by-hand")[
        "state"
    ] == ("cancelled")


def test_results_and_errors_are_shown(console: Console, open_page: Open) -> None:
    """A result can be opened; an error says what to do."""
    console.admin("POST", "/snapshot", json={"label": "seen in the jobs"})
    console.admin("POST", "/snapshot/20200101T000000Z-000000/restore?wait=false")
    page = open_page("jobs")
    failed = job(page, "20200101T000000Z-000000")
    expect(failed.locator(".badge")).to_have_text("Failed")
    expect(failed.locator(".box.bad")).to_contain_text("20200101T000000Z-000000")
    done = job(page, "seen in the jobs")
    done.get_by_text("Result").click()
    expect(done.locator("dl")).to_contain_text("uploaded bytes")
    page.get_by_label("State").select_option("failed")
    expect(done).to_be_hidden()
    expect(failed).to_be_visible()


def test_a_reader_sees_and_cannot_cancel(console: Console, open_page: Open) -> None:
    page = open_page("jobs", who="reader")
    with slow_job(console, "for-a-reader"):
        expect(job(page, "for-a-reader")).to_contain_text("Running")
        expect(page.get_by_role("button", name=re.compile("^Cancel "))).to_have_count(0)
        running = next(each for each in console.admin("GET", "/jobs").json()["jobs"] if each["state"] == "running")
        console.admin("DELETE", f"/jobs/{running['id']}")
