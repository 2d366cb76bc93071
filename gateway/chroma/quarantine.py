"""Which collections Chroma may die of, and which it must not touch until an operator did something.

    begin ─► being read ──answered──► read
                 │ Chroma ended
                 ▼
              suspect ──read alone, answered──► read
                 │ Chroma ended again
                 ▼
             quarantined ──repaired, restored, deleted, or lifted──► read

The first read of a collection in a run of Chroma loads its index, and a damaged index can end the process. So a note
is written before the first request that loads it, and another when Chroma answered. Notes are lines that are appended
to `.gateway/quarantine`, without a flush: they must outlive a process, not a power cut. After that a collection costs
one look-up in a set for each write, and nothing for each read.

A quarantine is of files, not of a name: it holds while the database and the index have the signatures that they had.

A collection for which Chroma answers status 500 is *doubted*: `gateway.chroma.watch` reads it again.

Not thread-safe: use it from the event loop, except for `fingerprints`.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import structlog

from gateway.chroma.database import ReadTransaction, is_empty
from gateway.chroma.disk import DATABASE, index_signatures, signature_of
from gateway.errors import Unavailable

log = structlog.get_logger()

DIED_TWICE = "Chroma ended twice while it was being read, the second time while it was read alone"
_WAY_OUT = (
    "repair it with POST /admin/collections/{id}/repair, restore a snapshot, or delete it;"
    " all other collections are served"
)
_MAX_LINES = 20_000

Fingerprint = Mapping[str, list[int]]
"""What `stat` said of the files of a collection, by path. The database has its inode only."""


def fingerprints(data_dir: Path, collection_ids: Iterable[str]) -> dict[str, Fingerprint]:
    """The fingerprint of each of these collections that exists. Blocks. Raises GatewayError. Chroma must not run."""
    wanted, database = set(collection_ids), signature_of(data_dir / DATABASE)
    if not wanted or database is None or is_empty(data_dir):
        return {}
    state = ReadTransaction(data_dir)
    try:
        segments = state.segment_collections()
    finally:
        state.close()
    return {
        collection_id: {DATABASE: [database.inode]}
        | {path: list(each) for path, each in index_signatures(data_dir, [segment_id]).items()}
        for segment_id, collection_id in segments.items()
        if collection_id in wanted
    }


class _Event(StrEnum):
    """The first word of a line. All but GONE and STOPPED have the id of a collection after it."""

    READING = "reading"
    ANSWERED = "answered"
    GONE = "gone"
    STOPPED = "stopped"
    SUSPECT = "suspect"
    QUARANTINED = "quarantined"
    LIFTED = "lifted"


@dataclass(slots=True)
class _Quarantined:
    why: str
    fingerprint: Fingerprint | None = None
    is_active: bool = True  # not while other data is on trial

    def to_json(self) -> str:
        return json.dumps({"why": self.why, "fingerprint": self.fingerprint})


class Quarantine:
    """The state of every collection of one data directory, by the collection's id."""

    def __init__(self, file: Path | None = None) -> None:
        """`file` holds the notes; None keeps them in memory. Reads what an earlier process left in it."""
        self._file, self._lines, self._warned, self._stopping = file, 0, False, False
        self._reading: set[str] = set()
        self._probed: set[str] = set()  # of `_reading`: by the warm-up, which alone ends that
        self._read: set[str] = set()
        self._suspects: set[str] = set()
        self._quarantined: dict[str, _Quarantined] = {}
        self.doubted: set[str] = set()
        """Collections for which Chroma answered status 500 since they were last read."""
        self.unreadable: dict[str, str] = {}
        """Why Chroma cannot answer for a collection, as it said itself in this run."""
        self._load()

    # ------------------------------------------------------------------ for requests

    def require_readable(self, collection_id: str) -> None:
        """Raise Unavailable if a request may not reach this collection."""
        if why := self.quarantined.get(collection_id):
            raise Unavailable(f"this collection is in quarantine: {why}", _WAY_OUT.format(id=collection_id))
        if collection_id in self._suspects:
            raise Unavailable(
                "Chroma ended while this collection was being read, so it is read alone before it is served again",
                "send the request again in a moment; see GET /readyz",
            )
        if why := self.unreadable.get(collection_id):
            raise Unavailable(f"this collection cannot be read: {why}", _WAY_OUT.format(id=collection_id))

    def refuses(self, collection_id: str) -> bool:
        """Whether `require_readable` raises."""
        entry = self._quarantined.get(collection_id)
        is_quarantined = entry is not None and entry.is_active
        return is_quarantined or collection_id in self._suspects or collection_id in self.unreadable

    def begin(self, collection_id: str) -> None:
        """A request that loads the collection's index is being sent. Costs nothing once Chroma has answered one."""
        if collection_id not in self._read and collection_id not in self._reading:
            self._note(_Event.READING, collection_id)

    def answered(self, collection_id: str) -> None:
        """Chroma has answered such a request, with whatever status."""
        if collection_id in self._reading and collection_id not in self._probed:
            self._note(_Event.ANSWERED, collection_id)

    def doubt(self, collection_id: str) -> None:
        """Chroma has answered status 500 to a request for records of the collection."""
        if collection_id not in self._probed:
            self.doubted.add(collection_id)

    # ------------------------------------------------------------------ for the warm-up

    @property
    def suspects(self) -> frozenset[str]:
        """What must be read alone, after everything else."""
        return frozenset(self._suspects)

    @property
    def quarantined(self) -> dict[str, str]:
        """Why each of these collections must not be touched."""
        return {each: entry.why for each, entry in self._quarantined.items() if entry.is_active}

    @property
    def ids(self) -> frozenset[str]:
        """Every collection that `settle` wants to know of."""
        return frozenset(self._suspects | self._quarantined.keys())

    def begin_probe(self, collection_id: str) -> None:
        """The warm-up begins to read the collection. Answers to clients do not end this note: it does more."""
        if collection_id not in self._reading:
            self._note(_Event.READING, collection_id)
        self._probed.add(collection_id)

    def end_probe(self, collection_id: str) -> None:
        """Chroma has answered every request of the warm-up."""
        self._probed.discard(collection_id)
        self.answered(collection_id)

    # ------------------------------------------------------------------ Chroma's life

    def chroma_gone(self) -> None:
        """Chroma's process ended by itself. May be called again."""
        before = set(self._quarantined)
        self._note(_Event.STOPPED if self._stopping else _Event.GONE)
        for each in set(self._quarantined) - before:
            log.error("a collection is quarantined", collection_id=each, cause=DIED_TWICE)

    def stopped(self) -> None:
        """Chroma, or this gateway, is being stopped on purpose: what is read until `settle` is not to blame."""
        self._stopping = True
        self._note(_Event.STOPPED)

    def settle(self, found: Mapping[str, Fingerprint], *, on_trial: bool) -> None:
        """Compare with the files as they are before a start: `fingerprints` of all suspects and quarantined.

        What is not there any more, or has other files, is forgotten. Data `on_trial` may be rolled back, so then it is
        kept, and ignored.
        """
        for each, entry in list(self._quarantined.items()):
            now = found.get(each)
            if entry.fingerprint is None:
                entry.fingerprint = now
            entry.is_active = now is not None and now == entry.fingerprint
            if not entry.is_active and not on_trial:
                del self._quarantined[each]
                log.info("a collection left quarantine: its files are others now", collection_id=each)
        if not on_trial:
            self._suspects &= set(found)
        self._stopping = False
        self._rewrite()

    def put(self, collection_id: str, why: str) -> None:
        """Quarantine a collection."""
        log.error("a collection is quarantined", collection_id=collection_id, cause=why)
        self._note(_Event.QUARANTINED, collection_id, _Quarantined(why).to_json())

    def lift(self, collection_id: str) -> None:
        """It was repaired, or an operator wants it read. Safe for any collection."""
        self.unreadable.pop(collection_id, None)
        if collection_id in self._quarantined or collection_id in self._suspects:
            self._note(_Event.LIFTED, collection_id)

    # ------------------------------------------------------------------ the state machine

    def _apply(self, event: str, collection_id: str, rest: str) -> None:
        match event:
            case _Event.READING:
                self._reading.add(collection_id)
            case _Event.ANSWERED:
                self._reading.discard(collection_id)
                self._suspects.discard(collection_id)
                self._read.add(collection_id)
            case _Event.GONE:
                for each in self._reading & self._suspects:
                    self._suspects.discard(each)
                    self._reading.discard(each)
                    self._quarantined[each] = _Quarantined(DIED_TWICE)
                self._suspects |= self._reading - set(self._quarantined)
                self._forget_run()
            case _Event.STOPPED:
                self._forget_run()
            case _Event.SUSPECT:
                self._suspects.add(collection_id)
            case _Event.QUARANTINED:
                self._suspects.discard(collection_id)
                self._quarantined[collection_id] = _Quarantined(**json.loads(rest))
            case _Event.LIFTED:
                self._suspects.discard(collection_id)
                self._quarantined.pop(collection_id, None)

    def _forget_run(self) -> None:
        self._reading, self._probed, self._read = set(), set(), set()
        self.unreadable, self.doubted = {}, set()

    # ------------------------------------------------------------------ the file

    def _note(self, event: _Event, collection_id: str = "", rest: str = "") -> None:
        self._apply(event, collection_id, rest)
        self._lines += 1
        if self._lines > _MAX_LINES:
            self._rewrite()
        else:
            self._write(f"{event} {collection_id} {rest}".rstrip() + "\n", "a")

    def _load(self) -> None:
        lines: list[str] = []
        with suppress(OSError, UnicodeDecodeError):
            lines = self._file.read_text().splitlines() if self._file else []
        for line in lines:
            event, _, rest = line.partition(" ")
            collection_id, _, rest = rest.partition(" ")
            with suppress(ValueError, TypeError):  # the last line may be cut off
                self._apply(event, collection_id, rest)
        self._lines, self._read = len(lines), set()

    def _rewrite(self) -> None:
        lines = [f"{_Event.QUARANTINED} {each} {entry.to_json()}" for each, entry in self._quarantined.items()]
        lines += [f"{_Event.SUSPECT} {each}" for each in self._suspects]
        lines += [f"{_Event.READING} {each}" for each in self._reading]
        self._lines = len(lines)
        self._write("".join(f"{line}\n" for line in lines), "w")

    def _write(self, text: str, mode: str) -> None:
        if self._file is None:
            return
        try:
            if mode == "w":
                new = self._file.with_name(f"{self._file.name}.new")
                new.write_text(text)
                new.replace(self._file)
            else:
                with self._file.open(mode) as file:
                    file.write(text)
        except OSError as error:
            # Without notes a collection is still quarantined as long as this process lives.
            if not self._warned:
                log.warning("it cannot be noted which collections are being read", cause=str(error))
            self._warned = True
