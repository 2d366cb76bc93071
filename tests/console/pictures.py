"""The pictures of docs/images: `scripts/test-console --pictures` takes them anew."""

import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from tests.console.data import NOTES
from tests.gateway_process import ADMIN_TOKEN, ROOT, Gateway, gateway_process

sys.path.append(str(ROOT / "var/console/python"))
from playwright.sync_api import Page, sync_playwright

IMAGES = ROOT / "docs/images"
WRITING_S, READING_S = 60, 25
COLLECTIONS = {"lectures": 4200, "handbook": 860, "exercises": 2100, "questions": 310, "glossary": 1240}


def fill(gateway: Gateway) -> None:
    """Collections, which are written for a while, and the documents of an avatar."""
    client, numbers = gateway.client(), random.Random(0)
    for name, records in COLLECTIONS.items():
        hnsw = {"space": "cosine", "sync_threshold": 100, "batch_size": 50}
        collection = client.create_collection(name, embedding_function=None, configuration={"hnsw": hnsw})
        for first in range(0, records, 500):
            chosen = range(first, min(records, first + 500))
            collection.add(
                ids=[f"{name}-{number:04}" for number in chosen],
                embeddings=[[numbers.random() for _ in range(32)] for _ in chosen],
                documents=[NOTES[number % len(NOTES)][0] for number in chosen],
                metadatas=[{"topic": NOTES[number % len(NOTES)][1], "page": number // 4} for number in chosen],
            )
    for number, (text, topic) in enumerate(NOTES * 2):
        path = f"/users/default/avatars/ada/vectorstore_data/{topic}-{number}.md?used={str(number % 3 != 1).lower()}"
        assert gateway.admin("PUT", path, content=f"# {topic}\n\n{text}\n").status_code == 201
    gateway.snapshot("before the new term")
    lectures, until = client.get_collection("lectures", embedding_function=None), time.monotonic() + WRITING_S
    client.delete_collection("questions")
    while time.monotonic() < until:
        ids = [f"lectures-{numbers.randrange(6000):04}" for _ in range(numbers.randrange(1, 60))]
        lectures.upsert(ids=list(set(ids)), embeddings=[[numbers.random() for _ in range(32)] for _ in set(ids)])
        time.sleep(numbers.random() * 2)
    gateway.admin("POST", f"/snapshot/{gateway.snapshot('after the lectures')['id']}/verify")


@contextmanager
def readers(gateway: Gateway) -> Iterator[None]:
    """Requests, so that there is something to see."""
    collection, ended = gateway.client().get_collection("handbook", embedding_function=None), threading.Event()

    def read() -> None:
        while not ended.wait(random.random() * 0.2):
            collection.count()

    thread = threading.Thread(target=read)
    thread.start()
    yield
    ended.set()
    thread.join()


def take(page: Page, name: str) -> None:
    """Keep what the page shows."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as picture:
        picture.convert("RGB").save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size >> 10} KB")


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    env = {"GATEWAY_EMBEDDING": "words_for_tests", "GATEWAY_EMBEDDING_MODULE": "tests.word_embedding"}
    with gateway_process(GATEWAY_JOURNAL_INTERVAL_S="1", **env) as gateway, sync_playwright() as playwright:
        fill(gateway.start())
        browser = playwright.chromium.launch(executable_path=os.environ["CONSOLE_BROWSER"])
        page = browser.new_context(viewport={"width": 1440, "height": 810}, locale="en-GB").new_page()
        page.set_default_timeout(120_000)
        page.goto(f"{gateway.url}/console")
        page.get_by_label("Key").fill(ADMIN_TOKEN)
        page.get_by_role("button", name="Sign in").click()
        page.locator("#page").get_by_text("after the lectures").wait_for()
        with readers(gateway):
            page.wait_for_timeout(READING_S * 1000)
            take(page, "console-overview")
        page.get_by_role("link", name="Timeline").click()
        page.get_by_role("button", name="Choose: Snapshot").nth(1).click()
        page.get_by_role("button", name="Compare with now").click()
        page.get_by_role("region", name="Collections then and now").wait_for()
        take(page, "console-timeline")
        page.get_by_role("link", name="Collections").click()
        page.get_by_role("link", name="handbook").click()
        page.locator(".record").first.wait_for()
        take(page, "console-collection")
        page.get_by_role("link", name="Documents").click()
        page.get_by_role("link", name="ada").click()
        page.get_by_role("button", name="Train").click()
        page.get_by_role("region", name="Documents of the training").wait_for()
        take(page, "console-documents")
        browser.close()
        gateway.stop()


if __name__ == "__main__":
    main()
