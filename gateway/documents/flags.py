"""The flags of a folder as bytes: a JSON object of name to whether the document is used. Pure."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from gateway.errors import Conflict

# The flag of a document that has none.
DEFAULT = True

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse(data: bytes, where: str) -> dict[str, bool]:
    """Return the flags in `data`. "yes", "no", 1 and 0 are accepted, because people edit the file; null is skipped.

    Raises Conflict, naming `where`, for any other value. A guess could train a document that was meant to be left
    out, and overwriting the file would lose what was meant.
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
        raise _unreadable(where, f"the flag of {name[:80]!r} is {str(value)[:40]!r}, which is neither true nor false")
    return flag


def render(flags: Mapping[str, bool]) -> bytes:
    """Return `flags` as indented JSON. Equal flags give equal bytes."""
    return json.dumps(dict(sorted(flags.items())), ensure_ascii=False, indent=1).encode() + b"\n"


def repaired(flags: Mapping[str, bool], names: Iterable[str]) -> dict[str, bool]:
    """Return the flags of exactly the documents `names`, with the default where there is none."""
    return {name: flags.get(name, DEFAULT) for name in names}


def _unreadable(where: str, why: str) -> Conflict:
    return Conflict(
        f"the flags in {where} cannot be read: {why}", "repair the file, or delete it: then all flags are true"
    )
