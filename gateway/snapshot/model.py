"""The data model of a snapshot: manifest, files, pieces, packs, ids. Pure.

Others may write to the store, so a manifest is not trusted. `Manifest.parse` checks its digest, its format, every path
and every reference before anything else uses it.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from gateway.errors import CorruptSnapshot, IncompatibleSnapshot

FORMAT = 1
"""The newest repository and manifest format this gateway knows."""

_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}")
_ID_MOMENT = "%Y%m%dT%H%M%SZ"
_FRACTIONS = 1 << 24
# A snapshot restores into the data directory only: a path is a plain name, or a plain name below one plain directory.
# `gateway.chroma` checks whether Chroma has such a file.
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")

# A manifest is not trusted. These bounds are far above what this gateway writes and far below what would do harm.
_MAX_PIECE_BYTES = 64 << 20
# `gateway.snapshot.plan` has the number that is written. Raising that one up to this one needs no new format.
_MOST_PATCHES_READ = 64
_MAX_PACK_BYTES = 64 << 20

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
BlockBytes = Annotated[int, Field(ge=4, le=_MAX_PIECE_BYTES, multiple_of=4)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Piece(NamedTuple):
    """`size_bytes` of a file, stored as `stored_bytes` at `offset` of pack number `pack`."""

    size_bytes: Annotated[int, Field(ge=1, le=_MAX_PIECE_BYTES)]
    pack: Count
    offset: Count
    stored_bytes: Count
    codec: Literal["zstd", "raw"]


class File(_Record):
    """A file of the data directory: its base, then its patches in order, then truncated or extended to `size_bytes`.

    `layout`: the block sizes that patches refer to, see `gateway.snapshot.blocks`. If `page_bytes` is given, `sha256`
    is the digest of the page digests instead of the bytes.
    """

    path: str
    size_bytes: Count
    sha256: Sha256
    page_bytes: Annotated[int, Field(ge=512, le=65536)] | None = None
    layout: Annotated[tuple[BlockBytes, ...], Field(min_length=1, max_length=8)]
    base: tuple[Piece, ...]
    patches: Annotated[tuple[tuple[Piece, ...], ...], Field(max_length=_MOST_PATCHES_READ)] = ()

    @property
    def pieces(self) -> Iterator[Piece]:
        """All pieces, in the order in which they are applied."""
        yield from self.base
        for patch in self.patches:
            yield from patch

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        if not _PATH.fullmatch(value):
            raise ValueError(f"{value!r} does not belong into a data directory")
        return value


class Pack(_Record):
    """An object of the store, named by the SHA-256 of its bytes."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0, le=_MAX_PACK_BYTES)]


class SnapshotCollection(_Record):
    """A collection as it is in the snapshot."""

    tenant: str = Field(description="tenant it belongs to")
    database: str = Field(description="database it belongs to")
    name: str = Field(description="its name when the snapshot was taken")
    id: str = Field(description="its UUID")
    records: Count = Field(description="how many records it held")
    dimension: int | None = Field(None, description="of its embeddings; null before the first record")


class MigrationRow(_Record):
    """A row of Chroma's table of migrations."""

    dir: str
    version: int
    filename: str


class Verification(_Record):
    """The result of a verification."""

    ok: bool = Field(description="whether the snapshot can be restored, as far as this level can tell")
    level: Literal["data", "boot"] = Field(
        description="`data`: every byte is there and unchanged; `boot`: in addition, a Chroma served every collection"
    )
    at: AwareDatetime = Field(description="when it was verified")
    duration_s: float = Field(0, description="how long it took, in seconds")
    problems: tuple[str, ...] = Field((), description="what is wrong with it, at most twenty")


class Snapshot(_Record):
    """A snapshot as the admin API shows it."""

    id: str = Field(description="sorts by time of creation")
    label: str | None = Field(None, description="given by the person who took it")
    created_at: AwareDatetime = Field(description="time of its cut: writes acknowledged before are in it")
    state: Literal["complete", "damaged"] = Field(
        "complete", description="'damaged' if its manifest cannot be read or a pack of it is missing; see problem"
    )
    problem: str | None = Field(None, description="why it is damaged")
    verified: Verification | None = Field(None, description="result of its latest verification; null if never verified")
    size_bytes: Count = Field(0, description="size of its files in the data directory")
    uploaded_bytes: Count = Field(0, description="bytes that were sent to the store for it")
    files: Count = Field(0, description="how many files it has")
    collections: tuple[SnapshotCollection, ...] = Field((), description="the collections in it")
    chroma_version: str | None = Field(None, description="version of the chromadb package that wrote the data")
    duration_s: float = Field(0, description="from request to manifest, in seconds")
    drain_ms: float = Field(0, description="how long writes under way took to end while new ones waited, in ms")
    freeze_ms: float = Field(0, description="how long no write went through, in ms")


class Manifest(_Record):
    """A snapshot with everything that a restore needs."""

    snapshot: Snapshot
    migrations: tuple[MigrationRow, ...]
    segments: dict[str, int]
    """max_seq_id by live vector segment, from the database of the snapshot."""
    positions: dict[str, int]
    """By live vector segment: the position in Chroma's log up to which the files of its index hold it; 0 without files.

    Where the position is less than in `segments`, the log in the database has the rest. A restore sets max_seq_id back
    to the position, and Chroma replays the log from there.
    """
    packs: tuple[Pack, ...]
    files: tuple[File, ...]
    journal: Count | None = None
    """The number of the newest entry of the journal whose cut was before the snapshot's: it holds everything up to
    there. None if the snapshot does not belong to the line of the journal, such as an archive that was uploaded."""
    unsound: tuple[str, ...] | None = None
    """The segments with files whose index was not found sound before it was stored. None if nobody looked."""

    @property
    def is_upload(self) -> bool:
        """Whether it is an archive that was uploaded: its data were not served when it was made.

        A gateway that knows no journal writes no such field.
        """
        return self.journal is None and "journal" in self.model_fields_set

    @property
    def sound(self) -> frozenset[str]:
        """The segments whose index was found sound before it was stored. Files with its digests are sound too."""
        if self.unsound is None:
            return frozenset()
        return frozenset(each for each, position in self.positions.items() if position).difference(self.unsound)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if not is_snapshot_id(self.snapshot.id):
            raise ValueError(f"{self.snapshot.id!r} is no snapshot id")
        paths = [file.path for file in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError("a file is named twice")
        if self.positions.keys() != self.segments.keys():
            raise ValueError("the positions are for other segments than the database's")
        for segment_id, position in self.positions.items():
            if not 0 <= position <= self.segments[segment_id]:
                raise ValueError(f"the index of segment {segment_id} is ahead of the database")
            if position and not any(path.startswith(f"{segment_id}/") for path in paths):
                raise ValueError(f"the index of segment {segment_id} has no files")
        for file in self.files:
            for piece in file.pieces:
                if piece.pack >= len(self.packs):
                    raise ValueError(f"{file.path} names a pack that is not listed")
                if piece.stored_bytes > piece.size_bytes:
                    raise ValueError(f"{file.path} names a piece that is larger stored than it is")
                if piece.offset + piece.stored_bytes > self.packs[piece.pack].size_bytes:
                    raise ValueError(f"{file.path} names bytes past the end of pack {self.packs[piece.pack].sha256}")
        return self

    def to_bytes(self) -> bytes:
        """Return the object to store. `digest` is the SHA-256 of the canonical form of `manifest`."""
        body = self.model_dump(mode="json", exclude={"snapshot": {"verified"}})  # stored beside the manifest
        document = {"format": FORMAT, "digest": _digest(body), "manifest": body}
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, data: bytes, snapshot_id: str) -> Self:
        """Read what `to_bytes` returned for `snapshot_id`.

        Raises IncompatibleSnapshot for a newer format, CorruptSnapshot for anything that is not consistent.
        """
        try:
            document = json.loads(data)
            version = document["format"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CorruptSnapshot(
                f"the manifest of snapshot {snapshot_id} cannot be read: it is cut off or is not a manifest",
                "restore another snapshot, see GET /admin/snapshot",
            ) from error
        check_format(version, f"snapshot {snapshot_id}")
        try:
            if document["digest"] != _digest(document["manifest"]):
                raise CorruptSnapshot(
                    f"the manifest of snapshot {snapshot_id} was changed: it does not have the digest it names",
                    "restore another snapshot, see GET /admin/snapshot",
                )
            manifest = cls.model_validate_json(json.dumps(document["manifest"]))
        except (ValidationError, KeyError, TypeError) as error:
            raise CorruptSnapshot(
                f"the manifest of snapshot {snapshot_id} is not valid: {_first_problem(error)}",
                "restore another snapshot, see GET /admin/snapshot",
            ) from error
        if manifest.snapshot.id != snapshot_id:
            raise CorruptSnapshot(f"the manifest of snapshot {snapshot_id} is that of {manifest.snapshot.id}")
        return manifest


def check_format(version: Any, what: str) -> None:
    """Raise IncompatibleSnapshot if the format `version` of `what` is too new, CorruptSnapshot if it is none."""
    if not isinstance(version, int) or version < 1:
        raise CorruptSnapshot(f"{what} names no format: {version!r}")
    if version > FORMAT:
        raise IncompatibleSnapshot(
            f"{what} is of format {version}, this gateway knows up to {FORMAT}",
            "use the gateway that wrote it, or a newer one",
        )


def new_snapshot_id(now: datetime, newest: str | None) -> str:
    """Return an id such as `20261120T210455Z-3f9a1c`. Ids sort by time, and the new one sorts after `newest`.

    The last part is the fraction of the second. `latest` is the last id in order, so a clock that was set back must not
    make a new snapshot sort before an older one.
    """
    now = now.astimezone(UTC)
    fresh = _id_of(now.replace(microsecond=0), now.microsecond * _FRACTIONS // 1_000_000)
    if newest is None or fresh > newest:
        return fresh
    fraction = int(newest.partition("-")[2], 16) + 1
    try:
        return _id_of(moment_of(newest) + timedelta(seconds=fraction // _FRACTIONS), fraction % _FRACTIONS)
    except OverflowError as error:
        raise CorruptSnapshot(
            f"no id can sort after snapshot {newest}: its time is the last one that exists"
        ) from error


def _id_of(second: datetime, fraction: int) -> str:
    return f"{second:{_ID_MOMENT}}-{fraction:06x}"


def is_snapshot_id(text: str) -> bool:
    """Return whether `text` is an id. Its time must exist, since a damaged snapshot has no other."""
    if not _ID.fullmatch(text):
        return False
    try:
        moment_of(text)
    except ValueError:
        return False
    return True


def damaged(snapshot_id: str, problem: str) -> Snapshot:
    """Return how to show a snapshot whose manifest cannot be read."""
    return Snapshot(id=snapshot_id, created_at=moment_of(snapshot_id), state="damaged", problem=problem)


def moment_of(snapshot_id: str) -> datetime:
    """Return the second in which a snapshot was taken, in UTC. Raises ValueError if there is no such time."""
    # In a twentieth of the time of strptime: a list of 10,000 snapshots has as many.
    return datetime.fromisoformat(snapshot_id.partition("-")[0])


def _digest(body: Any) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(canonical).hexdigest()


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
