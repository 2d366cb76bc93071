"""What a data directory remembers about the repository that it belongs to.

    <data dir>/.gateway/home.json
        home        the name of this directory in this place: a lease that is held under it was held here
        place       the boot of the machine, the device and the inode of the directory
        stems_from  names of directories that had these data before: this one before it moved or the machine was
                    rebooted, the original of a copy, the one whose snapshot a command restored here
        seen        snapshots that these data hold or came after, the newest last
        restoring   snapshots that count as seen too once the restore that is under way is settled
        journal     the number of the journal's entry that these data come after, or were put back from
        restoring_journal  the same of what a restore is about to bring
        anew        true if these data are to be the repository's next ones, whatever it holds

A copy of a directory has a copy of this file, and so has an older image of it. Therefore the name is bound to the
place, and a snapshot is in `seen` before it is published: a copy gets a name of its own, and an older image lacks what
was published since.

`home.json` is written before data come in, so that no crash leaves data without it. A restore that replaces data may be
rolled back. So what the new data will have seen is `restoring` first. It is seen, and so is the restored snapshot, from
the step on that settles the restore (`DataDirectory.settled`).
"""

import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from gateway.chroma.directory import PRIVATE, DataDirectory
from gateway.errors import DiskFull
from gateway.files import sync_file, write_durably, write_error
from gateway.lease.state import LeaseState

_NAME = "home.json"
# Each move and each reboot adds a name. Only the latest ones can still hold a lease.
_MAX_STEMS_FROM = 32
# The one that was published last is always among the newest two. Older ones matter where the store was set back. With
# these bounds the file fits into one block of the disk.
_MAX_SEEN = 64
_BOOT_ID, _MACHINE_ID = Path("/proc/sys/kernel/random/boot_id"), Path("/etc/machine-id")


class DataDirState:
    """The memory of the data directory at `path`. Methods block; they raise DiskFull where there is no room."""

    def __init__(self, path: Path) -> None:
        self._data_dir, self._path = path, path / PRIVATE / _NAME
        self._stored = path / PRIVATE / "stored-entry"
        self._directory = DataDirectory(path)

    def name(self) -> str:
        """The directory's own name in its place; given to it by the first call there."""
        memory, place = self._read(), self._place()
        name = memory.get("home")
        if not name or memory.get("place") != place:
            stems_from = [*memory.get("stems_from", []), *([name] if name else [])][-_MAX_STEMS_FROM:]
            name = uuid.uuid4().hex
            self._write({"seen": []} | memory | {"home": name, "place": place, "stems_from": stems_from})
        elif self._directory.settled:
            self._write(memory)
        return str(name)

    def knows(self, home: str) -> bool:
        """Whether `home` is this directory, or one that had these data before."""
        return home in (self.name(), *self._read().get("stems_from", []))

    def see(self, lease_state: LeaseState | None) -> None:
        """The data here are, or are about to be, those of the repository as `lease_state` shows it."""
        self._remember(_shown(lease_state))

    def see_restored(self, snapshot_id: str, lease_state: LeaseState | None) -> None:
        """A snapshot is about to be restored here on purpose, from the repository that `lease_state` shows."""
        holder = [lease_state.home] if lease_state else []
        self._remember([*_shown(lease_state), snapshot_id], stems_from=holder)

    def see_journal(self, number: int, *, once_settled: bool = False) -> None:
        """The data here come after the journal's entries up to `number`, or go back behind them on purpose.

        `once_settled`: those that a restore is about to bring do; it counts once that restore is settled.
        """
        self.name()
        self._write(self._read() | {"restoring_journal" if once_settled else "journal": number})

    def seen_in_journal(self) -> int:
        """The newest entry of the journal that these data come after; later ones may be their own."""
        number = self._read().get("journal", 0)
        return number if isinstance(number, int) else 0

    def note_stored(self, number: int) -> None:
        """The data here are those of the journal's entry `number`. Not flushed to the disk: see `stored_last`."""
        with contextlib.suppress(OSError):
            self._stored.write_text(str(number))

    def stored_last(self) -> int | None:
        """The newest entry that was noted by `note_stored`; None if none was. One more may have been stored."""
        try:
            return int(self._stored.read_text())
        except (OSError, ValueError):
            return None

    def about_to_restore(self, lease_state: LeaseState | None) -> None:
        """A snapshot is about to replace the data here, from the repository that `lease_state` shows.

        Nothing of it counts unless that restore is settled. Of a `lease_state` of None only the snapshot will count.
        """
        self.name()
        self._write(self._read() | {"restoring": _shown(lease_state)})

    def begin_anew(self) -> None:
        """The data here are to be the repository's next ones, whatever it holds."""
        self.name()
        self._write({**self._read(), "seen": [], "anew": True})

    def begins_anew(self) -> bool:
        """Whether `begin_anew` was called, and nothing seen since."""
        self.name()
        memory = self._read()
        return bool(memory.get("anew")) or memory.get("seen") == "*"

    def is_behind(self, lease_state: LeaseState | None) -> str | None:
        """The snapshot that was published last, if these data know nothing of it; otherwise None."""
        if lease_state is None or lease_state.published is None:
            return None
        self.name()
        seen = self._read().get("seen")
        if isinstance(seen, list):
            return lease_state.published if lease_state.published not in seen else None
        # Format of gateways that do not write down what they publish themselves: the one snapshot that was seen.
        if lease_state.publisher is not None and self.knows(lease_state.publisher):
            return None
        return lease_state.published if lease_state.published != seen else None

    def _remember(self, snapshot_ids: list[str], *, stems_from: list[str] | None = None) -> None:
        name = self.name()
        memory = self._read()
        names = [*memory.get("stems_from", []), *(each for each in stems_from or [] if each != name)]
        changes = {"stems_from": names[-_MAX_STEMS_FROM:], "seen": _with(memory, snapshot_ids), "anew": False}
        self._write({**memory, **changes, "restoring": []})

    def _place(self) -> str:
        """Where the directory is. No two directories that exist at the same time are in the same place."""
        try:
            status = self._data_dir.stat()
        except OSError as error:
            raise write_error(f"{self._path} cannot be written", error) from error
        return f"{_boot()} {status.st_dev} {status.st_ino}"

    def _read(self) -> dict[str, Any]:
        """What is there; nothing where there is none, or where it is damaged: then the data are a stranger's."""
        memory: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError, ValueError):
            document = json.loads(self._path.read_text())
            memory = document if isinstance(document, dict) else {}
        if settled := self._directory.settled:
            seen = _with(memory, [settled, *memory.get("restoring", [])])
            journal = memory.pop("restoring_journal", memory.get("journal", 0))
            memory |= {"seen": seen, "restoring": [], "anew": False, "journal": journal}
        return memory

    def _write(self, memory: dict[str, Any]) -> None:
        data = json.dumps(memory).encode()
        try:
            write_durably(self._path, data)
        except DiskFull as error:
            # What a gateway publishes from a full disk must be noted too. Bytes that are there already need no room. A
            # crash meanwhile damages the file, and damaged is behind.
            try:
                with self._path.open("r+b") as file:
                    file.write(data.ljust(os.fstat(file.fileno()).st_size))
                    sync_file(file)
            except OSError:
                raise error from None
        self._directory.forget_settled()


def _with(memory: dict[str, Any], snapshot_ids: list[str]) -> list[str]:
    """What is seen according to `memory`, and `snapshot_ids`."""
    before = memory["seen"] if isinstance(memory.get("seen"), list) else []
    return [*(each for each in before if each not in snapshot_ids), *snapshot_ids][-_MAX_SEEN:]


def _shown(lease_state: LeaseState | None) -> list[str]:
    """What `lease_state` names as published last, and as about to be published."""
    shown = (lease_state.published, lease_state.announced) if lease_state else ()
    return [each for each in shown if each]


def _boot() -> str:
    """The boot of this machine; where the system does not tell, the machine.

    Copies of a virtual machine share the machine's id, and the numbers of devices and inodes, but no boot.
    """
    for path in (_BOOT_ID, _MACHINE_ID):
        with contextlib.suppress(OSError):
            if text := path.read_text().strip():
                return text
    return f"{uuid.getnode():x}"
