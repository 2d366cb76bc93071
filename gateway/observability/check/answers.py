"""What a rule answers, and the report of all rules. Its fields have the names that `chroma-gateway doctor` uses."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, get_args

from pydantic import AwareDatetime, BaseModel, Field

from gateway.observability.check.facts import Facts, Missing, NotKnown

_NAMED = 5


Status = Literal["pass", "unknown", "warn", "fail"]
"""In rising order of urgency."""
_ORDER = get_args(Status)


class Answer(NamedTuple):
    """What was seen, and the way out. `where` names what it is about, such as a few collections."""

    status: Status
    message: str
    advice: str = ""
    where: str = ""


def passed(message: str) -> Answer:
    return Answer("pass", message)


def warned(message: str, advice: str, where: str = "") -> Answer:
    return Answer("warn", message, advice, where)


def failed(message: str, advice: str, where: str = "") -> Answer:
    return Answer("fail", message, advice, where)


def unknown(message: str, advice: str = "") -> Answer:
    return Answer("unknown", message, advice)


def named(names: Sequence[str]) -> str:
    """A few of `names`, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


Rule = Callable[[Facts], Answer]


def code_of(rule: Rule) -> str:
    """The stable name of a rule in JSON and documentation."""
    return rule.__name__.replace("_", "-")


class CheckFinding(BaseModel):
    code: str = Field(description="the rule; docs/production-checklist.md says what it looks at")
    status: Status = Field(description="`unknown`: it could not be looked up, which is not a pass")
    where: str = Field(description="what it is about, such as a few collections; empty if the whole gateway")
    message: str = Field(description="what was seen")
    advice: str = Field(description="the way out; empty for a pass")


class CheckReport(BaseModel):
    """The findings of the production check."""

    status: Status = Field(description="the worst of the findings")
    at: AwareDatetime = Field(description="when it was looked up")
    duration_s: float = Field(description="how long that took")
    collections: int | None = Field(description="how many there are; null if they cannot be read")
    collections_looked_at: int = Field(description="how many were looked at: those with the most records")
    findings: list[CheckFinding] = Field(description="one for each rule, the worst first")


def findings_of(rules: Iterable[Rule], facts: Facts) -> list[CheckFinding]:
    """What `rules` say of `facts`, the worst first, else in their order."""
    found = [CheckFinding(code=code_of(each), **_answer(each, facts)._asdict()) for each in rules]
    return sorted(found, key=lambda each: -_ORDER.index(each.status))


def report_of(rules: Iterable[Rule], facts: Facts, duration_s: float) -> CheckReport:
    """The report of `rules` on `facts`, which took `duration_s` to look up."""
    findings, collections = findings_of(rules, facts), facts.collections
    return CheckReport(
        status=max((each.status for each in findings), key=_ORDER.index),
        at=facts.now,
        duration_s=duration_s,
        collections=None if isinstance(collections, Missing) else collections.total,
        collections_looked_at=0 if isinstance(collections, Missing) else len(collections.looked_at),
        findings=findings,
    )


def _answer(rule: Rule, facts: Facts) -> Answer:
    try:
        return rule(facts)
    except NotKnown as error:
        return unknown(f"it could not be looked up: {error}", "look again when that is settled")
