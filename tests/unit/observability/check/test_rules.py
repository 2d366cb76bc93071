"""Each rule of the production check: what it says of facts that are right, and of those that are not."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from gateway.chroma.collection_facts import EmbeddingFunction
from gateway.chroma.segments import IndexSettings
from gateway.observability.check.access_rules import keys, limits, open_loopback, tls
from gateway.observability.check.answers import Rule, Status, code_of, findings_of, report_of
from gateway.observability.check.capacity_rules import (
    alerts,
    batches,
    clients,
    disk,
    log_backlog,
    memory,
    versions,
)
from gateway.observability.check.collection_rules import (
    dimension,
    distance,
    embedding_function,
    filters,
    index_settings,
    metadata,
)
from gateway.observability.check.facts import Facts, Monitoring
from gateway.observability.check.rules import RULES
from gateway.observability.check.saving_rules import (
    backup,
    data_loss,
    one_writer,
    ready,
    retention,
    store,
    store_reachable,
)
from tests.documentation import DOCS, rows
from tests.unit.observability.check.clean_facts import (
    CLEAN,
    MISSING,
    NOW,
    changed,
    collection,
    of,
    queried,
    snapshot,
    verified,
)

LAPTOP = {
    "host": "127.0.0.1",
    "is_loopback": True,
    "is_closed": False,
    "limited": False,
    "forwarded": 0,
    "encrypted": 0,
}
DEFAULT = EmbeddingFunction("default")
L2 = IndexSettings(space="l2")
LARGE = IndexSettings("cosine", 32, 400, 200)

CASES: list[tuple[Rule, Status, dict[str, Any]]] = [
    (ready, "pass", {}),
    (ready, "warn", {"readiness": {"warnings": ("the disk is nearly full",)}}),
    (ready, "fail", {"readiness": {"ready": False, "reason": "Chroma is starting"}}),
    (store, "pass", {}),
    (store, "pass", {"saving": {"store": "file:///mnt/store", "same_disk": False}}),
    (store, "fail", {"saving": {"store": "file://./var/store", "same_disk": True}}),
    (store, "unknown", {"saving": {"store": "file:///gone", "same_disk": None}}),
    (store_reachable, "pass", {}),
    (store_reachable, "unknown", {"snapshots": MISSING}),
    (data_loss, "pass", {}),
    (data_loss, "pass", {"saving": {"acknowledges_stored": True}}),
    (data_loss, "warn", {"saving": {"journal_lag_s": 15}}),
    (data_loss, "warn", {"saving": {"journal_lag_s": 2, "journal_problem": "the store is away"}}),
    (data_loss, "fail", {"saving": {"journal_lag_s": 90, "journal_problem": "the store is away"}}),
    (data_loss, "pass", {"saving": {"journal_on": False}}),
    (data_loss, "warn", {"saving": {"journal_on": False, "interval_s": 86_400}}),
    (data_loss, "warn", {"saving": {"journal_on": False, "interval_s": 0, "schedule": "GATEWAY_SNAPSHOT_CRON=@daily"}}),
    (data_loss, "fail", {"saving": {"journal_on": False, "interval_s": 0, "schedule": None}}),
    (backup, "pass", {}),
    (backup, "pass", {"snapshots": (snapshot(),) * 50}),
    (backup, "fail", {"snapshots": (), "verified": None}),
    (backup, "warn", {"verified": None}),
    (backup, "warn", {"verified": verified(age=timedelta(days=31))}),
    (backup, "fail", {"verified": verified(ok=False)}),
    (backup, "fail", {"snapshots": (snapshot(), snapshot(state="damaged"))}),
    (backup, "unknown", {"snapshots": MISSING, "verified": MISSING}),
    (retention, "pass", {}),
    (retention, "pass", {"saving": {"schedule": None, "interval_s": 0, "keeps_some": False}}),
    (retention, "pass", {"saving": {"keeps_some": False, "may_delete": False}}),
    (retention, "warn", {"saving": {"keeps_some": False}}),
    (one_writer, "pass", {}),
    (one_writer, "warn", {"saving": {"conditional_writes": "broken"}}),
    (one_writer, "unknown", {"saving": {"conditional_writes": None}}),
    (one_writer, "fail", {"saving": {"role": "reader"}}),
    (keys, "pass", {}),
    (keys, "pass", {"access": LAPTOP}),
    (keys, "fail", {"access": {"is_closed": False}}),
    (keys, "fail", {"access": {**LAPTOP, "forwarded": 1}}),
    (open_loopback, "pass", {}),
    (open_loopback, "pass", {"access": {**LAPTOP, "is_closed": True}}),
    (open_loopback, "warn", {"access": LAPTOP}),
    (tls, "pass", {}),
    (tls, "pass", {"access": LAPTOP}),
    (tls, "warn", {"access": {"clear": 1}}),
    (tls, "warn", {"access": {"clear": 1, "private": 1}}),
    (tls, "unknown", {"access": {"private": 1}}),
    (tls, "unknown", {"access": {"encrypted": 0, "forwarded": 0}}),
    (tls, "unknown", {"access": {"encrypted": 0}}),
    (limits, "pass", {}),
    (limits, "pass", {"access": LAPTOP}),
    (limits, "pass", {"access": {"limited": False}}),
    (limits, "warn", {"access": {"unlimited": ("app",)}}),
    (limits, "warn", {"access": {"limited": False, "is_closed": False}}),
    (embedding_function, "pass", {}),
    (embedding_function, "pass", of(collection(function=None))),
    (embedding_function, "pass", of(collection(function=DEFAULT, dimension=None, records=0))),
    (embedding_function, "pass", of(collection(function=DEFAULT))),  # the client makes its embeddings itself
    (embedding_function, "fail", of(collection(function=DEFAULT, dimension=384))),
    (embedding_function, "unknown", {"collections": MISSING}),
    (dimension, "pass", {}),
    (dimension, "pass", of(collection(function=EmbeddingFunction("openai", "a-newer-one"), dimension=99))),
    (
        dimension,
        "pass",
        of(collection(function=EmbeddingFunction("openai", "text-embedding-3-small", 64), dimension=64)),
    ),
    (dimension, "pass", of(collection(function=None, dimension=99))),
    (dimension, "warn", of(collection(dimension=3072))),
    (dimension, "warn", of(collection(function=DEFAULT, dimension=1536))),
    (distance, "pass", {}),
    (distance, "pass", of(collection(settings=L2, norms=(1.0, 7.5) * 8))),
    (distance, "pass", of(collection(settings=L2, has_documents=False))),
    (distance, "pass", of(collection(settings=L2, norms=(1.0,) * 3))),
    (distance, "warn", of(collection(settings=L2))),
    (index_settings, "pass", {}),
    (index_settings, "pass", of(collection(records=499_999))),
    (index_settings, "pass", of(collection(records=500_000, settings=LARGE))),
    (index_settings, "pass", of(collection(settings=IndexSettings("cosine", ef_search=5)))),
    (index_settings, "warn", of(collection(records=500_000))),
    (index_settings, "warn", of(collection(records=10_000, settings=IndexSettings("cosine", ef_search=5)))),
    (index_settings, "warn", of(collection(settings=IndexSettings("cosine", neighbors=64, ef_construction=32)))),
    (metadata, "pass", {}),
    (metadata, "pass", of(collection(has_metadata=False))),  # others than those that were read have some
    (metadata, "pass", of(collection(records=99, keys=(), has_metadata=False))),
    (metadata, "warn", of(collection(keys=(), has_metadata=False))),
    (metadata, "warn", of(collection(keys=None, has_metadata=False))),
    (filters, "pass", {}),
    (filters, "pass", {"queried": ()}),
    (filters, "pass", {"queried": (queried(19, 19),)}),
    (filters, "pass", {"queried": (queried(100, 79),)}),
    (filters, "pass", {"queried": (queried(100, 100, oldest=NOW - timedelta(minutes=5)),)}),  # it was empty at first
    (filters, "pass", {"queried": (queried(100, 100, records=0, oldest=None),)}),
    (filters, "warn", {"queried": (queried(20, 16),)}),
    (filters, "unknown", {"queried": MISSING}),
    (memory, "pass", {}),
    (memory, "pass", {"memory_bytes": 512 << 20}),
    (memory, "warn", {"disk": {"index_bytes": int(2.5 * (1 << 30))}}),
    (memory, "fail", {"disk": {"index_bytes": 4 << 30}}),
    (memory, "unknown", {"memory_bytes": MISSING}),
    (disk, "pass", {}),
    (disk, "warn", {"disk": {"free_bytes": 1 << 29}}),
    (disk, "fail", {"disk": {"free_bytes": 100 << 20}}),
    (disk, "fail", {"disk": {"free_bytes": 1 << 29, "sqlite_bytes": 3 << 30}}),
    (disk, "unknown", {"disk": MISSING}),
    (log_backlog, "pass", {}),
    (log_backlog, "pass", {"disk": {"log_rows": 1_000_000, "collections": 1000}}),
    (log_backlog, "warn", {"disk": {"log_rows": 200_000}}),
    (
        log_backlog,
        "pass",
        {"disk": {"log_rows": 200_000}, **of(collection(settings=IndexSettings(sync_threshold=100_000)))},
    ),
    (batches, "pass", {}),
    (batches, "pass", {"writes": {"requests": 0, "rows": 0, "busiest": 0}}),
    (batches, "pass", {"writes": {"requests": 999, "rows": 999}}),
    (batches, "pass", {"writes": {"rows": 1000, "busiest": 299}}),  # a few at a time, as they come
    (batches, "pass", {"writes": {"rows": 2000}}),
    (batches, "warn", {"writes": {"rows": 1000}}),
    (batches, "warn", {"writes": {"rows": 1000}, "max_batch": MISSING}),
    (batches, "unknown", {"writes": MISSING}),
    (versions, "pass", {}),
    (versions, "fail", {"versions": {"chroma": "1.4.0"}}),
    (versions, "fail", {"versions": {"chroma": "1.6.0"}}),
    (versions, "pass", {"versions": {"chroma": "1.5.10"}}),
    (versions, "fail", {"snapshots": (snapshot(chroma_version="1.5.10"),)}),
    (versions, "pass", {"snapshots": (snapshot(chroma_version="1.5.8"),)}),
    (versions, "pass", {"snapshots": (snapshot(chroma_version=None),)}),
    (clients, "pass", {}),
    (clients, "pass", {"clients": {"python": {}}}),
    (clients, "warn", {"clients": {"python": {"1.5.9": 5, "0.6.3": 1}}}),
    (clients, "warn", {"clients": {"retired": 3}}),
    (alerts, "pass", {}),
    (alerts, "pass", {"monitoring": Monitoring(False, 15.0)}),
    (alerts, "unknown", {"monitoring": Monitoring(False, None), "uptime_s": 60}),
    (alerts, "warn", {"monitoring": Monitoring(False, None)}),
    (alerts, "warn", {"monitoring": Monitoring(False, 3600.0)}),
]


def said(rule: Rule, facts: Facts) -> str:
    (finding,) = findings_of([rule], facts)
    return finding.message


@pytest.mark.parametrize(
    ("rule", "status", "facts"),
    CASES,
    ids=[f"{code_of(rule)}-{status}-{i}" for i, (rule, status, _) in enumerate(CASES)],
)
def test_each_rule_answers_as_it_should(rule: Rule, status: Status, facts: dict[str, Any]) -> None:
    """What is wrong is told with a way out. What is right raises no alarm."""
    (finding,) = findings_of([rule], changed(**facts))
    assert finding.status == status, finding.message
    assert finding.message
    assert bool(finding.advice) is (status != "pass")


def test_every_rule_was_tried_with_both_answers() -> None:
    """A rule that can only pass, or only complain, says nothing."""
    tried = {rule: {status for other, status, _ in CASES if other is rule} for rule in RULES}
    assert all("pass" in statuses and len(statuses) > 1 for statuses in tried.values())


def test_nothing_is_wrong_with_clean_facts() -> None:
    report = report_of(RULES, CLEAN, 0.1)
    assert {each.code: each.status for each in report.findings} == {code_of(rule): "pass" for rule in RULES}
    assert (report.status, report.collections, report.collections_looked_at) == ("pass", 1, 1)


def test_the_worst_comes_first_and_is_the_status_of_the_report() -> None:
    report = report_of(RULES, changed(snapshots=MISSING, access={"is_closed": False}), 0.1)
    statuses = [each.status for each in report.findings]
    assert report.status == statuses[0] == "fail"
    assert statuses == sorted(statuses, key=("fail", "warn", "unknown", "pass").index)


def test_what_could_not_be_looked_up_says_why() -> None:
    assert said(backup, changed(snapshots=MISSING)) == "it could not be looked up: the store does not answer"


def test_many_collections_are_one_finding_that_names_a_few() -> None:
    facts = changed(**of(*[collection(function=DEFAULT, dimension=384)] * 12))
    (finding,) = findings_of([embedding_function], facts)
    assert finding.message.startswith("12 collection(s)")
    assert finding.where == "notes, notes, notes, notes, notes and 7 more"


def test_a_finding_says_how_many_collections_were_looked_at() -> None:
    facts = changed(collections={"total": 10_000})
    assert said(metadata, facts).endswith("(the 1 largest of 10000 looked at)")


def documented() -> Iterator[str]:
    for cells in rows(DOCS / "production-checklist.md"):
        if cells[0].startswith("`"):
            yield cells[0].strip("`")


def test_the_page_lists_the_rules() -> None:
    """docs/production-checklist.md has a row for each rule, no more and no less."""
    assert sorted(documented()) == sorted(map(code_of, RULES))
