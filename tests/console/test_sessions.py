"""Signing in and out, what a reader gets, and what pages of other origins cannot do."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import expect

from tests.console.conftest import Console, Open

STOLEN = """<!doctype html><title>stolen</title><body><script>
const gateway = "GATEWAY", results = {};
const send = (name, path, options) =>
  fetch(gateway + path, { credentials: "include", ...options })
    .then((answer) => answer.text())
    .then((text) => (results[name] = `read: ${text}`), () => (results[name] = "refused"));
const frame = document.createElement("iframe");
frame.src = `${gateway}/console`;
document.body.append(frame);
Promise.all([
  send("status", "/admin/status"),
  send("session", "/console/session"),
  send("events", "/console/events"),
  send("records", "/api/v2/tenants/default_tenant/databases/default_database/collections"),
  send("json", "/admin/snapshot", { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" }),
  send("simple", "/admin/snapshot?wait=false", { method: "POST", mode: "no-cors" }),
  send("sign-out", "/console/session", { method: "DELETE" }),
]).then(() => { document.title = "done"; window.results = results; });
</script>"""


@pytest.fixture
def another_origin(console: Console) -> Iterator[str]:
    """The URL of a page of another origin that tries what it can. Its address is on the same site: cookies are sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = STOLEN.replace("GATEWAY", console.gateway.url).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_page_of_another_origin_gets_nothing(console: Console, open_page: Open, another_origin: str) -> None:
    """In a browser that is signed in as admin: it reads nothing, changes nothing, and cannot show the console."""
    page = open_page("overview")
    before = console.admin("GET", "/jobs").json()["jobs"]
    stolen = page.context.new_page()
    stolen.goto(another_origin)
    stolen.wait_for_function("document.title === 'done'")
    results = stolen.evaluate("window.results")
    assert {name: result for name, result in results.items() if result not in ("refused", "read: ")} == {}
    assert len(results) == 7
    frames = [frame for frame in stolen.frames if frame != stolen.main_frame]
    assert all(frame.locator("#shell, #sign-in").count() == 0 for frame in frames)
    assert console.admin("GET", "/jobs").json()["jobs"] == before
    stolen.close()
    page.reload()
    expect(page.get_by_role("button", name="Take a snapshot")).to_be_visible()


def test_no_script_can_read_the_session(open_page: Open) -> None:
    """Not the pages' own either."""
    page = open_page("overview")
    assert page.evaluate("document.cookie") == ""
    assert page.evaluate("Object.keys(localStorage).length + Object.keys(sessionStorage).length") == 0


def test_a_session_outlasts_a_reload_and_ends_with_the_sign_out(open_page: Open) -> None:
    """Also in the other windows of the browser."""
    page = open_page("jobs")
    page.reload()
    expect(page.get_by_role("heading", level=1, name="Jobs")).to_be_visible()
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.get_by_role("heading", level=1, name="Jobs")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Key")).to_be_focused()
    expect(other.get_by_text("The session has ended. Sign in again.")).to_be_visible()


def test_a_reader_sees_and_cannot_act(open_page: Open) -> None:
    """No button that would only be refused."""
    page = open_page("overview", who="reader")
    expect(page.get_by_text("reader · reader")).to_be_visible()
    expect(page.get_by_text("Ready", exact=False).first).to_be_visible()
    expect(page.get_by_role("button", name="Take a snapshot")).to_have_count(0)
    page.get_by_role("link", name="Timeline").click()
    page.get_by_role("button", name="Choose: Snapshot").first.click()
    expect(page.get_by_text("An admin's key may compare it with now, and restore it.")).to_be_visible()
    expect(page.get_by_role("button", name="Restore")).to_have_count(0)
