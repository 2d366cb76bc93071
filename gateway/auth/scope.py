"""Roles and scopes: what a key may do, and to what. Pure.

In a pattern `*` matches any characters or none, and `?` matches one. All other characters match themselves; case
matters. The names of a tenant, of a database and of a collection must each match one pattern. None is no restriction.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


class Role(IntEnum):
    """Each role may do what the roles before it may."""

    READER = 1
    WRITER = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Names:
    """A set of names, given by patterns."""

    patterns: tuple[str, ...] | None = None
    _compiled: re.Pattern[str] | None = None

    @classmethod
    def of(cls, patterns: Sequence[str] | None) -> "Names":
        if patterns is None or "*" in patterns:
            return cls()
        return cls(tuple(patterns), re.compile("|".join(map(_as_regex, patterns)) or r"(?!)", re.DOTALL))

    def __contains__(self, name: object) -> bool:
        return self._compiled is None or (isinstance(name, str) and self._compiled.fullmatch(name) is not None)

    @property
    def everything(self) -> bool:
        return self._compiled is None


class Scope(NamedTuple):
    """What a key sees. All else does not exist for it."""

    tenants: Names = Names()
    databases: Names = Names()
    collections: Names = Names()

    @property
    def everything(self) -> bool:
        return self.tenants.everything and self.whole_tenants

    @property
    def whole_tenants(self) -> bool:
        """Whether each tenant in scope is in scope with all its databases and collections."""
        return self.databases.everything and self.collections.everything

    def sees_database(self, tenant: str, database: str) -> bool:
        return tenant in self.tenants and database in self.databases

    def sees(self, tenant: str, database: str, collection: str) -> bool:
        return self.sees_database(tenant, database) and collection in self.collections


EVERYTHING = Scope()


def _as_regex(pattern: str) -> str:
    """Linear time: names are attacker-controlled, so no backtracking.

    Between two stars the first match is always right, so an atomic group (`(?>…)`) tries no other.
    """
    first, *rest = ("".join("." if each == "?" else re.escape(each) for each in part) for part in pattern.split("*"))
    if not rest:
        return first
    *between, last = rest
    return first + "".join(f"(?>.*?{part})" for part in between if part) + f".*{last}"
