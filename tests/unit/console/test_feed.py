"""The feed: one producer for all consoles, bounded, and gone with the last of them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.console import feed as feed_module
from gateway.console.feed import Feed
from gateway.errors import Overloaded, Unavailable


class Source:
    def __init__(self) -> None:
        self.made, self.beside = 0, 0
        self.error: Exception | None = None
        self.more: dict[str, Any] = {}

    async def make(self) -> dict[str, Any]:
        self.made += 1
        if self.error is not None:
            raise self.error
        return {"number": self.made, **self.more}

    async def watch(self) -> None:
        self.beside += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.beside -= 1


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def feed(source: Source) -> Feed:
    return Feed(source.make, source.watch, every_s=0.01)


def parsed(event: str) -> tuple[str, dict[str, Any]]:
    name, data, *_ = event.split("\n")
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


async def take(events: AsyncIterator[str], number: int) -> list[tuple[str, dict[str, Any]]]:
    return [parsed(await anext(events)) for _ in range(number)]


async def test_all_subscribers_get_the_same_events(feed: Feed, source: Source) -> None:
    """Each event is made once, however many consoles are open."""
    async with aclosing(feed.events("a key")) as first, aclosing(feed.events("a key")) as second:
        got = await asyncio.gather(take(first, 5), take(second, 5))
        assert got[0] == got[1] == [("overview", {"number": number}) for number in range(1, 6)]
        assert (source.made, source.beside, feed.subscribers) == (5, 1, 2)


async def test_nothing_is_made_without_a_subscriber(feed: Feed, source: Source) -> None:
    """The producer begins with the first and ends with the last, and begins again."""
    for _ in range(2):
        async with aclosing(feed.events("a key")) as events:
            await take(events, 1)
        await asyncio.sleep(0.03)
        assert (source.beside, feed.subscribers) == (0, 0)
    assert source.made == 2


async def test_nothing_is_queued_for_a_slow_subscriber(feed: Feed) -> None:
    """It gets the newest event next."""
    async with aclosing(feed.events("a key")) as slow, aclosing(feed.events("a key")) as fast:
        await take(slow, 1)
        await take(fast, 10)
        ((_, newest),) = await take(slow, 1)
        assert newest["number"] >= 10
        ((_, later),) = await take(slow, 1)
        assert later["number"] > newest["number"]


async def test_an_error_is_an_event(feed: Feed, source: Source) -> None:
    """And the next overview comes when it can be made again."""
    source.error = Unavailable("the store is away", "wait")
    async with aclosing(feed.events("a key")) as events:
        assert await take(events, 1) == [
            ("problem", {"error": "Unavailable", "message": "the store is away", "hint": "wait"})
        ]
        source.error = RuntimeError("a secret of the program")
        ((name, body),) = await take(events, 1)
        assert name == "problem"
        assert "secret" not in str(body)
        source.error = None
        assert (await take(events, 1))[0][0] == "overview"


async def test_what_is_gathered_beside_is_tried_again(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of it ends neither the feed nor the gathering."""
    monkeypatch.setattr(feed_module, "_AGAIN_S", 0.01)
    tries = 0

    async def gather() -> None:
        nonlocal tries
        tries += 1
        raise RuntimeError("an error that nobody expects")

    async with aclosing(Feed(source.make, gather, every_s=0.02).events("a key")) as events:
        await take(events, 5)
    assert tries > 1


async def test_what_has_no_form_in_json_does_not_end_the_feed(feed: Feed, source: Source) -> None:
    """Moments are RFC 3339. Anything else is an error like others."""
    source.more = {"at": datetime(2026, 11, 26, 20, 0, tzinfo=UTC)}
    async with aclosing(feed.events("a key")) as events:
        assert (await take(events, 1))[0][1]["at"] == "2026-11-26T20:00:00+00:00"
        source.more = {"at": object()}
        assert (await take(events, 1))[0][0] == "problem"
        source.more = {}
        assert (await take(events, 1))[0][0] == "overview"


async def test_the_number_of_subscribers_is_bounded(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is told to come later."""
    monkeypatch.setattr(feed_module, "MAX_SUBSCRIBERS", 1)
    feed.require_place("a key")
    async with aclosing(feed.events("a key")) as events:
        await take(events, 1)
        with pytest.raises(Overloaded):
            feed.require_place("a key")
    feed.require_place("a key")


async def test_one_key_does_not_take_all_places(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader with many streams keeps no admin out."""
    monkeypatch.setattr(feed_module, "MAX_OF_ONE_KEY", 1)
    async with aclosing(feed.events("a reader")) as events:
        await take(events, 1)
        with pytest.raises(Overloaded, match="with the key a reader"):
            feed.require_place("a reader")
        feed.require_place("an admin")
    feed.require_place("a reader")


async def test_a_closed_feed_ends_all_streams(source: Source) -> None:
    """At once, so that the process need not wait for open consoles; and none begins."""
    feed = Feed(source.make, source.watch, every_s=60)
    async with aclosing(feed.events("a key")) as events:
        await take(events, 1)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.02)
        feed.close()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(waiting, 1)
    with pytest.raises(Overloaded):
        feed.require_place("a key")
    await asyncio.sleep(0)
    assert source.beside == 0
