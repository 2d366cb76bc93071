"""How a buffer file is stored.

1. Read the whole file: one embedding set, one mode, one dimension, and every record is valid. Else nothing is sent.
2. Read it again and send it in batches. For each, ask which records are there already, and send the others.
3. Each batch waits until the gateway's store has it, where a gateway with a journal offers that.
4. Go on with what was appended meanwhile.
5. Bring the statistics of the set up to date.
6. Remove the file, if that was asked for and nothing was appended since.

It may be broken off at any point and repeated: records have ids that follow from what they are, so the same file twice
changes nothing.
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from chroma.buffer import Buffer, Snapshot
from chroma.collection import BODY_BYTES, RECORD_BYTES, SetCollection, Stored
from chroma.embedding_set import EmbeddingSet
from chroma.errors import InvalidRecord, MixedEmbeddingSets
from chroma.records import Mode, Record, parse_line
from chroma.server import Server

_log = logging.getLogger("chroma")


@dataclass(frozen=True)
class Upload:
    """What an upload did."""

    embedding_set_id: str | None
    """None if there was no record."""
    records: int
    written: int
    already_there: int
    left_out: list[int]
    """The numbers of lines that were not whole."""
    stored: bool
    """Whether the gateway's store has everything. False where there is no gateway, or its journal is off."""


@dataclass
class _Contents:
    """What the first reading found."""

    embedding_set: EmbeddingSet | None = None
    dimension: int = 0
    records: int = 0
    end: int = 0
    lines: int = 0
    left_out: set[int] = field(default_factory=set)


def upload(
    buffer: Buffer, open_set: Callable[[EmbeddingSet], SetCollection], server: Server, *, remove: bool
) -> Upload:
    """Store everything in `buffer`. With `remove`, the file is removed once everything is stored.

    Memory does not grow with the file. Raises InvalidRecord before anything is sent, and ServerError: then the file is
    as it was, and the same call goes on where this one ended.
    """
    total, records = Stored(), 0
    contents = _Contents()
    target: SetCollection | None = None
    with buffer.snapshot() as snapshot:
        while True:
            before, contents = contents, _read(snapshot, contents, str(buffer.path or "the buffer"))
            if contents.records:
                assert contents.embedding_set is not None
                if target is None:
                    target = open_set(contents.embedding_set)
                    target.forget()  # it may be another one since the last upload
                target.check(contents.dimension)
                total += _send(snapshot, before, contents.records, target, server)
                records += contents.records
                target.bring_statistics_up_to_date()
            if not remove or buffer.remove(snapshot):
                break
    left_out = sorted(contents.left_out)
    if left_out:
        warnings.warn(f"{len(left_out)} lines were not whole and were left out: {left_out[:20]}", stacklevel=3)
    set_id = contents.embedding_set.id if contents.embedding_set else None
    return Upload(set_id, records, total.written, total.already_there, left_out, bool(records) and total.in_store)


def _read(snapshot: Snapshot, before: _Contents, name: str) -> _Contents:
    """Check all lines after those of `before`."""
    found = replace(before, records=0)
    for line in snapshot.lines(before.end, before.lines + 1):
        if line.next_offset > found.end:
            found.end, found.lines = line.next_offset, line.number
        try:
            record = parse_line(line.content)
            if record is None:
                found.left_out.add(line.number)
                continue
            _check(record, found)
        except InvalidRecord as error:
            raise type(error)(f"line {line.number} of {name}: {error}. Nothing was sent") from error
        found.records += 1
    return found


def _check(record: Record, found: _Contents) -> None:
    if record.mode is not Mode.TRAINING:
        raise InvalidRecord(f"its mode is {record.mode.value}, and only training records are uploaded from a file")
    if found.embedding_set is None:
        found.embedding_set, found.dimension = record.embedding_set, record.dimension
    if record.embedding_set != found.embedding_set:
        raise MixedEmbeddingSets(
            f"its embedding set is {record.embedding_set.canonical}, and that of the lines before"
            f" {found.embedding_set.canonical}"
        )
    if record.dimension != found.dimension:
        raise InvalidRecord(
            f"its embedding has {record.dimension} dimensions, and those of the lines before {found.dimension}"
        )


def _send(snapshot: Snapshot, before: _Contents, records: int, target: SetCollection, server: Server) -> Stored:
    total = Stored()
    batch: list[Record] = []
    size = 0
    for line in snapshot.lines(before.end, before.lines + 1):
        record = parse_line(line.content)
        if record is None:
            continue
        if batch and (len(batch) >= server.max_batch_size() or size + len(line.content) > BODY_BYTES):
            total += target.store(batch, wait=True)
            _log.info("%d of %d records are stored", total.written + total.already_there, records)
            batch, size = [], 0
        batch.append(record)
        size += len(line.content) + RECORD_BYTES
    if batch:
        total += target.store(batch, wait=True)
    return total
