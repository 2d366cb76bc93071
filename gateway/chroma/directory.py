"""The data directory as a whole: who may use it, and how its contents are exchanged.

    <data dir>/
        chroma.sqlite3, <segment id>/…   Chroma's, live
        .gateway/
            gateway.lock, chroma.lock    held for life by the one gateway and the one Chroma
            baseline                     what the store has of the live data
            scratch/                     one room for each verification, archive or upload under way
            incoming/                    a restore on its way, verified before it goes live
            previous/                    what was live before, until the new state proved good
            rejected/                    what did not prove good, on its way out
            swap.json                    the exchange under way

All of it is inside the data directory, since that may be a mount point: nothing beside it is on
the same file system, and it cannot be renamed itself. An exchange is therefore several renames; its
phase is written down before each step and every step can be repeated, so that a crash at any point is
finished by `recover`, in the direction it was going:

    incoming: out ─► in ─► trial ──settle──► (none)         out:  live → previous
                             └─roll_back─► back_out ─► back_in ─► (none)   in: incoming → live
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gateway.chroma import database
from gateway.chroma.disk import is_chromas
from gateway.errors import ConfigError
from gateway.files import write_error

PRIVATE = ".gateway"


class _Move(NamedTuple):
    source: str
    target: str
    then: str | None


_LIVE = "."
_MOVES = {
    "out": _Move(_LIVE, "previous", "in"),
    "in": _Move("incoming", _LIVE, "trial"),
    "back_out": _Move(_LIVE, "rejected", "back_in"),
    "back_in": _Move("previous", _LIVE, None),
}
_TRIAL = "trial"


class DataDirectory:
    """`GATEWAY_DATA_DIR`. Methods block; they do renames and deletions, never copies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._private = path / PRIVATE
        self._locks: list[int] = []

    def make(self) -> None:
        """Create it where missing. Raises ConfigError if it cannot be written."""
        try:
            self._private.mkdir(mode=0o700, parents=True, exist_ok=True)
            problem = "" if os.access(self._private, os.W_OK | os.X_OK) else "it may not be written"
        except OSError as error:
            problem = str(error)
        if problem:
            raise ConfigError(
                f"the data directory {self.path} cannot be used: {problem}",
                "set GATEWAY_DATA_DIR to one we may write",
            )

    def is_empty(self) -> bool:
        """Whether Chroma has never kept anything in it."""
        return database.is_empty(self.path)

    # ------------------------------------------------------------------ who may use it

    def claim_as_gateway(self) -> None:
        """Be the one gateway on this directory until the process ends. Raises ConfigError."""
        self._claim("gateway.lock", "another gateway", inheritable=False)

    def claim_as_chroma(self) -> None:
        """Be the one Chroma on this directory, also after an exec, until the process ends. Raises ConfigError."""
        self._claim("chroma.lock", "another gateway's Chroma", inheritable=True)

    def _claim(self, name: str, owner: str, *, inheritable: bool) -> None:
        descriptor = os.open(self._private / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(
                f"{owner} uses the data directory {self.path}", "stop it, or set another GATEWAY_DATA_DIR"
            ) from error
        os.set_inheritable(descriptor, inheritable)
        self._locks.append(descriptor)

    def release(self) -> None:
        """Let go of what was claimed."""
        while self._locks:
            os.close(self._locks.pop())

    # ------------------------------------------------------------------ rooms of our own

    def fresh(self, room: str) -> Path:
        """An empty directory of our own, on the same file system as the data."""
        self._remove(room)
        path = self._private / room
        with _writing(f"making {path} failed"):
            path.mkdir(mode=0o700)
        return path

    @property
    def baseline(self) -> Path:
        """Where it is noted what the store has of the data."""
        return self._private / "baseline"

    @property
    def scratch(self) -> Path:
        """Where rooms are made for what is on its way in or out. It may not exist yet."""
        return self._private / "scratch"

    def drop_leftovers(self) -> None:
        """Remove what an earlier gateway left behind: scratch directories, and a restore that did not go live."""
        self._remove("scratch")
        self.drop_incoming()

    def incoming(self) -> Path:
        return self.fresh("incoming")

    def drop_incoming(self) -> None:
        """Remove what a restore left behind that did not go live."""
        self._remove("incoming")

    def _remove(self, room: str) -> None:
        shutil.rmtree(self._private / room, ignore_errors=True)

    # ------------------------------------------------------------------ exchanging the contents

    def is_swapping(self) -> bool:
        """Whether an exchange was begun and neither settled nor rolled back."""
        return self._swap() is not None

    @property
    def on_trial(self) -> str | None:
        """The id of the snapshot that went live and has yet to prove good, if there is one."""
        swap = self._swap()
        return str(swap["snapshot"]) if swap and swap["phase"] == _TRIAL else None

    def swap_in(self, snapshot_id: str) -> None:
        """Make `incoming` live and keep what was live as `previous`. Chroma must not be running."""
        self._remove("previous")
        self._proceed("out", snapshot_id)

    def may_run_trial(self) -> bool:
        """Note one more start of Chroma on a state that is on trial; False if one was tried before and died."""
        swap = self._swap()
        if swap is None or swap["phase"] != _TRIAL:
            return True
        if swap.get("started"):
            return False
        self._write_swap({**swap, "started": True})
        return True

    def settle(self) -> None:
        """The new state is good: forget the previous one."""
        self._write_swap(None)
        self._remove("previous")

    def roll_back(self) -> None:
        """The new state is not good, or cannot be: make the previous one live again. Chroma must not be running."""
        swap = self._swap()
        if swap is not None:
            # What is live while it moves out is the rest of the previous state, and stays where it is.
            if swap["phase"] not in ("out", "back_in"):
                self._remove("rejected")
                self._proceed("back_out", swap["snapshot"])
            else:
                self._proceed("back_in", swap["snapshot"])
            self._remove("rejected")
            self._remove("previous")

    def recover(self) -> None:
        """Finish an exchange that a crash cut short. Chroma must not be running."""
        swap = self._swap()
        if swap is None:
            self._remove("previous")
        elif swap["phase"] in _MOVES:
            self._proceed(swap["phase"], swap["snapshot"])
        self._remove("rejected")

    def _proceed(self, phase: str | None, snapshot_id: str) -> None:
        with _writing("exchanging the data failed"):
            self._move_on(phase, snapshot_id)

    def _move_on(self, phase: str | None, snapshot_id: str) -> None:
        while phase in _MOVES:
            # Of the data that goes. What is not known is read again; what is known wrongly would be lost.
            self.baseline.unlink(missing_ok=True)
            self._write_swap({"phase": phase, "snapshot": snapshot_id})
            move = _MOVES[phase]
            source, target = self._room(move.source), self._room(move.target)
            target.mkdir(mode=0o700, exist_ok=True)
            if source.is_dir():
                for name in sorted(os.listdir(source)):
                    if is_chromas(name):
                        # The names in an index's directory are to be as durable as its files are.
                        if (source / name).is_dir():
                            _sync_directory(source / name)
                        (source / name).rename(target / name)
            _sync_directory(target)
            if source.is_dir():
                _sync_directory(source)
            phase = move.then
        self._write_swap({"phase": phase, "snapshot": snapshot_id} if phase else None)
        self._remove("incoming")

    def _room(self, name: str) -> Path:
        return self.path if name == _LIVE else self._private / name

    def _swap(self) -> dict[str, Any] | None:
        try:
            swap: dict[str, Any] = json.loads((self._private / "swap.json").read_text())
        except FileNotFoundError:
            return None
        return swap

    def _write_swap(self, swap: dict[str, Any] | None) -> None:
        path = self._private / "swap.json"
        if swap is None:
            path.unlink(missing_ok=True)
        else:
            _replace(path, json.dumps(swap))
        _sync_directory(self._private)


@contextlib.contextmanager
def _writing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(what, error) from error


def _replace(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    temporary = path.with_suffix(".new")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
