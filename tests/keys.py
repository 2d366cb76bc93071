"""Keys for tests: a keys file, and the tokens of those in it."""

import json
from pathlib import Path
from typing import Any

from gateway.auth.tokens import digest_of, id_of, new_token


def entry(name: str, role: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """A new token, and what a keys file says of it."""
    token = new_token()
    return token, {"name": name, "id": id_of(token), "hash": digest_of(token), "role": role, **more}


class Keys:
    """Writes `path` anew with each key that is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens: dict[str, str] = {}
        self._entries: dict[str, dict[str, Any]] = {}
        self._write()

    def add(self, name: str, role: str = "reader", **more: Any) -> str:
        """Another key; its token."""
        self.tokens[name], self._entries[name] = entry(name, role, **more)
        self._write()
        return self.tokens[name]

    def add_many(self, number: int) -> None:
        """So many more that nobody uses."""
        self._entries |= {f"other-{each}": entry(f"other-{each}", "reader")[1] for each in range(number)}
        self._write()

    def remove(self, name: str) -> None:
        del self._entries[name]
        self._write()

    def bearer(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[name]}"}

    def _write(self) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({"keys": list(self._entries.values())}))
        new.replace(self.path)


def readers(path: Path) -> Keys:
    """The keys of `reader`, who sees everything, and of `part`, who sees one tenant."""
    keys = Keys(path)
    keys.add("reader", "reader")
    keys.add("part", "reader", tenants=["acme"])
    return keys
