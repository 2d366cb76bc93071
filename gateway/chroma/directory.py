"""The data directory as a whole: its locks, and the swap of its live data for restored data.

    <data dir>/
        chroma.sqlite3, <segment id>/…   Chroma's, live
        .gateway/
            gateway.lock, chroma.lock    held for life by the one gateway and the one Chroma
            baseline                     what the store has of the live data
            snapshot-outdated            see `DataDirectory.outdated`
            scratch/                     a directory for each verification, archive or upload in progress
            incoming/                    restored data that is verified before it goes live
            previous/                    the data that was live before, until the new data is settled
            rejected/                    data that was rolled back and is being deleted
            swap.json                    the phase of the swap in progress
            settled.json                 swap.json of the last swap, from the moment on at which it was settled

All of it is inside the data directory, which may be a mount point: then nothing beside it is on the same file system,
and the directory itself cannot be renamed. So a swap consists of several renames. Its phase is stored before each step,
and every step can be repeated. After a crash at any point `recover` finishes the swap in the direction it had:

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
from gateway.files import sync_directory, write_durably, write_error

PRIVATE = ".gateway"
_SWAP, _SETTLED = "swap.json", "settled.json"


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


def refuse_links(data_dir: Path) -> None:
    """Raise ConfigError if a file or an index directory of Chroma's is a symbolic link. `data_dir` itself may be one.

    SQLite keeps its WAL beside the file that a link leads to. A walk leaves out a directory that is a link, and a swap
    renames the link.
    """
    for name in os.listdir(data_dir):
        if is_chromas(name) and (data_dir / name).is_symlink():
            raise ConfigError(
                f"{data_dir / name} is a symbolic link, so its changes cannot be followed",
                "put the file itself there; the data directory as a whole may be a link",
            )


class DataDirectory:
    """`GATEWAY_DATA_DIR`. Methods block. They rename and delete, and never copy."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._private = path / PRIVATE
        self._locks: list[int] = []

    def make(self) -> None:
        """Create the directory if it is missing. Raises ConfigError if it is not writable, or has links for files."""
        try:
            self._private.mkdir(mode=0o700, parents=True, exist_ok=True)
            problem = "" if os.access(self._private, os.W_OK | os.X_OK) else "it is not writable"
        except OSError as error:
            problem = str(error)
        if problem:
            raise ConfigError(
                f"the data directory {self.path} cannot be used: {problem}",
                "set GATEWAY_DATA_DIR to a writable directory",
            )
        refuse_links(self.path)

    def is_empty(self) -> bool:
        """Whether Chroma never stored anything in it."""
        return database.is_empty(self.path)

    # ------------------------------------------------------------------ locks

    def claim_as_gateway(self) -> None:
        """Lock the directory for this gateway until the process ends. Raises ConfigError if another one has it."""
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
        """Release the locks."""
        while self._locks:
            os.close(self._locks.pop())

    # ------------------------------------------------------------------ private directories

    def _make_empty(self, name: str) -> Path:
        """Make an empty private directory, on the same file system as the data."""
        self._remove(name)
        path = self._private / name
        with _writing(f"making {path} failed"):
            path.mkdir(mode=0o700)
        return path

    @property
    def baseline(self) -> Path:
        """The file that says what the store has of the data."""
        return self._private / "baseline"

    @property
    def outdated(self) -> Path:
        """A file that is there while the log does not lead from the newest snapshot's indexes to the data."""
        return self._private / "snapshot-outdated"

    @property
    def scratch(self) -> Path:
        """The parent of scratch directories. It may not exist yet."""
        return self._private / "scratch"

    def drop_leftovers(self) -> None:
        """Remove what an earlier gateway left behind: scratch directories, and a restore that did not go live."""
        self._remove("scratch")
        self.drop_incoming()

    def make_incoming(self) -> Path:
        """Make the empty directory into which a restore fetches. Removes what an earlier restore left there."""
        return self._make_empty("incoming")

    def drop_incoming(self) -> None:
        """Remove restored data that did not go live."""
        self._remove("incoming")

    def _remove(self, name: str) -> None:
        shutil.rmtree(self._private / name, ignore_errors=True)

    # ------------------------------------------------------------------ swapping the data

    def is_swapping(self) -> bool:
        """Whether a swap has begun and was neither settled nor rolled back."""
        return self._swap() is not None

    @property
    def on_trial(self) -> str | None:
        """The id of the snapshot that is live and neither settled nor rolled back; None if there is none."""
        swap = self._swap()
        return str(swap["snapshot"]) if swap and swap["phase"] == _TRIAL else None

    def swap_in(self, snapshot_id: str) -> None:
        """Make `incoming` live and keep the live data as `previous`. Chroma must not run."""
        self._remove("previous")
        self._proceed("out", snapshot_id)

    def may_run_trial(self) -> bool:
        """Record a start of Chroma on data on trial. False if it was started on them before: then it has died."""
        swap = self._swap()
        if swap is None or swap["phase"] != _TRIAL:
            return True
        if swap.get("started"):
            return False
        self._write_swap({**swap, "started": True})
        return True

    def settle(self) -> None:
        """Keep the new data for good and delete the previous data. From then on `settled` tells of it."""
        with contextlib.suppress(FileNotFoundError):
            (self._private / _SWAP).rename(self._private / _SETTLED)
        sync_directory(self._private)
        self._remove("previous")

    @property
    def settled(self) -> str | None:
        """The id of the snapshot that was settled last; None if there is none since `forget_settled`."""
        try:
            return str(json.loads((self._private / _SETTLED).read_text())["snapshot"])
        except FileNotFoundError:
            return None

    def forget_settled(self) -> None:
        """To be called once what `settled` tells is noted elsewhere."""
        (self._private / _SETTLED).unlink(missing_ok=True)

    def roll_back(self) -> None:
        """Make the previous data live again and delete the new data. Chroma must not run. May be repeated."""
        swap = self._swap()
        if swap is not None:
            # In phase "out" the live files are the rest of the previous data. They stay.
            if swap["phase"] not in ("out", "back_in"):
                self._remove("rejected")
                self._proceed("back_out", swap["snapshot"])
            else:
                self._proceed("back_in", swap["snapshot"])
            self._remove("rejected")
            self._remove("previous")

    def recover(self) -> None:
        """Finish a swap that a crash interrupted. Chroma must not run. May be repeated."""
        swap = self._swap()
        if swap is None:
            self._remove("previous")
        elif swap["phase"] in _MOVES:
            self._proceed(swap["phase"], swap["snapshot"])
        self._remove("rejected")

    def _proceed(self, phase: str | None, snapshot_id: str) -> None:
        with _writing("swapping the data failed"):
            self._move_on(phase, snapshot_id)

    def _move_on(self, phase: str | None, snapshot_id: str) -> None:
        while phase in _MOVES:
            # It describes the data that goes. Without it the next snapshot reads everything. With a wrong one it would
            # leave out changes.
            self.baseline.unlink(missing_ok=True)
            self._write_swap({"phase": phase, "snapshot": snapshot_id})
            move = _MOVES[phase]
            source, target = self._directory(move.source), self._directory(move.target)
            target.mkdir(mode=0o700, exist_ok=True)
            if source.is_dir():
                for name in sorted(os.listdir(source)):
                    if is_chromas(name):
                        # The file names in an index's directory must be as durable as the files.
                        if (source / name).is_dir():
                            sync_directory(source / name)
                        (source / name).rename(target / name)
            sync_directory(target)
            if source.is_dir():
                sync_directory(source)
            phase = move.then
        self._write_swap({"phase": phase, "snapshot": snapshot_id} if phase else None)
        self._remove("incoming")

    def _directory(self, name: str) -> Path:
        return self.path if name == _LIVE else self._private / name

    def _swap(self) -> dict[str, Any] | None:
        try:
            swap: dict[str, Any] = json.loads((self._private / _SWAP).read_text())
        except FileNotFoundError:
            return None
        return swap

    def _write_swap(self, swap: dict[str, Any] | None) -> None:
        path = self._private / _SWAP
        if swap is None:
            path.unlink(missing_ok=True)
            sync_directory(self._private)
        else:
            write_durably(path, json.dumps(swap).encode())


@contextlib.contextmanager
def _writing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(what, error) from error
