"""The documents of one user in the store: what can be done with them, whoever asks."""

import asyncio
import hashlib
import mimetypes
import random
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from gateway.documents import flags
from gateway.documents.digest import Expected
from gateway.documents.layout import Place, avatar_prefix, avatars_prefix, check_avatar
from gateway.errors import (
    BodyTooLarge,
    Conflict,
    InvalidRequest,
    NotFound,
    ObjectMissing,
    PreconditionFailed,
    StorageUnavailable,
)
from gateway.storage import ObjectInfo, Storage

_FLAG_TRIES = 60
_FLAG_PAUSE_S = 0.02
_LOST_ANSWERS = 4
_KNOWN_DIGESTS = 100_000
_READS_AT_ONCE = 8
_DELETES_AT_ONCE = 16

_TYPES = mimetypes.MimeTypes()
for _type, _suffix in (("text/markdown", ".md"), ("application/jsonl", ".jsonl"), ("text/csv", ".csv")):
    _TYPES.add_type(_type, _suffix)


@dataclass(frozen=True, slots=True)
class Document:
    """One document. `digest` begins with "sha256:" where we know the bytes, else it is the store's tag."""

    name: str
    size_bytes: int
    type: str
    modified_at: datetime
    tag: str
    digest: str
    used: bool | None


@dataclass(frozen=True, slots=True)
class Page:
    """Some documents in the order of their names, and the name to go on after, if there are more."""

    documents: list[Document]
    next: str | None


class DocumentStore:
    """All documents of one user. Names were checked by whoever made a `Place`; every key comes from one."""

    def __init__(self, store: Storage, user_id: str, max_document_bytes: int) -> None:
        self.store, self.user_id, self.max_document_bytes = store, user_id, max_document_bytes
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._digests: OrderedDict[tuple[str, str], str] = OrderedDict()

    # ------------------------------------------------------------------ reading

    async def avatars(self) -> list[str]:
        """The ids of all avatars that have anything in the store."""
        found = []
        async for name in self.store.folders(avatars_prefix(self.user_id)):
            try:
                found.append(check_avatar(name))
            except InvalidRequest:
                continue  # nothing that could be asked for
        return found

    async def page(self, place: Place, *, prefix: str, after: str, limit: int, with_digests: bool) -> Page:
        """At most `limit` documents whose names begin with `prefix` and come after `after`.

        `with_digests` reads those documents whose bytes were not seen yet.
        """
        known = await self.flags(place)
        documents: list[Document] = []
        async for name, info in self._listed(place, prefix, after):
            if len(documents) == limit:
                documents = await self._digested(place, documents) if with_digests else documents
                return Page(documents, documents[-1].name)
            documents.append(self._document(place, name, info, known))
        return Page(await self._digested(place, documents) if with_digests else documents, None)

    async def all(self, place: Place) -> AsyncIterator[Document]:
        """Every document, in the order of their names, with its flag."""
        known = await self.flags(place)
        async for name, info in self._listed(place):
            yield self._document(place, name, info, known)

    async def document(self, place: Place, name: str) -> Document:
        """One document. Raises NotFound."""
        info = await self._head(place, name)
        return self._document(place, name, info, await self.flags(place))

    def read(self, place: Place, document: Document, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The bytes of `document`, or some of them, in pieces. Raises ObjectMissing if it was replaced meanwhile."""
        return self.store.download(place.key(document.name), start, length, tag=document.tag)

    async def link(self, place: Place, name: str, expires_s: int) -> str:
        """A URL with which anybody can get the document for `expires_s`. Raises NotFound, InvalidRequest."""
        await self._head(place, name)
        url = await self.store.presign(place.key(name), expires_s, name.rpartition("/")[2])
        if url is None:
            raise InvalidRequest(f"the store {self.store.url} has no links", "download through the gateway")
        return url

    # ------------------------------------------------------------------ writing

    async def put(
        self,
        place: Place,
        name: str,
        pieces: AsyncIterator[bytes],
        *,
        expected: Expected,
        if_absent: bool = False,
        if_tag: str | None = None,
        used: bool | None = None,
    ) -> tuple[Document, bool]:
        """Store a document, whole or not at all; return it, and whether it is new.

        A new one gets the flag `used`, or the default; a replaced one keeps its flag unless `used` says
        otherwise. Raises InvalidRequest if the bytes are not the `expected` ones, PreconditionFailed if a
        condition does not hold, BodyTooLarge.
        """
        key = place.key(name)
        await self.flags(place)  # what cannot be read is told before anything is stored
        try:
            before: ObjectInfo | None = await self.store.head(key)
        except ObjectMissing:
            before = None
        digest = hashlib.sha256()
        stored = await self.store.upload(
            key, self._checked(pieces, digest, expected), if_absent=if_absent, if_tag=if_tag
        )
        if stored is None:
            raise PreconditionFailed(
                f"{name!r} exists already" if if_absent else f"{name!r} is not what it was", "look at its present ETag"
            )
        self._note_digest(key, stored.tag, digest.hexdigest())
        known: Mapping[str, bool] = {}
        if place.flags_key is not None:
            if used is not None or before is None:
                known = await self.set_flags(place, {name: flags.DEFAULT if used is None else used})
            else:
                known = await self.flags(place)
        return self._document(place, name, stored, known), before is None

    async def _checked(
        self, pieces: AsyncIterator[bytes], digest: "hashlib._Hash", expected: Expected
    ) -> AsyncIterator[bytes]:
        size_bytes = 0
        async for piece in pieces:
            size_bytes += len(piece)
            if size_bytes > self.max_document_bytes:
                raise BodyTooLarge(
                    f"a document may have {self.max_document_bytes} bytes", "raise GATEWAY_MAX_DOCUMENT_BYTES"
                )
            digest.update(piece)
            expected.update(piece)
            yield piece
        expected.check()

    async def copy(self, source: Place, name: str, target: Place, new_name: str, *, if_absent: bool) -> Document:
        """Copy a document within the store, with its flag where both folders have flags."""
        document = await self.document(source, name)
        key = target.key(new_name)
        if key == source.key(name) and not if_absent:
            return document  # S3 refuses what would change nothing
        if not await self.store.copy(source.key(name), key, if_absent=if_absent):
            raise Conflict(f"{new_name!r} exists already", "choose another name, or set 'replace'")
        if target.flags_key is not None:
            used = flags.DEFAULT if document.used is None else document.used
            await self.set_flags(target, {new_name: used})
        return await self.document(target, new_name)

    async def delete(self, place: Place, name: str, *, if_tag: str | None = None) -> None:
        """Remove a document and its flag. Raises NotFound, and PreconditionFailed if it has not the tag `if_tag`."""
        await self.flags(place)  # what cannot be read is told before anything is deleted
        info = await self._head(place, name)
        if if_tag is not None and info.tag != if_tag:
            raise PreconditionFailed(f"{name!r} is not what it was", "look at its present ETag")
        await self.store.delete(place.key(name))
        if place.flags_key is not None:
            await self.set_flags(place, {}, drop=(name,))

    async def contents(self, avatar_id: str) -> list[ObjectInfo]:
        """Everything there is of an avatar, also what the layout does not name."""
        return [info async for info in self.store.list(avatar_prefix(self.user_id, avatar_id))]

    async def delete_contents(self, contents: Iterable[ObjectInfo], progress: Callable[[int], None]) -> None:
        """Remove what `contents` found. Safe to repeat."""
        waiting = iter(contents)

        async def delete() -> None:
            for info in waiting:
                await self.store.delete(info.key)
                progress(info.size_bytes)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_DELETES_AT_ONCE):
                    group.create_task(delete())
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None

    # ------------------------------------------------------------------ flags

    async def flags(self, place: Place) -> dict[str, bool]:
        """What the folder's flags say; nothing where it has none. Raises Conflict if they cannot be read."""
        if place.flags_key is None:
            return {}
        try:
            data = await self.store.get(place.flags_key)
        except ObjectMissing:
            return {}
        return flags.parse(data, place.flags_key)

    async def set_flags(
        self, place: Place, changes: Mapping[str, bool], *, drop: Iterable[str] = (), repair: bool = False
    ) -> dict[str, bool]:
        """Change some flags, by compare-and-swap: changes that others make at the same time stay. Safe to retry.

        The flags of `drop` go, but for those of documents that somebody has stored again meanwhile.
        `repair` makes the flags those of exactly the documents that exist; a missing file is made whole
        in any case. Returns what the flags are then.
        """
        if place.flags_key is None:
            raise InvalidRequest(f"the documents in {place.folder.path} have no flags")
        lock = self._locks.setdefault(place.flags_key, asyncio.Lock())
        lost = 0
        async with lock:  # among ourselves; the compare-and-swap is for everybody else
            for attempt in range(_FLAG_TRIES):
                try:
                    if (
                        written := await self._swap_flags(place, place.flags_key, changes, set(drop), repair)
                    ) is not None:
                        return written
                except StorageUnavailable:
                    # Whether it was written nobody knows. To do it again is right in both cases.
                    lost += 1
                    if lost == _LOST_ANSWERS:
                        raise
                await asyncio.sleep(_FLAG_PAUSE_S * random.uniform(0.5, 1) * min(attempt + 1, 10))  # noqa: S311
        raise Conflict(f"{place.flags_key} was changed by others {_FLAG_TRIES} times in a row", "try again")

    async def _swap_flags(
        self, place: Place, key: str, changes: Mapping[str, bool], drop: set[str], repair: bool
    ) -> dict[str, bool] | None:
        """Write the flags once; None if somebody else did meanwhile."""
        try:
            old = await self.store.get_versioned(key)
        except ObjectMissing:
            old = None
        known = flags.parse(old.data, key) if old else {}
        if old is None or repair:
            # Listed after the flags were read: whoever puts a document writes its flag afterwards, so one
            # that this list does not have yet makes our write fail.
            known = flags.repaired(known, [name async for name, _ in self._listed(place)])
        # As above: looked after the flags were read.
        drop = {name for name in drop if name in known and not await self._exists(place.key(name))}
        known = {name: used for name, used in (known | dict(changes)).items() if name not in drop}
        data = flags.render(known)
        if (old is not None and data == old.data) or (old is None and not known):
            return known
        if old is None:
            written = await self.store.put_if_absent(key, data)
        else:
            written = await self.store.put_if_match(key, data, old.version)
        return known if written else None

    # ------------------------------------------------------------------ digests

    async def digest(self, place: Place, document: Document) -> str:
        """The SHA-256 of a document's bytes in hex, which are read if they were not seen yet."""
        key = place.key(document.name)
        if (known := self._digests.get((key, document.tag))) is not None:
            return known
        digest = hashlib.sha256()
        async for piece in self.store.download(key, tag=document.tag):
            digest.update(piece)
        self._note_digest(key, document.tag, digest.hexdigest())
        return digest.hexdigest()

    async def _digested(self, place: Place, documents: list[Document]) -> list[Document]:
        places = asyncio.Semaphore(_READS_AT_ONCE)

        async def digested(document: Document) -> Document:
            async with places:
                try:
                    return replace(document, digest=f"sha256:{await self.digest(place, document)}")
                except ObjectMissing:
                    return document  # as it was when it was listed; it is another one now

        tasks = [asyncio.ensure_future(digested(document)) for document in documents]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    def _note_digest(self, key: str, tag: str, digest: str) -> None:
        self._digests[key, tag] = digest
        while len(self._digests) > _KNOWN_DIGESTS:
            self._digests.popitem(last=False)

    # ------------------------------------------------------------------ inside

    async def _listed(self, place: Place, prefix: str = "", after: str = "") -> AsyncIterator[tuple[str, ObjectInfo]]:
        try:
            found = self.store.list(place.prefix + prefix, place.prefix + after if after else "")
            async for info in found:
                if (name := place.name(info.key)) is not None:
                    yield name, info
        except InvalidRequest as error:
            raise InvalidRequest(f"{prefix[:80]!r} cannot be the beginning of a name") from error

    async def _exists(self, key: str) -> bool:
        try:
            await self.store.head(key)
        except ObjectMissing:
            return False
        return True

    async def _head(self, place: Place, name: str) -> ObjectInfo:
        try:
            return await self.store.head(place.key(name))
        except ObjectMissing:
            raise NotFound(f"there is no document {name!r} in {place.folder.path}") from None

    def _document(self, place: Place, name: str, info: ObjectInfo, known: Mapping[str, bool]) -> Document:
        digest = self._digests.get((info.key, info.tag))
        return Document(
            name,
            info.size_bytes,
            content_type(name),
            info.modified_at,
            info.tag,
            f"sha256:{digest}" if digest else f"tag:{info.tag}",
            known.get(name, flags.DEFAULT) if place.flags_key is not None else None,
        )


def content_type(name: str) -> str:
    """The media type that the end of a name stands for."""
    return _TYPES.guess_type(name.rpartition("/")[2])[0] or "application/octet-stream"
