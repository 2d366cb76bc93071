"""What would be lost with the disk, and whether a backup was ever verified."""

from datetime import timedelta

from gateway.lease.probe import Conditions
from gateway.observability.advice import advice_on
from gateway.observability.check.answers import Answer, failed, named, passed, unknown, warned
from gateway.observability.check.facts import Facts, known
from gateway.storage.registry import outlives_container

# As the warning and the alert of a journal that is behind (`gateway.vectorstore`).
_LAG_WARNING_S, _LAG_FAILURE_S = 10, 60
_VERIFIED_WITHIN = timedelta(days=30)
_HOUR_S = 3600


def ready(facts: Facts) -> Answer:
    """Whether the data are served, without a warning in `/readyz`."""
    readiness = facts.readiness
    if not readiness.ready:
        return failed(f"the gateway is not ready: {readiness.reason}", "GET /readyz says how far it is")
    if readiness.warnings:
        return warned("; ".join(readiness.warnings), " ".join(dict.fromkeys(map(advice_on, readiness.warnings))))
    return passed("everything is served, and nothing is wrong")


def store(facts: Facts) -> Answer:
    """Whether the store is somewhere else than the data."""
    saving = facts.saving
    if outlives_container(saving.store):
        return passed(f"{saving.store} outlives this machine")
    if saving.same_disk is None:
        return unknown(f"{saving.store} cannot be looked at", "see whether the store's directory exists")
    if saving.same_disk:
        return failed(
            f"{saving.store} is on the disk of the data: a lost disk takes both",
            "set GATEWAY_STORE to s3://…, or to a mounted disk that outlives this one",
        )
    return passed(f"{saving.store} is on another file system than the data")


def store_reachable(facts: Facts) -> Answer:
    """Whether the store answers."""
    snapshots = known(facts.snapshots)
    return passed("the store answers" if snapshots else "the store answers; it has no snapshot yet")


def data_loss(facts: Facts) -> Answer:
    """How much is lost with the disk: the recovery point objective (RPO)."""
    saving = facts.saving
    if saving.journal_on:
        if saving.journal_lag_s > _LAG_FAILURE_S or saving.journal_problem:
            answer = failed if saving.journal_lag_s > _LAG_FAILURE_S else warned
            why = f": {saving.journal_problem}" if saving.journal_problem else ""
            return answer(
                f"the journal is {saving.journal_lag_s:.0f} s behind, and so much would be lost{why}",
                "bring the store back; `chroma-gateway store check` shows what is wrong with it",
            )
        if saving.journal_lag_s > _LAG_WARNING_S:
            return warned(f"the journal is {saving.journal_lag_s:.0f} s behind", "see whether the store is slow")
        if saving.acknowledges_stored:
            return passed("nothing that was acknowledged is lost: GATEWAY_ACK is `stored`")
        return passed(f"about {max(1, saving.journal_interval_s):g} s of writes: the journal is on")
    if saving.schedule is None:
        return failed(
            "everything since the last snapshot that somebody took: the journal is off and nothing is scheduled",
            "set GATEWAY_JOURNAL_INTERVAL_S=1, or GATEWAY_SNAPSHOT_INTERVAL_S",
        )
    often = saving.interval_s and saving.interval_s <= _HOUR_S
    return (passed if often else _rarely)(
        f"everything since the last scheduled snapshot ({saving.schedule}): the journal is off"
    )


def _rarely(message: str) -> Answer:
    return warned(message, "set GATEWAY_JOURNAL_INTERVAL_S=1, or take snapshots at least every hour")


def backup(facts: Facts) -> Answer:
    """Whether there is a snapshot, and whether a newest one was verified in the last 30 days."""
    snapshots, verified = known(facts.snapshots), known(facts.verified)
    if not snapshots:
        return failed("there is no snapshot", "take one: `chroma-gateway snapshot`; then `chroma-gateway verify`")
    bad = [each.id for each in snapshots if each.state == "damaged"]
    if verified is not None and not verified[1].ok:
        bad.append(verified[0])
    if bad:
        return failed(
            "a snapshot cannot be restored",
            "take another one and verify it; `chroma-gateway show` says why",
            named(bad),
        )
    if verified is None:
        return warned("no snapshot was ever verified", "run `chroma-gateway verify latest`, best every day or week")
    snapshot_id, result = verified
    if facts.now - result.at > _VERIFIED_WITHIN:
        return warned(
            f"{snapshot_id} was verified {(facts.now - result.at).days} days ago, and none since",
            "run `chroma-gateway verify latest`, best every day or week",
        )
    return passed(f"{snapshot_id} was verified at {result.at:%Y-%m-%d %H:%M} UTC, level {result.level}")


def retention(facts: Facts) -> Answer:
    """Whether scheduled snapshots end some day."""
    saving = facts.saving
    if saving.schedule is None:
        return passed("no snapshots are scheduled, so none pile up")
    if saving.keeps_some and saving.may_delete:
        return passed("a GATEWAY_KEEP_… setting says which snapshots stay")
    if not saving.may_delete:
        return passed("nothing is deleted here, as GATEWAY_STORE_NEVER_DELETE says")
    return warned(
        f"snapshots are taken ({saving.schedule}) and all of them are kept: the store grows without an end",
        "set GATEWAY_KEEP_LAST, GATEWAY_KEEP_DAILY or another GATEWAY_KEEP_… setting",
    )


def one_writer(facts: Facts) -> Answer:
    """Whether this gateway is the writer, and whether the store keeps a second one out."""
    saving = facts.saving
    if saving.role != "writer":
        return failed(f"this gateway does not have the lease: it is {saving.role}", "see the page on two gateways")
    if saving.conditional_writes is None:
        return unknown("the store's conditional writes were not probed yet", "look again in a minute")
    if saving.conditional_writes != Conditions.KEPT.value:
        return warned(
            f"conditional writes are {saving.conditional_writes}: a second gateway on this store is not kept out",
            "use a store that has them, or make sure that the platform never runs two",
        )
    return passed("this gateway has the lease, and the store keeps others out")


RULES = (ready, store, store_reachable, data_loss, backup, retention, one_writer)
