"""Flags as bytes: one JSON object that says of each document by its name whether it is used. Pure."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from gateway.errors import Conflict

# What a document is that nobody said anything of.
DEFAULT = True

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse(data: bytes, where: str) -> dict[str, bool]:
    """The flags in `data`. What people write by hand for true and false is understood, null is nothing said.

    Raises Conflict, naming `where`, for what says neither: guessing would train what nobody wanted, and
    writing over it would lose what somebody meant.
    """
    try:
        entries = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise _unreadable(where, f"it is not JSON: {error}") from None
    if not isinstance(entries, dict):
        raise _unreadable(where, "it is not a JSON object")
    return {name: _flag(value, name, where) for name, value in entries.items() if value is not None}


def _flag(value: Any, name: str, where: str) -> bool:
    flag = _WORDS.get(str(value).strip().lower()) if isinstance(value, bool | int | str) else None
    if flag is None:
        raise _unreadable(where, f"it says {str(value)[:40]!r} of {name[:80]!r}, which is neither true nor false")
    return flag


def render(flags: Mapping[str, bool]) -> bytes:
    """The bytes of `flags`: the same for the same flags, and pleasant to read."""
    return json.dumps(dict(sorted(flags.items())), ensure_ascii=False, indent=1).encode() + b"\n"


def repaired(flags: Mapping[str, bool], names: Iterable[str]) -> dict[str, bool]:
    """The flags of exactly the documents that exist."""
    return {name: flags.get(name, DEFAULT) for name in names}


def _unreadable(where: str, why: str) -> Conflict:
    return Conflict(f"the flags in {where} cannot be read: {why}", "mend that file, or delete it: all are true then")
