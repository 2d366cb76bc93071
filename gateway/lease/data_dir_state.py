"""What a data directory remembers about the repository that it belongs to.

    <data dir>/.gateway/home.json
        home    the directory's own random name, for life: a lease held under it was held here
        seen    the newest snapshot of the repository that these data stem from or came after; "*" if any will do

`home.json` is written before data come in, so that no crash leaves data without it.
"""

import contextlib
import json
import uuid
from pathlib import Path

from gateway.chroma.directory import PRIVATE
from gateway.files import write_durably
from gateway.lease.state import LeaseState

_NAME = "home.json"
_ANY = "*"


class DataDirState:
    """The memory of the data directory at `path`. Methods block; they raise DiskFull where there is no room."""

    def __init__(self, path: Path) -> None:
        self._path = path / PRIVATE / _NAME

    def name(self) -> str:
        """The directory's own name; given to it by the first call."""
        if not (name := self._read().get("home")):
            name = uuid.uuid4().hex
            write_durably(self._path, json.dumps({"home": name, "seen": None}).encode())
        return name

    def see(self, lease_state: LeaseState | None) -> None:
        """The data here are, or are about to be, those of the repository as `lease_state` shows it."""
        self._remember(lease_state.published if lease_state else None)

    def begin_anew(self) -> None:
        """The data here are to be the repository's next ones, whatever it holds."""
        self._remember(_ANY)

    def begins_anew(self) -> bool:
        """Whether `begin_anew` was called, and nothing seen since."""
        self.name()
        return self._read().get("seen") == _ANY

    def is_behind(self, lease_state: LeaseState | None) -> str | None:
        """The snapshot that another gateway published since and these data know nothing of; None if there is none."""
        if lease_state is None or lease_state.published is None or lease_state.publisher == self.name():
            return None
        return lease_state.published if lease_state.published != self._read().get("seen") else None

    def _remember(self, seen: str | None) -> None:
        write_durably(self._path, json.dumps({"home": self.name(), "seen": seen}).encode())

    def _read(self) -> dict[str, str]:
        """What is there; nothing where there is none, or where it is damaged: then the data are a stranger's."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            document = json.loads(self._path.read_text())
            return document if isinstance(document, dict) else {}
        return {}
