"""Catch one cut of a running Chroma: the database and the indexes of the same moment.

Indexes change only every `sync_threshold` records, so nearly all of their bytes are read ahead, while
writes go on. In the freeze it is proved, file by file, that nothing moved since; what did move is
copied then and there. Nothing here opens or closes the gate: `create` does.
"""

import asyncio
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from gateway.chroma.database import Contents, Pinned, write_lock
from gateway.chroma.disk import DATABASE, Signature, index_signatures, write_error
from gateway.snapshot.packing import PackedFile, PackWriter
from gateway.snapshot.plan import moved

# In a freeze this much is copied in about 10 ms; for more it is better to open the gate, read
# ahead again and come back.
COPY_IN_FREEZE_BYTES = 16 << 20


@dataclass(slots=True)
class Ahead:
    """What was read ahead: packed files with the signatures and max_seq_ids they had."""

    signatures: dict[str, Signature] = field(default_factory=dict)
    segments: dict[str, int] = field(default_factory=dict)
    packed: dict[str, PackedFile] = field(default_factory=dict)


@dataclass(slots=True)
class Cut:
    """One moment. `paths` are its index files, `copied` those of them that lie in scratch."""

    pinned: Pinned
    paths: list[str]
    copied: list[str]

    def close(self) -> None:
        self.pinned.close()


@dataclass(slots=True)
class TooMuchMoved:
    """There was more to copy than a freeze may take."""

    size_bytes: int

    def close(self) -> None:
        """Nothing is held."""


def look(data_dir: Path) -> tuple[dict[str, int], dict[str, Signature]]:
    """max_seq_id by live vector segment, and the signatures of their index files, as of about now."""
    pinned = Pinned(data_dir)
    try:
        segments = pinned.segments()
    finally:
        pinned.close()
    return segments, index_signatures(data_dir, segments)


async def read_ahead(data_dir: Path, ahead: Ahead, packs: PackWriter) -> None:
    """Pack every index file that is not in `ahead` as it is now, one index after the other."""
    segments, signatures = await asyncio.to_thread(look, data_dir)
    stale = _stale(ahead, segments, signatures)
    for segment_id in segments:
        for path in stale:
            if not path.startswith(f"{segment_id}/"):
                continue
            before, now_ns = signatures[path], time.time_ns()
            try:
                ahead.packed[path] = await packs.add(path, data_dir / path)
            except FileNotFoundError:
                continue  # its collection was deleted meanwhile
            if before.is_settled(now_ns):
                ahead.signatures[path] = before
        await packs.seal()
    ahead.segments = segments


def freeze(data_dir: Path, ahead: Ahead, scratch: Path, copy_limit_bytes: int | None) -> Cut | TooMuchMoved:
    """Lock SQLite, pin this moment, copy what moved since `ahead` into `scratch`, unlock. Blocks.

    The gate must be closed and drained. With `copy_limit_bytes` None everything is copied, however
    long it takes. Raises QuiesceTimeout, DiskFull.
    """
    with write_lock(data_dir):
        pinned = Pinned(data_dir)
        try:
            segments = pinned.segments()
            signatures = index_signatures(data_dir, segments)
            stale = _stale(ahead, segments, signatures)
            size_bytes = sum(signatures[path].size_bytes for path in stale)
            if copy_limit_bytes is not None and size_bytes > copy_limit_bytes:
                pinned.close()
                return TooMuchMoved(size_bytes)
            for path in stale:
                target = scratch / path
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(data_dir / path, target)
            if not pinned.keeps_writers_going:
                pinned.copy_to(scratch / DATABASE)
        except OSError as error:
            pinned.close()
            raise write_error(f"copying what moved into {scratch} failed", error) from error
        except BaseException:
            pinned.close()
            raise
        return Cut(pinned, list(signatures), stale)


def describe(cut: Cut, scratch: Path) -> Contents:
    """Write the cut's database into `scratch` and return what it says. Blocks, while Chroma goes on."""
    target = scratch / DATABASE
    if not target.exists():
        cut.pinned.copy_to(target)
    return cut.pinned.contents()


async def pack_cut(cut: Cut, ahead: Ahead, scratch: Path, packs: PackWriter) -> list[PackedFile]:
    """Every file of the cut in packs: those read ahead, and now those in `scratch`."""
    copied = set(cut.copied)
    files = [ahead.packed[path] for path in cut.paths if path not in copied]
    files += [await packs.add(path, scratch / path) for path in cut.copied]
    await packs.seal()
    files.append(await packs.add(DATABASE, scratch / DATABASE))
    await packs.seal()
    return files


def _stale(ahead: Ahead, segments: dict[str, int], signatures: dict[str, Signature]) -> list[str]:
    """Files that are not in `ahead` as they are now: they changed, or their segment was synced since."""
    synced = set(moved(ahead.segments, segments))
    changed = set(moved(ahead.signatures, signatures))
    return sorted(path for path in signatures if path in changed or path.partition("/")[0] in synced)
