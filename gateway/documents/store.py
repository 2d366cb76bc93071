"""The documents of one user in the store."""

import asyncio
import contextlib
import hashlib
import mimetypes
import random
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from gateway.aio import TaskPool
from gateway.documents import flags
from gateway.documents.digest import ExpectedDigests
from gateway.documents.layout import Folder, avatar_prefix, avatars_prefix, check_avatar
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
    """One document. `digest` is "sha256:…" if the gateway has read the bytes, else "tag:" and the store's tag."""

    name: str
    size_bytes: int
    type: str
    modified_at: datetime
    tag: str
    digest: str
    used: bool | None


@dataclass(frozen=True, slots=True)
class Page:
    """Documents in the order of their names. `next` is the name to continue after, or None at the end."""

    documents: list[Document]
    next: str | None


class DocumentStore:
    """Stores, lists, reads and deletes the documents of one user. A `Folder` checks each name."""

    def __init__(self, store: Storage, user_id: str, max_document_bytes: int) -> None:
        self.store, self.user_id, self.max_document_bytes = store, user_id, max_document_bytes
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._digests: OrderedDict[tuple[str, str], str] = OrderedDict()

    # ------------------------------------------------------------------ reading

    async def avatars(self) -> list[str]:
        """Return the ids of all avatars that have an object in the store."""
        found = []
        async for name in self.store.folders(avatars_prefix(self.user_id)):
            try:
                found.append(check_avatar(name))
            except InvalidRequest:
                continue  # not an id that a request could name
        return found

    async def page(self, folder: Folder, *, prefix: str, after: str, limit: int, with_digests: bool) -> Page:
        """Return at most `limit` documents whose names begin with `prefix` and sort after `after`.

        `with_digests` reads the documents whose SHA-256 is not known yet.
        """
        known = await self.flags(folder)
        documents: list[Document] = []
        async for name, info in self._listed(folder, prefix, after):
            if len(documents) == limit:
                documents = await self._digested(folder, documents) if with_digests else documents
                return Page(documents, documents[-1].name)
            documents.append(self._document(folder, name, info, known))
        return Page(await self._digested(folder, documents) if with_digests else documents, None)

    async def all(self, folder: Folder) -> AsyncIterator[Document]:
        """Yield every document with its flag, in the order of their names."""
        known = await self.flags(folder)
        async for name, info in self._listed(folder):
            yield self._document(folder, name, info, known)

    async def document(self, folder: Folder, name: str) -> Document:
        """Return one document. Raises NotFound."""
        info = await self._head(folder, name)
        return self._document(folder, name, info, await self.flags(folder))

    def read(
        self, folder: Folder, document: Document, start: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the bytes of `document`, or a range of them. Raises ObjectMissing if it was replaced or deleted."""
        return self.store.download(folder.key(document.name), start, length, tag=document.tag)

    async def link(self, folder: Folder, name: str, expires_s: int) -> str:
        """Return a URL that downloads the document without credentials for `expires_s`.

        Raises NotFound, and InvalidRequest if the store cannot make such URLs.
        """
        await self._head(folder, name)
        url = await self.store.presign(folder.key(name), expires_s, name.rpartition("/")[2])
        if url is None:
            raise InvalidRequest(f"the store {self.store.url} has no links", "download through the gateway")
        return url

    # ------------------------------------------------------------------ writing

    async def put(
        self,
        folder: Folder,
        name: str,
        pieces: AsyncIterator[bytes],
        *,
        expected: ExpectedDigests,
        if_absent: bool = False,
        if_tag: str | None = None,
        used: bool | None = None,
        defer_flag: bool = False,
    ) -> tuple[Document, bool]:
        """Store a document atomically. Return it and whether it is new. Safe to retry.

        A new document gets the flag `used`, or the default. A replaced one keeps its flag unless `used` is given.
        With `defer_flag`, a flag that is the default and that the file lacks is left to the next `set_flags` with
        `repair`; a missing flag means the default. Raises InvalidRequest if the bytes do not have the `expected`
        digests, PreconditionFailed if `if_absent` or `if_tag` does not hold, BodyTooLarge.
        """
        key = folder.key(name)
        known: Mapping[str, bool] = await self.flags(folder)  # unreadable flags fail before anything is stored
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
        if folder.flags_key is not None:
            if used is None and before is not None:
                known = await self.flags(folder)
            else:
                wanted = flags.DEFAULT if used is None else used
                if not (defer_flag and wanted == flags.DEFAULT and name not in known):
                    known = await self.set_flags(folder, {name: wanted})
        return self._document(folder, name, stored, known), before is None

    async def _checked(
        self, pieces: AsyncIterator[bytes], digest: "hashlib._Hash", expected: ExpectedDigests
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

    async def copy(self, source: Folder, name: str, target: Folder, new_name: str, *, if_absent: bool) -> Document:
        """Copy a document within the store, with its flag where both folders have flags."""
        document = await self.document(source, name)
        key = target.key(new_name)
        if key == source.key(name) and not if_absent:
            return document  # S3 refuses to copy an object to itself
        if not await self.store.copy(source.key(name), key, if_absent=if_absent):
            raise Conflict(f"{new_name!r} exists already", "choose another name, or set 'replace'")
        if target.flags_key is not None:
            used = flags.DEFAULT if document.used is None else document.used
            await self.set_flags(target, {new_name: used})
        return await self.document(target, new_name)

    async def delete(self, folder: Folder, name: str, *, if_tag: str | None = None) -> None:
        """Delete a document and its flag. Raises NotFound, and PreconditionFailed if its tag is not `if_tag`."""
        await self.flags(folder)  # unreadable flags fail the request before anything is deleted
        info = await self._head(folder, name)
        if if_tag is not None and info.tag != if_tag:
            raise PreconditionFailed(f"{name!r} is not what it was", "look at its present ETag")
        await self.store.delete(folder.key(name))
        if folder.flags_key is not None:
            await self.set_flags(folder, {}, drop=(name,))

    async def contents(self, avatar_id: str) -> list[ObjectInfo]:
        """Return every object of an avatar, including those outside the folders of the layout."""
        return [info async for info in self.store.list(avatar_prefix(self.user_id, avatar_id))]

    async def delete_contents(self, contents: Iterable[ObjectInfo], progress: Callable[[int], None]) -> None:
        """Delete the objects that `contents` returned. Safe to repeat."""

        async def delete(info: ObjectInfo) -> None:
            await self.store.delete(info.key)
            progress(info.size_bytes)

        async with TaskPool(_DELETES_AT_ONCE) as pool:
            for info in contents:
                await pool.start(delete, info)

    # ------------------------------------------------------------------ flags

    async def flags(self, folder: Folder) -> dict[str, bool]:
        """Return the folder's flags, {} if it has none. Raises Conflict if the file cannot be parsed."""
        if folder.flags_key is None:
            return {}
        try:
            data = await self.store.get(folder.flags_key)
        except ObjectMissing:
            return {}
        return flags.parse(data, folder.flags_key)

    async def set_flags(
        self, folder: Folder, changes: Mapping[str, bool], *, drop: Iterable[str] = (), repair: bool = False
    ) -> dict[str, bool]:
        """Change some flags by compare-and-swap, so that concurrent changes are kept. Return all flags. Safe to retry.

        The flags of `drop` are removed, unless the document exists again. With `repair`, the result has a flag for
        exactly the documents that exist; a missing file is always repaired. Raises Conflict if the
        file cannot be parsed.
        """
        if folder.flags_key is None:
            raise InvalidRequest(f"the documents in {folder.kind.path} have no flags")
        lock = self._locks.setdefault(folder.flags_key, asyncio.Lock())
        lost = 0
        async with lock:  # within this process; other processes meet the compare-and-swap
            for attempt in range(_FLAG_TRIES):
                try:
                    if (
                        written := await self._swap_flags(folder, folder.flags_key, changes, set(drop), repair)
                    ) is not None:
                        return written
                except StorageUnavailable:
                    # It is unknown whether the write happened. Repeating it is right in both cases.
                    lost += 1
                    if lost == _LOST_ANSWERS:
                        raise
                await asyncio.sleep(_FLAG_PAUSE_S * random.uniform(0.5, 1) * min(attempt + 1, 10))  # noqa: S311
        raise Conflict(f"{folder.flags_key} was changed by other writers {_FLAG_TRIES} times in a row", "try again")

    async def _swap_flags(
        self, folder: Folder, key: str, changes: Mapping[str, bool], drop: set[str], repair: bool
    ) -> dict[str, bool] | None:
        """Try to write the flags once. Return them, or None if another writer was faster."""
        try:
            old = await self.store.get_versioned(key)
        except ObjectMissing:
            old = None
        known = flags.parse(old.data, key) if old else {}
        if old is None or repair:
            # The list must come after the read: `put` writes the flag after the document, so a document that is
            # missing in this list will change the flags and make our write fail.
            known = flags.repaired(known, [name async for name, _ in self._listed(folder)])
        # As above: checked after the flags were read.
        drop = {name for name in drop if name in known and not await self._exists(folder.key(name))}
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

    async def digest(self, folder: Folder, document: Document) -> str:
        """Return the SHA-256 of a document in hex. Reads the document if it is not known yet."""
        key = folder.key(document.name)
        if (known := self._digests.get((key, document.tag))) is not None:
            return known
        digest = hashlib.sha256()
        async for piece in self.store.download(key, tag=document.tag):
            digest.update(piece)
        self._note_digest(key, document.tag, digest.hexdigest())
        return digest.hexdigest()

    async def _digested(self, folder: Folder, documents: list[Document]) -> list[Document]:
        digested = list(documents)

        async def digest(index: int, document: Document) -> None:
            # A document that was replaced or deleted since it was listed stays as it was listed.
            with contextlib.suppress(ObjectMissing):
                digested[index] = replace(document, digest=f"sha256:{await self.digest(folder, document)}")

        async with TaskPool(_READS_AT_ONCE) as pool:
            for index, document in enumerate(documents):
                await pool.start(digest, index, document)
        return digested

    def _note_digest(self, key: str, tag: str, digest: str) -> None:
        self._digests[key, tag] = digest
        while len(self._digests) > _KNOWN_DIGESTS:
            self._digests.popitem(last=False)

    # ------------------------------------------------------------------ inside

    async def _listed(self, folder: Folder, prefix: str = "", after: str = "") -> AsyncIterator[tuple[str, ObjectInfo]]:
        try:
            found = self.store.list(folder.prefix + prefix, folder.prefix + after if after else "")
            async for info in found:
                if (name := folder.name(info.key)) is not None:
                    yield name, info
        except InvalidRequest as error:
            raise InvalidRequest(f"no name can begin with {prefix[:80]!r}") from error

    async def _exists(self, key: str) -> bool:
        try:
            await self.store.head(key)
        except ObjectMissing:
            return False
        return True

    async def _head(self, folder: Folder, name: str) -> ObjectInfo:
        try:
            return await self.store.head(folder.key(name))
        except ObjectMissing:
            raise NotFound(f"there is no document {name!r} in {folder.kind.path}") from None

    def _document(self, folder: Folder, name: str, info: ObjectInfo, known: Mapping[str, bool]) -> Document:
        digest = self._digests.get((info.key, info.tag))
        return Document(
            name,
            info.size_bytes,
            content_type(name),
            info.modified_at,
            info.tag,
            f"sha256:{digest}" if digest else f"tag:{info.tag}",
            known.get(name, flags.DEFAULT) if folder.flags_key is not None else None,
        )


def content_type(name: str) -> str:
    """Return the media type for a name's suffix."""
    return _TYPES.guess_type(name.rpartition("/")[2])[0] or "application/octet-stream"
