"""An entry of the journal: the pages of the database that changed by one cut, or a mark. Pure.

    magic     4 bytes, "CGJ1"
    length    uint32, of the head
    digest    32 bytes, SHA-256 of the head
    head      JSON, see `Head`
    body      zstd: `changed` page numbers (uint32, from 1, ascending), then these pages

All numbers are little-endian. An entry is not trusted: `Entry.parse` checks both digests and every number before
anything else uses it.
"""

import hashlib
import struct
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, NamedTuple

import numpy as np
import zstandard
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from gateway.errors import CorruptSnapshot
from gateway.snapshot.blocks import Fingerprints, Numbers

_MAGIC = b"CGJ1"
_FRONT = struct.Struct("<4sI32s")
_NUMBER_BYTES = 4
_MAX_HEAD_BYTES = 64 << 10
HEAD_BYTES = 4 << 10
"""As many bytes of an object hold the whole head of an entry."""
MAX_BODY_BYTES = 64 << 20
"""Most bytes of pages in one entry. What does not fit goes into a snapshot."""
_LEVEL = 1
_TICK = timedelta(milliseconds=1)

NO_PAGES: Numbers = np.empty(0, np.int64)

Count = Annotated[int, Field(ge=0)]


class Kind(StrEnum):
    """`pages`: a cut. `seal`: a gateway took the lease. `void`: a cut that was begun and came to nothing."""

    PAGES = "pages"
    SEAL = "seal"
    VOID = "void"


class Head(BaseModel):
    """What an entry says of itself. An entry that several were merged into holds the numbers `first` to `number`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    number: Annotated[int, Field(ge=1)]
    first: Annotated[int, Field(ge=1)]
    epoch: Annotated[int, Field(ge=1)]
    """That of the lease under which it was written."""
    writer: str
    """The name of the writer's data directory, see `gateway.lease.data_dir_state`."""
    where: str = ""
    """The writer's host and process id, for people."""
    kind: Kind
    at: AwareDatetime
    """The moment of the cut. Each entry's is later than that of the entry before."""
    previous: str
    """`chain` of the entry before `first`; empty for the first one of all."""
    last_sha256: str = ""
    """Of an entry that several were merged into: SHA-256 of the last of them."""
    run: Count = 0
    """The first entry of the run that this one belongs to; 0 before the first cut. See `snapshot`."""
    snapshot: str = ""
    """The first entry of a run is written over this snapshot, each later one over the one before it."""
    cut: Count = 0
    """The number of the newest cut so far: the data are those of that entry. 0 before the first."""
    author: str = ""
    """Its writer."""
    restored_to: AwareDatetime | None = None
    """Of the first cut after a restore: the moment that was restored."""
    page_bytes: Annotated[int, Field(ge=0, le=65536)] = 0
    pages: Count = 0
    """How many pages the database has then."""
    changed: Count = 0
    """How many pages the body has."""
    log: Count = 0
    """The highest sequence number in Chroma's log then."""
    database: str = ""
    """`digest_of` the database then."""
    body_bytes: Count = 0
    body_sha256: str = ""

    @property
    def starts_run(self) -> bool:
        """Whether the pages are written over `snapshot`, not over the entry before."""
        return self.run == self.first


class Entry(NamedTuple):
    """`data` is the object in the store."""

    head: Head
    data: bytes

    @property
    def chain(self) -> str:
        """What the next entry names as its `previous`: SHA-256 of this one as its writer wrote it."""
        return self.head.last_sha256 or hashlib.sha256(self.data).hexdigest()

    def next_mark(self, kind: Kind, epoch: int, writer: str, where: str) -> Head:
        """Return the head of an entry behind this one that changes nothing: the data stay those of this entry."""
        head = self.head
        return head.model_copy(
            update={
                "number": head.number + 1,
                "first": head.number + 1,
                "epoch": epoch,
                "writer": writer,
                "where": where,
                "kind": kind,
                "at": moment_after(head.at, datetime.now(UTC)),
                "previous": self.chain,
                "last_sha256": "",
                "restored_to": None,
            }
        )

    @classmethod
    def make(cls, head: Head, numbers: Numbers, pages: Iterable[bytes]) -> "Entry":
        """Return the entry of `pages`, which are those of `numbers` (from 1, ascending)."""
        plain = b"".join((numbers.astype("<u4").tobytes(), *pages))
        body = zstandard.ZstdCompressor(level=_LEVEL).compress(plain) if len(numbers) else b""
        head = head.model_copy(
            update={
                "changed": len(numbers),
                "body_bytes": len(body),
                "body_sha256": hashlib.sha256(body).hexdigest(),
            }
        )
        text = head.model_dump_json().encode()
        return cls(head, _FRONT.pack(_MAGIC, len(text), hashlib.sha256(text).digest()) + text + body)

    @classmethod
    def parse(cls, data: bytes, name: str) -> "Entry":
        """Read what `make` returned. Raises CorruptSnapshot, which names the object `name`."""
        head, begin = _head(data, name)
        body = memoryview(data)[begin:]
        if len(body) != head.body_bytes or hashlib.sha256(body).hexdigest() != head.body_sha256:
            raise CorruptSnapshot(f"{name} is truncated or damaged: its body has another digest")
        return cls(head, data)

    def pages(self) -> tuple[Numbers, memoryview]:
        """Return the numbers (from 1) of the pages in the body, and the pages. Blocks. Raises CorruptSnapshot."""
        head = self.head
        if not head.changed:
            return np.empty(0, np.int64), memoryview(b"")
        size_bytes = head.changed * (_NUMBER_BYTES + head.page_bytes)
        body = memoryview(self.data)[len(self.data) - head.body_bytes :]
        try:
            plain = zstandard.ZstdDecompressor().decompress(body, max_output_size=size_bytes)
        except zstandard.ZstdError as error:
            raise CorruptSnapshot(f"entry {head.number} of the journal cannot be decompressed: {error}") from error
        if len(plain) != size_bytes:
            raise CorruptSnapshot(f"entry {head.number} of the journal does not hold the pages that it names")
        numbers = np.frombuffer(plain, "<u4", head.changed).astype(np.int64)
        if numbers[0] < 1 or int(numbers[-1]) > head.pages or (np.diff(numbers) <= 0).any():
            raise CorruptSnapshot(f"entry {head.number} of the journal names pages that the database does not have")
        return numbers, memoryview(plain)[head.changed * _NUMBER_BYTES :]


def parse_head(data: bytes, name: str) -> Head:
    """Read the head from the first `HEAD_BYTES` of an entry. Raises CorruptSnapshot."""
    return _head(data, name)[0]


def _head(data: bytes, name: str) -> tuple[Head, int]:
    try:
        magic, length, digest = _FRONT.unpack_from(data)
        text = data[_FRONT.size : _FRONT.size + length]
        if magic != _MAGIC or length > _MAX_HEAD_BYTES or hashlib.sha256(text).digest() != digest:
            raise ValueError("it is truncated, damaged, or no entry")
        head = Head.model_validate_json(text)
        if head.first > head.number:
            raise ValueError("its numbers are in the wrong order")
    except (struct.error, ValueError, ValidationError) as error:
        raise CorruptSnapshot(f"{name} cannot be read: {error}", "see GET /admin/history") from error
    return head, _FRONT.size + length


def moment_after(before: datetime | None, now: datetime) -> datetime:
    """Return `now` in whole milliseconds, or a moment just after `before` if a clock was set back."""
    now = now.astimezone(UTC)
    now = now.replace(microsecond=now.microsecond // 1000 * 1000)
    return now if before is None or now > before else before.astimezone(UTC) + _TICK


# ---------------------------------------------------------------------- the digest of a database


def digest_of(pages: Fingerprints) -> str:
    """Return the digest of a database with these page digests: uint64, (n_pages, 2).

    It is a sum over the pages, each multiplied by a number that depends on its place, modulo 2⁶⁴. So that of a changed
    database follows from the changed pages alone (`changed_digest`). It finds pages that are missing, old or misplaced.
    It does not withstand somebody who makes pages up: nothing in a store does that is not signed.
    """
    return _text(_sum(np.arange(len(pages)), pages))


def changed_digest(digest: str, before: Fingerprints, now: Fingerprints, changed: Numbers) -> str:
    """Return the digest of `now`, which differs from `before` (with `digest`) in the pages `changed` and its length.

    `changed`: numbers from 0. Pages past the end of `before` must be among them.
    """
    total = np.frombuffer(bytes.fromhex(digest), "<u8").copy()
    old = changed[changed < len(before)]
    gone = np.arange(len(now), len(before))
    total += _sum(changed, now[changed]) - _sum(old[old < len(now)], before[old[old < len(now)]])
    total -= _sum(gone, before[gone])
    return _text(total)


def _sum(places: Numbers, pages: Fingerprints) -> Fingerprints:
    factors = (places.astype(np.uint64) * np.uint64(2) + np.uint64(1))[:, None]
    total: Fingerprints = (pages * factors).sum(axis=0, dtype=np.uint64)
    return total


def _text(total: Fingerprints) -> str:
    return total.astype("<u8").tobytes().hex()


class NewestPages:
    """The pages of entries that no newer entry has. It is given entries from the newest to the oldest."""

    def __init__(self, pages: int) -> None:
        """`pages`: how many the database has after the newest entry. Those past its end are left out."""
        self._seen = np.zeros(pages + 1, np.bool_)

    def of(self, entry: Entry) -> tuple[Numbers, memoryview]:
        """Return the numbers (from 1) of these pages, and the pages. Blocks. Raises CorruptSnapshot."""
        numbers, pages = entry.pages()
        is_new = numbers < len(self._seen)
        is_new[is_new] = ~self._seen[numbers[is_new]]
        self._seen[numbers[is_new]] = True
        if is_new.all():
            return numbers, pages
        rows = np.frombuffer(pages, np.uint8).reshape(len(numbers), entry.head.page_bytes)
        return numbers[is_new], memoryview(rows[is_new].tobytes())
