"""Acknowledgements of a whole gateway, on a store whose requests a test delays or fails."""

import concurrent.futures
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.gateway_process import Gateway, gateway_process
from tests.servers import S3Server, faults
from tests.store_faults import FaultProxy, Rule

BASE = "/api/v2/tenants/default_tenant/databases/default_database/collections"
GATE_TIMEOUT_S = 3
DELAY_S = 0.6
STORED, LOCAL = {"X-Gateway-Ack": "stored"}, {"X-Gateway-Ack": "local"}


class Served:
    """A gateway with one collection, and the proxy between it and its store."""

    def __init__(self, gateway: Gateway, proxy: FaultProxy) -> None:
        self.gateway, self.proxy = gateway, proxy
        made = httpx.post(gateway.url + BASE, json={"name": "notes"}, timeout=60)
        self.path = f"{BASE}/{made.json()['id']}"
        # The first write that is stored waits for a snapshot, too.
        gateway.until(lambda: self.write("first", STORED).status_code == 200, "a write is stored")

    def write(self, id_: str, headers: dict[str, str] | None = None) -> httpx.Response:
        record: dict[str, Any] = {"ids": [id_], "embeddings": [[1, 2, 3]]}
        return httpx.post(f"{self.gateway.url}{self.path}/upsert", json=record, headers=headers, timeout=60)

    def holds(self, *ids: str) -> bool:
        found = httpx.post(f"{self.gateway.url}{self.path}/get", json={"ids": ids, "include": []}, timeout=60)
        return sorted(found.json()["ids"]) == sorted(ids)

    def entries(self) -> int:
        """How many objects of the journal were put, or tried."""
        return sum(method == "PUT" and "journal/" in target for method, target in self.proxy.requests)

    def delay(self, delay_s: float = DELAY_S) -> None:
        self.proxy.rules = [Rule("delay", method="PUT", contains="journal/", delay_s=delay_s)]


def number(answer: httpx.Response) -> int:
    """The number in a position. Only tests may look at it."""
    return int(answer.headers["x-gateway-position"].rpartition("-")[2])


@pytest.fixture(scope="module")
def served(ministack: S3Server) -> Iterator[Served]:
    store = f"s3://{ministack.new_bucket('acknowledged')}"
    with faults(ministack.port) as proxy:
        env = ministack.env_behind(proxy)
        settings = {"GATEWAY_JOURNAL_INTERVAL_S": "1", "GATEWAY_GATE_TIMEOUT_S": str(GATE_TIMEOUT_S)}
        with gateway_process(GATEWAY_STORE=store, **settings, **env) as built:
            yield Served(built.start(), proxy)


def test_stored_waits_for_the_store_and_local_does_not(served: Served) -> None:
    """The position grows with each entry of the journal."""
    served.delay()
    numbers = []
    for turn in range(2):
        began = time.monotonic()
        answer = served.write(f"stored-{turn}", STORED)
        assert answer.status_code == 200, answer.text
        assert time.monotonic() - began >= DELAY_S
        numbers.append(number(answer))
    assert numbers[0] < numbers[1]
    took_s = []
    for turn in range(5):
        began = time.monotonic()
        answer = served.write(f"local-{turn}", LOCAL if turn % 2 else None)
        took_s.append(time.monotonic() - began)
        assert answer.status_code == 200
        assert number(answer) > numbers[1]
    assert min(took_s) < DELAY_S / 2


def test_many_stored_writes_share_few_objects(served: Served) -> None:
    """While one object is on its way the next one collects."""
    served.delay(0.3)
    before, ids = served.entries(), [f"shared-{each}" for each in range(96)]
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda id_: served.write(id_, STORED), ids))
    assert {answer.status_code for answer in answers} == {200}
    assert served.entries() - before <= len(ids) / 4
    assert served.holds(*ids)


def test_one_stored_write_waits_for_all_before_it(served: Served) -> None:
    """An import that writes with `local` and ends with `stored` knows that the store has everything."""
    served.delay()
    before = [number(served.write(f"import-{turn}")) for turn in range(10)]
    began = time.monotonic()
    last = number(served.write("import-last", STORED))
    assert time.monotonic() - began >= DELAY_S
    assert max(before) <= last
    assert before == sorted(before)


def test_503_while_the_store_is_away(served: Served) -> None:
    """After GATEWAY_GATE_TIMEOUT_S, with a position. The write is there, and others go on."""
    served.proxy.rules = [Rule("status", contains="journal/", status=503)]
    began = time.monotonic()
    answer = served.write("away", STORED)
    assert GATE_TIMEOUT_S <= time.monotonic() - began < 3 * GATE_TIMEOUT_S
    assert (answer.status_code, answer.json()["error"]) == (503, "NotStored")
    assert "it was applied" in answer.json()["message"]
    assert int(answer.headers["retry-after"]) > 0
    assert served.holds("away")
    assert number(served.write("away-local", LOCAL)) >= number(answer)
    served.proxy.rules = []
    served.gateway.until(lambda: served.write("back", STORED).status_code == 200, "the store is back")


def test_a_stop_answers_what_waits(served: Served) -> None:
    """SIGTERM while the object is on its way: the answer comes when it is stored."""
    served.delay(1.5)
    served.gateway.until(lambda: served.write("before", STORED).status_code == 200, "no object is on its way")
    before = served.entries()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(served.write, "at the end", STORED)
        served.gateway.until(lambda: served.entries() > before, "its object is on its way")
        assert served.gateway.stop() == 0
        assert waiting.result().status_code == 200
