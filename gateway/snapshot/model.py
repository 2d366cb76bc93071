"""What a snapshot is, as data. Pure.

A manifest comes from a store that others may write to, so nothing of it is believed before
`Manifest.parse` has looked at it: its own digest, its format, and every path in it.
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
# A snapshot restores into the data directory and nowhere else: one plain name, or one below one
# plain directory. What Chroma calls them is checked by the folder that knows Chroma.
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")

# Far above what this gateway writes, far below what would hurt: a manifest may come from anywhere.
_MAX_PIECE_BYTES = 64 << 20
_MAX_PATCHES = 64
_MAX_PACK_BYTES = 64 << 20

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Piece(NamedTuple):
    """Bytes in the store: `size_bytes` of them, as `stored_bytes` at `offset` of pack number `pack`."""

    size_bytes: Annotated[int, Field(ge=1, le=_MAX_PIECE_BYTES)]
    pack: Count
    offset: Count
    stored_bytes: Count
    codec: Literal["zstd", "raw"]


class File(_Record):
    """A file of the data directory: its base, and over it the patches in their order, cut to its size.

    `layout` are the sizes of the blocks that patches are made of, see `gateway.snapshot.blocks`.
    `page_bytes`, where given, says that `sha256` is of the file's pages' digests instead of its bytes.
    """

    path: str
    size_bytes: Count
    sha256: Sha256
    page_bytes: Annotated[int, Field(ge=512, le=65536)] | None = None
    layout: Annotated[tuple[Annotated[int, Field(ge=1, le=_MAX_PIECE_BYTES)], ...], Field(min_length=1, max_length=8)]
    base: tuple[Piece, ...]
    patches: Annotated[tuple[tuple[Piece, ...], ...], Field(max_length=_MAX_PATCHES)] = ()

    @property
    def pieces(self) -> Iterator[Piece]:
        """All of them, in the order in which they are applied."""
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
    """An object of the store, named by what is in it."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0, le=_MAX_PACK_BYTES)]


class SnapshotCollection(_Record):
    """A collection as it was in the snapshot."""

    tenant: str = Field(description="tenant it belongs to")
    database: str = Field(description="database it belongs to")
    name: str = Field(description="its name when the snapshot was taken")
    id: str = Field(description="its UUID")
    records: Count = Field(description="how many records it held")
    dimension: int | None = Field(None, description="of its embeddings; null before the first record")


class MigrationRow(_Record):
    dir: str
    version: int
    filename: str


class Verification(_Record):
    """What looking at all of a snapshot found."""

    ok: bool = Field(description="whether it can be restored, as far as this level tells")
    level: Literal["data", "boot"] = Field(
        description="`data`: every byte is there and what it was; `boot`: a Chroma served all of it, too"
    )
    at: AwareDatetime = Field(description="when that was")
    duration_s: float = Field(0, description="how long it took, in seconds")
    problems: tuple[str, ...] = Field((), description="what is wrong with it; the first twenty")


class Snapshot(_Record):
    """What people are shown of a snapshot."""

    id: str = Field(description="sorts by time of creation")
    label: str | None = Field(None, description="what the person who took it called it")
    created_at: AwareDatetime = Field(description="when its cut was made: writes acknowledged before are in it")
    state: Literal["complete", "damaged"] = Field(
        "complete", description="'damaged' when its manifest cannot be read; see problem"
    )
    problem: str | None = Field(None, description="why it is damaged")
    verified: Verification | None = Field(
        None, description="what its latest verification found; null if never verified"
    )
    size_bytes: Count = Field(0, description="of its files, as they lie in the data directory")
    uploaded_bytes: Count = Field(0, description="that went to the store for it")
    files: Count = Field(0, description="how many files it has")
    collections: tuple[SnapshotCollection, ...] = Field((), description="what it holds")
    chroma_version: str | None = Field(None, description="version of the chromadb package that wrote the data")
    duration_s: float = Field(0, description="from request to manifest, in seconds")
    drain_ms: float = Field(0, description="how long writes under way took to end, new ones waiting, in ms")
    freeze_ms: float = Field(0, description="how long nothing was written at all, in ms")


class Manifest(_Record):
    """A snapshot with everything needed to restore it."""

    snapshot: Snapshot
    migrations: tuple[MigrationRow, ...]
    segments: dict[str, int]
    """max_seq_id by live vector segment, as the database has it."""
    positions: dict[str, int]
    """By live vector segment, up to where its index's files here have the log; 0 if it has none.

    Where that is less than `segments` says, the database's log has the rest: a restore sets max_seq_id back to
    it, and Chroma replays.
    """
    packs: tuple[Pack, ...]
    files: tuple[File, ...]

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if not is_snapshot_id(self.snapshot.id):
            raise ValueError(f"{self.snapshot.id!r} is no snapshot id")
        paths = [file.path for file in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError("a file is named twice")
        if self.positions.keys() != self.segments.keys():
            raise ValueError("the positions are of other segments than the database's")
        for segment_id, position in self.positions.items():
            if not 0 <= position <= self.segments[segment_id]:
                raise ValueError(f"the index of segment {segment_id} is ahead of the database")
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
        """The manifest as it is stored; `digest` is the SHA-256 of the canonical form of `manifest`."""
        body = self.model_dump(mode="json", exclude={"snapshot": {"verified"}})  # which is not part of it
        document = {"format": FORMAT, "digest": _digest(body), "manifest": body}
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, data: bytes, snapshot_id: str) -> Self:
        """Read what `to_bytes` wrote for `snapshot_id`.

        Raises IncompatibleSnapshot for a newer format, CorruptSnapshot for anything that does not add up.
        """
        try:
            document = json.loads(data)
            version = document["format"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CorruptSnapshot(
                f"the manifest of snapshot {snapshot_id} cannot be read: it is cut off or no manifest",
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
    """Raise IncompatibleSnapshot unless this gateway knows the format `version` of `what`."""
    if not isinstance(version, int) or version < 1:
        raise CorruptSnapshot(f"{what} names no format: {version!r}")
    if version > FORMAT:
        raise IncompatibleSnapshot(
            f"{what} is of format {version}, this gateway knows up to {FORMAT}",
            "use the gateway that wrote it, or a newer one",
        )


def new_snapshot_id(now: datetime, newest: str | None) -> str:
    """An id that sorts by time, such as `20261120T210455Z-3f9a1c`, and after `newest` in any case.

    The last part is the fraction of the second. A clock that was set back must not make a new snapshot
    sort before an older one: `latest` is the last in order.
    """
    now = now.astimezone(UTC)
    fresh = _id_of(now.replace(microsecond=0), now.microsecond * _FRACTIONS // 1_000_000)
    if newest is None or fresh > newest:
        return fresh
    fraction = int(newest.partition("-")[2], 16) + 1
    try:
        return _id_of(_moment(newest) + timedelta(seconds=fraction // _FRACTIONS), fraction % _FRACTIONS)
    except OverflowError as error:
        raise CorruptSnapshot(f"snapshot {newest} is of the last moment there is, none can come after it") from error


def _id_of(second: datetime, fraction: int) -> str:
    return f"{second:{_ID_MOMENT}}-{fraction:06x}"


def is_snapshot_id(text: str) -> bool:
    """Whether `text` is an id: of a moment that exists, since `damaged` has nothing else to tell it by."""
    if not _ID.fullmatch(text):
        return False
    try:
        _moment(text)
    except ValueError:
        return False
    return True


def damaged(snapshot_id: str, problem: str) -> Snapshot:
    """How a snapshot whose manifest cannot be read is shown."""
    return Snapshot(id=snapshot_id, created_at=_moment(snapshot_id), state="damaged", problem=problem)


def _moment(snapshot_id: str) -> datetime:
    return datetime.strptime(snapshot_id.partition("-")[0], _ID_MOMENT).replace(tzinfo=UTC)


def _digest(body: Any) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(canonical).hexdigest()


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
