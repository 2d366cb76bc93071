"""All rules, in the order in which they are shown."""

from gateway.observability.check import access_rules, capacity_rules, collection_rules, saving_rules
from gateway.observability.check.answers import Rule

RULES: tuple[Rule, ...] = (
    *saving_rules.RULES,
    *access_rules.RULES,
    *collection_rules.RULES,
    *capacity_rules.RULES,
)
