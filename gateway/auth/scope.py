"""Roles and scopes: what a key may do, and with what. Pure.

Patterns know `*` (anything, also nothing) and `?` (one character); all else means itself, and case matters. Of a
tenant, a database and a collection each must match one pattern. None stands for no restriction.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


class Role(IntEnum):
    """Each may do what those before may."""

    READER = 1
    WRITER = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Names:
    """A choice of names."""

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
    """What a key may see."""

    tenants: Names = Names()
    databases: Names = Names()
    collections: Names = Names()

    @property
    def everything(self) -> bool:
        return self.tenants.everything and self.whole_tenants

    @property
    def whole_tenants(self) -> bool:
        """Whether all of a tenant in scope is in scope."""
        return self.databases.everything and self.collections.everything

    def sees_database(self, tenant: str, database: str) -> bool:
        return tenant in self.tenants and database in self.databases

    def sees(self, tenant: str, database: str, collection: str) -> bool:
        return self.sees_database(tenant, database) and collection in self.collections


EVERYTHING = Scope()


def _as_regex(pattern: str) -> str:
    """In time that grows with the name, not with a power of it: whoever asks chooses the name, and how long it is.

    Between two stars the first place that fits is always right, so that none is tried twice (`(?>…)`).
    """
    first, *rest = ("".join("." if each == "?" else re.escape(each) for each in part) for part in pattern.split("*"))
    if not rest:
        return first
    *between, last = rest
    return first + "".join(f"(?>.*?{part})" for part in between if part) + f".*{last}"
