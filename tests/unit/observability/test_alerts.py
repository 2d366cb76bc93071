"""Failures reach a person: each once, until it is accepted, and without the URL in the log."""

import asyncio
import re

import pytest
import structlog

from gateway.observability import alerts
from gateway.observability.alerts import EVENTS, Alerts
from tests.documentation import DOCS
from tests.webhook import webhook

SOURCE = {"where": "here:1", "user_id": "default", "store": "file:///store"}


async def test_an_alert_says_what_failed_where_and_what_to_do() -> None:
    """In JSON, with one sentence for people."""
    async with webhook() as (url, posted):
        told = Alerts(url, SOURCE)
        told.send("snapshot-failed", "put s3://b/x: AccessDenied", "grant s3:PutObject")
        await told.close(10)
    body = posted.get_nowait()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", body.pop("at"))
    assert body.pop("text") == "Chroma Gateway here:1: a snapshot failed. put s3://b/x: AccessDenied"
    expected = {"event": "snapshot-failed", "message": "put s3://b/x: AccessDenied", "hint": "grant s3:PutObject"}
    assert body == expected | SOURCE


@pytest.mark.parametrize("refusal", [0, 429, 500, 503])
async def test_it_is_sent_again_until_it_is_accepted(refusal: int) -> None:
    """The same alert. Its URL is in no line of the log."""
    with structlog.testing.capture_logs() as lines:
        async with webhook(refusal, refusal, 204) as (url, posted):
            told = Alerts(url, SOURCE, pauses_s=(0, 0, 0))
            told.send("lease-lost", "another gateway")
            await told.close(10)
    assert posted.qsize() == 3
    assert posted.get_nowait() == posted.get_nowait()
    assert [line["log_level"] for line in lines] == ["warning", "warning"]
    assert "secret" not in str(lines)


async def test_it_is_given_up_when_it_is_of_no_use() -> None:
    """At once where the receiver does not want it, otherwise after the last pause. That is an error in the log."""
    for statuses, attempts in (((404,), 1), ((500,) * 9, 3)):
        with structlog.testing.capture_logs() as lines:
            async with webhook(*statuses) as (url, posted):
                told = Alerts(url, SOURCE, pauses_s=(0, 0))
                told.send("lease-lost", "another gateway")
                await told.close(10)
        assert posted.qsize() == attempts
        assert lines[-1]["log_level"] == "error"


async def test_an_end_does_not_wait_for_a_receiver_that_is_away() -> None:
    """What was not accepted by then is dropped. Sending never waits."""
    async with webhook(*(500,) * 9) as (url, posted):
        told = Alerts(url, SOURCE, pauses_s=(60,))
        for _ in range(200):
            told.send("lease-lost", "another gateway")
        async with asyncio.timeout(20):
            await posted.get()
            await told.close(0.1)


async def test_without_a_url_nothing_is_sent() -> None:
    """And nothing fails."""
    told = Alerts(None, SOURCE)
    told.send("lease-lost", "another gateway")
    await told.close(1)


async def test_a_state_is_told_once_each_time_that_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it has lasted for two looks."""
    looks = iter(["", "torn", "", "torn", "torn worse", "torn worse", "", "torn", "torn"])
    over = asyncio.Event()
    told, sent = Alerts(None, SOURCE), list[tuple[str, str]]()

    def problems() -> dict[str, str]:
        found = next(looks, None)
        if found is None:
            over.set()
            return {}
        return {"index-torn": found} if found else {}

    monkeypatch.setattr(alerts, "_LOOK_EVERY_S", 0)

    def send(event: str, message: str) -> bool:
        sent.append((event, message))
        return True

    monkeypatch.setattr(told, "send", send)
    watching = asyncio.create_task(told.watch(problems))
    await asyncio.wait_for(over.wait(), 10)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert sent == [("index-torn", "torn worse"), ("index-torn", "torn")]


def test_every_event_is_documented() -> None:
    """docs/monitoring.md has exactly these."""
    section = (DOCS / "monitoring.md").read_text().partition("## Alerts without Prometheus")[2].partition("\n## ")[0]
    assert re.findall(r"^- `([a-z-]+)`: ", section, re.MULTILINE) == [*EVENTS]
