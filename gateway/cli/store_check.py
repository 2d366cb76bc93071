"""Try on a store everything that a gateway ever does on one, below a prefix of its own.

1. Put an object and delete it. That shows whether the store can be written, and whether the rest can be tidied up.
2. Try all other operations on objects below `check/{random}/`. Where nothing can be deleted, they are below
   `check/kept/`, and each check writes the same ones again.
3. Delete these objects, also after an error, and those of an earlier check that was killed.
"""

import asyncio
import contextlib
import os
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, TypeVar

from gateway.errors import GatewayError, ObjectMissing, StorageDenied, StorageUnavailable
from gateway.lease.probe import Conditions, probe
from gateway.storage import ObjectInfo, PrefixedStorage, Storage

PAGE_KEYS = 2
"""The store to check is opened with so many keys a page, so that a short list has several pages."""

_FOLDER = "check/"
_PAGED = 2 * PAGE_KEYS + 1
_REPETITIONS = 5
_SMALL = bytes(range(256)) * 4
# More than one part of a multipart upload to S3.
_LARGE_BYTES = 12 << 20
_PIECE_BYTES = 1 << 20
_LISTED_WITHIN_S = 10.0
_POLL_S = 0.2
_ABANDONED_AFTER = timedelta(hours=1)

State = Literal["ok", "denied", "unreachable", "wrong", "failed", "skipped"]
_T = TypeVar("_T")


@dataclass
class Step:
    """One thing that was tried. `operation` is what must be allowed for it, as in `gateway.storage.protocol.Grant`.

    `ms` is how long it takes once, in milliseconds. `mb_per_s` are megabytes (10⁶ bytes) a second.
    """

    name: str
    operation: str
    needed: bool
    state: State = "ok"
    ms: float | None = None
    mb_per_s: float | None = None
    problem: str | None = None
    hint: str | None = None


@dataclass
class Report:
    """What was found. `left_behind` are keys of objects that the check could not delete, or may not."""

    steps: list[Step] = field(default_factory=list)
    conditional_writes: Conditions | None = None
    left_behind: list[str] = field(default_factory=list)

    @property
    def is_usable(self) -> bool:
        """Whether one gateway can use the store."""
        return all(step.state in ("ok", "skipped") for step in self.steps if step.needed)


class _Wrong(Exception):
    """The store allowed an operation and did something else."""


class _Skipped(Exception):
    """There is nothing to try."""


class _BrokenOff(Exception):
    """Ends an upload in its midst."""


class StoreCheck:
    """One check of `store`, the prefix of a gateway's repository. `on_step` is called with the name of each step."""

    def __init__(self, store: Storage, *, may_delete: bool, on_step: Callable[[str], None]) -> None:
        self._store, self._on_step = store, on_step
        self._may_delete = self._can_delete = may_delete
        self._report = Report()
        self._prefix = f"{_FOLDER}kept/"
        self._written: set[str] = set()
        self._uploaded: ObjectInfo | None = None
        self._large = os.urandom(_LARGE_BYTES)

    async def run(self) -> Report:
        """Try everything, then tidy up. Errors of the store are in the report."""
        try:
            await self._try_all()
        finally:
            self._report.left_behind = await self._tidy_up()
        return self._report

    async def _try_all(self) -> None:
        if not await self._try("put", "put", self._put):
            self._written.clear()
            # Nothing can be put, and reading may be allowed all the same.
            if self._report.steps[-1].state != "unreachable":
                await self._try("list", "list", self._list_alone)
                await self._try("get what is missing", "get", self._get_missing)
            return
        self._can_delete = await self._try("delete", "delete", self._delete)
        if self._can_delete:
            self._prefix = f"{_FOLDER}{uuid.uuid4().hex}/"
            await self._try("delete many", "delete", self._delete_many)
        for name, operation, work, needed in (
            ("get", "get", self._get, True),
            ("get a range", "get", self._get_range, True),
            ("get what is missing", "get", self._get_missing, True),
            ("head", "get", self._head, True),
            ("list, page by page", "list", self._list_pages, True),
            ("list after a write", "list", self._list_after_a_write, True),
            ("list folders", "list", self._list_folders, True),
            ("upload in parts", "upload", self._upload, True),
            ("download", "get", self._download, True),
            ("copy", "copy", self._copy, True),
            # Without it, parts of broken uploads stay until a rule of the bucket removes them.
            ("abort an upload", "abort", self._abort, False),
            # Without these, one gateway works, and two are not fenced.
            ("put if absent", "put", self._put_if_absent, False),
            ("put if unchanged", "put", self._put_if_match, False),
            ("upload if absent", "put", self._upload_if_absent, False),
            ("writers at once", "put", self._race, False),
        ):
            if [step.state for step in self._report.steps[-2:]] == ["unreachable"] * 2:
                return
            await self._try(name, operation, work, needed=needed)

    async def _try(
        self, name: str, operation: str, work: Callable[[], Awaitable[None]], *, needed: bool = True
    ) -> bool:
        """Add the step `name` to the report. Return whether it went well."""
        step = self._step = Step(name, operation, needed)
        self._report.steps.append(step)
        self._on_step(name)
        began_s = time.monotonic()
        try:
            await work()
        except _Wrong as error:
            step.state, step.problem = "wrong", str(error)
        except _Skipped as error:
            step.state, step.problem = "skipped", str(error)
        except GatewayError as error:
            step.state, step.problem, step.hint = _state_of(error), error.message, error.hint
        step.ms = round((time.monotonic() - began_s) * 1e3 if step.ms is None else step.ms, 1)
        return step.state == "ok"

    async def _timed(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Call a few times, and note the median time. Return the last result."""
        times_s = []
        for _ in range(_REPETITIONS):
            began_s = time.monotonic()
            result = await call()
            times_s.append(time.monotonic() - began_s)
        self._step.ms = statistics.median(times_s) * 1e3
        return result

    # ------------------------------------------------------------------ the steps

    async def _put(self) -> None:
        await self._timed(lambda: self._store.put(self._key("first", _FOLDER), _SMALL))

    async def _delete(self) -> None:
        if not self._may_delete:
            raise _Skipped("GATEWAY_STORE_NEVER_DELETE is set")
        await self._store.delete(self._key("first", _FOLDER))

    async def _delete_many(self) -> None:
        keys = [self._key(f"many/{number}") for number in range(_PAGED)]
        for key in keys:
            await self._store.put(key, _SMALL)
        await self._timed(lambda: self._store.delete_all(keys[1:]))
        if [info.key for info in await self._listed(f"{self._prefix}many/")] != keys[:1]:
            raise _Wrong("objects that were deleted are still there, or one that was not is gone")

    async def _get(self) -> None:
        await self._store.put(self._key("small"), _SMALL)
        if await self._timed(lambda: self._store.get(self._key("small"))) != _SMALL:
            raise _Wrong("the bytes are not those that were put")

    async def _get_range(self) -> None:
        if await self._timed(lambda: self._store.get_range(self._key("small"), 300, 100)) != _SMALL[300:400]:
            raise _Wrong("the bytes are not those of the range")

    async def _get_missing(self) -> None:
        if await self._exists(f"{self._prefix}missing"):
            raise _Wrong("there is an object that was never put")

    async def _head(self) -> None:
        if (await self._timed(lambda: self._store.head(self._key("small")))).size_bytes != len(_SMALL):
            raise _Wrong("the size is not that of what was put")

    async def _list_alone(self) -> None:
        await self._timed(lambda: self._listed(_FOLDER))

    async def _list_pages(self) -> None:
        keys = [self._key(f"pages/{number}") for number in range(_PAGED)]
        for key in keys:
            await self._store.put(key, b"")
        prefix = f"{self._prefix}pages/"
        if [info.key for info in await self._timed(lambda: self._listed(prefix))] != keys:
            raise _Wrong("the list does not have all keys, once each, in their order")
        if [info.key for info in await self._listed(prefix, keys[1])] != keys[2:]:
            raise _Wrong("the list from a key on does not have the keys that come after it")

    async def _list_after_a_write(self) -> None:
        key = self._key("changing")
        for data in (b"first", b"the second"):
            await self._store.put(key, data)
            await self._until_listed(key, [len(data)])
        if self._can_delete:
            await self._store.delete(key)
            if await self._exists(key):
                raise _Wrong("an object that was deleted is still there")
            await self._until_listed(key, [])

    async def _until_listed(self, key: str, sizes: list[int]) -> None:
        began_s = time.monotonic()
        while [info.size_bytes for info in await self._listed(key)] != sizes:
            if time.monotonic() - began_s > _LISTED_WITHIN_S:
                raise _Wrong(f"the list does not show a change within {_LISTED_WITHIN_S:g} s")
            await asyncio.sleep(_POLL_S)
        self._step.ms = max(self._step.ms or 0, (time.monotonic() - began_s) * 1e3)

    async def _list_folders(self) -> None:
        await self._store.put(self._key("folders/a/object"), b"")
        if [name async for name in self._store.folders(f"{self._prefix}folders/")] != ["a"]:
            raise _Wrong("the folders are not those of the keys")

    async def _upload(self) -> None:
        began_s = time.monotonic()
        stored = await self._store.upload(self._key("large"), self._pieces())
        self._moved(time.monotonic() - began_s)
        if stored is None or stored.size_bytes != _LARGE_BYTES:
            raise _Wrong("the size is not that of what was uploaded")
        self._uploaded = stored

    async def _download(self) -> None:
        if self._uploaded is None:
            raise _Skipped("nothing was uploaded")
        began_s = time.monotonic()
        pieces = self._store.download(self._uploaded.key, tag=self._uploaded.tag)
        data = b"".join([piece async for piece in pieces])
        self._moved(time.monotonic() - began_s)
        if data != self._large:
            raise _Wrong("the bytes are not those that were uploaded")

    async def _copy(self) -> None:
        await self._store.copy(self._key("small"), self._key("copy"))
        if await self._store.get(self._key("copy")) != _SMALL:
            raise _Wrong("the copy has other bytes")

    async def _abort(self) -> None:
        async def breaking_off() -> AsyncIterator[bytes]:
            yield self._large
            raise _BrokenOff

        try:
            await self._store.upload(self._key("aborted"), breaking_off())
        except _BrokenOff as error:
            # The store says in a note what it could not take back.
            for note in getattr(error, "__notes__", ()):
                raise StorageDenied(note) from None
        if await self._exists(self._key("aborted")):
            raise _Wrong("an upload that broke off left an object behind")

    async def _put_if_absent(self) -> None:
        key = self._key("absent")
        was_absent = not await self._exists(key)
        if await self._store.put_if_absent(key, b"first") is not was_absent:
            raise _Wrong("an object that was missing was not put, or one that existed was replaced")
        if await self._store.put_if_absent(key, b"second"):
            raise _Wrong("an object that existed was replaced")

    async def _put_if_match(self) -> None:
        key = self._key("matching")
        await self._store.put(key, uuid.uuid4().bytes)
        version = (await self._store.get_versioned(key)).version
        if not await self._store.put_if_match(key, b"changed", version):
            raise _Wrong("an object that had not changed was not replaced")
        if await self._store.put_if_match(key, b"changed again", version):
            raise _Wrong("an object that had changed was replaced")

    async def _upload_if_absent(self) -> None:
        async def one() -> AsyncIterator[bytes]:
            yield b"second"

        if await self._store.upload(self._key("small"), one(), if_absent=True) is not None:
            raise _Wrong("an object that existed was replaced")

    async def _race(self) -> None:
        self._key("probe/kept")
        conditions = await probe(PrefixedStorage(self._store, self._prefix), may_delete=self._can_delete)
        self._report.conditional_writes = conditions
        if conditions is not Conditions.KEPT:
            raise _Wrong(f"conditional writes are {conditions.value}: two gateways on this store are not fenced")

    # ------------------------------------------------------------------ what they share

    def _key(self, name: str, prefix: str | None = None) -> str:
        """The key of an object of this check, which is deleted at its end."""
        key = f"{prefix or self._prefix}{name}"
        self._written.add(key)
        return key

    async def _exists(self, key: str) -> bool:
        try:
            await self._store.get(key)
        except ObjectMissing:
            return False
        return True

    async def _listed(self, prefix: str, after: str = "") -> list[ObjectInfo]:
        return [info async for info in self._store.list(prefix, after)]

    async def _pieces(self) -> AsyncIterator[bytes]:
        for start in range(0, _LARGE_BYTES, _PIECE_BYTES):
            yield self._large[start : start + _PIECE_BYTES]

    def _moved(self, duration_s: float) -> None:
        self._step.ms, self._step.mb_per_s = duration_s * 1e3, round(_LARGE_BYTES / duration_s / 1e6, 1)

    async def _tidy_up(self) -> list[str]:
        """Delete what this check wrote, and what an earlier one left behind. Return the keys that stay."""
        if not self._written:
            return []
        listed = []
        with contextlib.suppress(GatewayError):
            listed = await self._listed(_FOLDER)
        if not self._can_delete:
            return sorted(self._written & {info.key for info in listed} if listed else self._written)
        # By the store's clock: what is newest was written by this check.
        newest = max((info.modified_at for info in listed), default=None)
        left = self._written | {
            info.key
            for info in listed
            if info.key.startswith(self._prefix) or (newest and newest - info.modified_at > _ABANDONED_AFTER)
        }
        for key in sorted(left):
            try:
                await self._store.delete(key)
            except StorageUnavailable:
                break
            except GatewayError:
                continue
            left.discard(key)
        return sorted(left)


def _state_of(error: GatewayError) -> State:
    if isinstance(error, ObjectMissing):
        return "wrong"
    if isinstance(error, StorageDenied):
        return "denied"
    return "unreachable" if isinstance(error, StorageUnavailable) else "failed"
