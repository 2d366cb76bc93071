"""Training: a collection gets exactly the chunks of the documents that are flagged true.

Nothing but the collection remembers what was trained: each record says of which bytes it is and how it was
made. So a run after a crash, after a restore, or beside a hand that deleted records does what is missing.
"""

import asyncio
import contextlib
import itertools
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gateway.documents.collection import Admit, ChromaClient
from gateway.documents.embedding import Embedding, require_harmless
from gateway.documents.layout import VECTORSTORE_DATA, avatar_place, collection_name
from gateway.documents.plan import RESERVED, Held, held, record_id, training_of
from gateway.documents.split import Splitting, check_tokens
from gateway.documents.store import Document, DocumentStore
from gateway.documents.worker_pool import Unreadable, WorkerPool
from gateway.errors import Conflict, NotFound, ObjectMissing
from gateway.jobs import Progress

_EMBED_AT_ONCE = 64
_MAX_TRAINED_BYTES = 512 << 20
_READ_TRIES = 5
_MARK = "chroma-gateway:avatar"

Value = str | int | float | bool


class Training(BaseModel):
    """How to train."""

    model_config = ConfigDict(extra="forbid")

    collection: str | None = Field(None, min_length=3, max_length=512, description="by default `avatar-{avatar_id}`")
    tenant: str = Field("default_tenant", description="of the collection")
    database: str = Field("default_database", description="of the collection")
    splitting: Splitting = Field(default_factory=Splitting, description="into chunks")
    embedding: Embedding | None = Field(
        None, description="by default GATEWAY_EMBEDDING; a collection has one for good, and training must name that"
    )
    hnsw: dict[str, Value] = Field(
        default_factory=dict, description="of a new collection: `space`, `ef_construction`, `max_neighbors`, …"
    )
    metadata: dict[str, Value] = Field(default_factory=dict, description="for every record")
    document_metadata: dict[str, dict[str, Value]] = Field(
        default_factory=dict, description="for the records of one document, by its name"
    )
    dry_run: bool = Field(False, description="only say what would change")
    adopt: bool = Field(
        False, description="take over a collection that was not made by training this avatar; its records leave"
    )

    @field_validator("embedding")
    @classmethod
    def _harmless(cls, value: Embedding | None) -> Embedding | None:
        require_harmless(value.config if value else {})
        return value

    @field_validator("metadata", "document_metadata")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        named = {key for key, inner in value.items() for key in (inner if isinstance(inner, dict) else (key,))}
        if taken := sorted(named & RESERVED):
            raise ValueError(f"{taken[0]!r} is what the gateway itself says of a record")
        return value


class Trained(BaseModel):
    """What a training did, or would do."""

    collection: str = Field(description="its name")
    dry_run: bool = Field(description="whether nothing was written")
    added: list[str] = Field(default_factory=list, description="documents that were not in the collection")
    changed: list[str] = Field(default_factory=list, description="documents whose chunks were replaced")
    removed: list[str] = Field(default_factory=list, description="documents whose chunks left")
    unchanged: int = Field(0, description="how many documents cost nothing")
    failed: dict[str, str] = Field(default_factory=dict, description="why, by document; they have no chunks")
    foreign: int = Field(0, description="records that were of no document, and left")
    written: int = Field(0, description="chunks written")
    deleted: int = Field(0, description="chunks deleted, not counting those that were replaced")


class Source(Protocol):
    """Where the documents to be trained come from."""

    async def documents(self) -> list[Document]:
        """Those to be used."""

    def read(self, document: Document) -> AsyncIterator[bytes]:
        """The bytes of one. Raises ObjectMissing if it is not there any more, or is another one."""

    async def again(self, document: Document) -> Document | None:
        """What one is by now; None if it is not to be used any more."""

    async def digest(self, document: Document) -> str:
        """The SHA-256 of one, in hex. Raises ObjectMissing as `read` does."""


class Flagged:
    """The documents of an avatar that are flagged true."""

    def __init__(self, store: DocumentStore, avatar_id: str, *, repair: bool = True) -> None:
        """`repair` mends the file of flags where it needs it."""
        self._store, self._place = store, avatar_place(store.user_id, avatar_id, VECTORSTORE_DATA)
        self._repair = repair

    async def documents(self) -> list[Document]:
        if self._repair:
            await self._store.set_flags(self._place, {}, repair=True)
        return [document async for document in self._store.all(self._place) if document.used]

    def read(self, document: Document) -> AsyncIterator[bytes]:
        return self._store.read(self._place, document)

    async def again(self, document: Document) -> Document | None:
        try:
            found = await self._store.document(self._place, document.name)
        except NotFound:
            return None
        return found if found.used else None

    async def digest(self, document: Document) -> str:
        return await self._store.digest(self._place, document)


class Trainer:
    """Trains collections of one Chroma; each by one training at a time."""

    def __init__(
        self,
        url: str,
        admit: Admit,
        *,
        embedding: Embedding,
        module: str | None = None,
        headers: dict[str, str] | None = None,
        restores: Callable[[], int] = lambda: 0,
    ) -> None:
        """`restores` counts what puts something else into Chroma's place."""
        self._restores = restores
        self._url, self._admit, self._headers = url, admit, headers
        self._embedding, self._module = embedding, module
        self._busy: set[tuple[str, str, str]] = set()

    def work(self, store: DocumentStore, avatar_id: str, asked: Training) -> Callable[[Progress], Awaitable[Trained]]:
        """The work of a job that trains an avatar's collection. Raises Conflict while another one does."""
        name = asked.collection or collection_name(avatar_id)
        self._require_free(name, asked)

        async def work(progress: Progress) -> Trained:
            source = Flagged(store, avatar_id, repair=not asked.dry_run)
            return await self.train(source, name, _owner(store.user_id, avatar_id), asked, progress)

        return work

    def require_free(self, avatar_id: str) -> None:
        """Raise Conflict while the collection that an avatar has by default is being trained."""
        self._require_free(collection_name(avatar_id), Training())

    @contextlib.asynccontextmanager
    async def forgetting(self, user_id: str, avatar_id: str, *, keep: bool) -> AsyncIterator[str | None]:
        """Delete the collection that an avatar was trained into by default, if it was; give its name then.

        With `keep` it stays. In any case nothing trains it before the block ends.
        """
        name = collection_name(avatar_id)
        with self._claim(name, Training()):
            yield None if keep else await self._forget(name, _owner(user_id, avatar_id))

    async def _forget(self, name: str, owner: str) -> str | None:
        async with self._client(Training()) as chroma:
            found = await chroma.collection(name)
            if found is None or (found.get("metadata") or {}).get(_MARK) != owner:
                return None
            await chroma.drop(name)
            return name

    async def train(self, source: Source, name: str, owner: str, asked: Training, progress: Progress) -> Trained:
        """Make collection `name` hold exactly the chunks of the source's documents. Safe to repeat."""
        before = self._restores()
        with self._claim(name, asked):
            async with self._client(asked) as chroma, WorkerPool() as worker_pool:
                trained = await self._train(source, name, owner, asked, progress, chroma, worker_pool)
            if self._restores() != before and not asked.dry_run:
                # What we found there and left as it was may be gone.
                raise Conflict(f"a snapshot was restored while {name!r} was trained", "train again")
            return trained

    # ------------------------------------------------------------------ inside

    async def _train(
        self,
        source: Source,
        name: str,
        owner: str,
        asked: Training,
        progress: Progress,
        chroma: ChromaClient,
        worker_pool: WorkerPool,
    ) -> Trained:
        trained = Trained(collection=name, dry_run=asked.dry_run)
        progress.phase("look", None, "records")
        documents = await source.documents()
        collection = await chroma.collection(name)
        present, foreign = await self._present(chroma, collection, owner, asked, progress)
        trained.foreign = len(foreign)
        todo: list[tuple[Document, str]] = []
        for document in documents:
            says = asked.metadata | asked.document_metadata.get(document.name, {})
            training = training_of(asked.splitting.model_dump(), says)
            before = present.get(document.name)
            if before is not None and await _is_unchanged(source, document, before, training):
                trained.unchanged += 1
                continue
            (trained.added if before is None else trained.changed).append(document.name)
            todo.append((document, training))
        wanted = {document.name for document in documents}
        trained.removed = sorted(present.keys() - wanted)
        if asked.dry_run:
            return trained
        if todo or collection is None:
            collection = await self._embedded(chroma, worker_pool, collection, name, owner, asked, progress)
        collection_id: str = collection["id"]
        progress.phase("train", len(todo), "documents")
        for document, training in todo:
            before = present.get(document.name, Held())
            kept: set[str] = set()
            try:
                kept = await self._train_one(source, chroma, worker_pool, collection_id, document, training, asked)
                trained.written += len(kept)
            except Unreadable as error:
                trained.failed[document.name] = str(error)
            except _Gone:
                if document.name in present:
                    trained.removed.append(document.name)
            if not kept:
                names = trained.changed if document.name in present else trained.added
                names.remove(document.name)
            leftover = before.ids - kept
            await chroma.delete(collection_id, leftover)
            trained.deleted += len(leftover)
            progress.advance(1)
        gone = [key for document in present.keys() - wanted for key in present[document].ids]
        progress.phase("remove", len(gone) + len(foreign), "records")
        await chroma.delete(collection_id, [*gone, *foreign])
        trained.deleted += len(gone)
        return trained

    async def _embedded(
        self,
        chroma: ChromaClient,
        worker_pool: WorkerPool,
        collection: dict[str, Any] | None,
        name: str,
        owner: str,
        asked: Training,
        progress: Progress,
    ) -> dict[str, Any]:
        """The collection to write to, made if there is none, once all that can be wrong with the request was tried."""
        progress.phase("load the embedding function", None, "")
        configuration = await worker_pool.load(self._embedding_for(collection, asked), self._module, dict(asked.hnsw))
        await asyncio.to_thread(check_tokens, asked.splitting)
        if collection is None:
            return await chroma.create(name, configuration, {_MARK: owner})
        _require_same(collection, configuration)
        return collection

    async def _present(
        self, chroma: ChromaClient, collection: dict[str, Any] | None, owner: str, asked: Training, progress: Progress
    ) -> tuple[dict[str, Held], list[str]]:
        if collection is None:
            return {}, []
        records = []
        async for record in chroma.records(collection["id"]):
            records.append(record)
            if len(records) % 1000 == 0:
                progress.at(len(records))
        present, foreign = held(records)
        mark = (collection.get("metadata") or {}).get(_MARK)
        if mark != owner and records and not asked.adopt:
            raise Conflict(
                f"collection {collection['name']!r} holds records and was "
                + (f"trained for {mark!r}" if mark else "not made by training"),
                "name another collection, or set 'adopt' to let its records go",
            )
        if mark != owner and not asked.dry_run:
            await chroma.describe(collection["id"], (collection.get("metadata") or {}) | {_MARK: owner})
        return present, foreign

    def _embedding_for(self, collection: dict[str, Any] | None, asked: Training) -> Embedding:
        """What the request or the gateway's settings say. Raises Conflict if the collection has another one.

        Never what the collection says: whoever may write to it could have it name any host, any variable of our
        environment to be sent there, and any model whose code runs here.
        """
        wanted = asked.embedding or self._embedding
        if collection is None:
            return wanted
        own = _own(collection)
        if "name" not in own:
            raise Conflict(
                f"collection {collection['name']!r} does not say how it is embedded", "train into another collection"
            )
        if wanted.name != own["name"]:
            raise Conflict(
                f"collection {collection['name']!r} is embedded with {own['name']!r}, not {wanted.name!r}",
                "say so with 'embedding' in the request, train into another collection, or delete this one",
            )
        config = own.get("config") or {}
        for key, value in (asked.embedding.config if asked.embedding else {}).items():
            if key in config and config[key] != value:
                raise Conflict(
                    f"collection {collection['name']!r} is embedded with {key} {config[key]!r}, not {value!r}",
                    "delete the collection, or train into another one",
                )
        return wanted

    async def _train_one(
        self,
        source: Source,
        chroma: ChromaClient,
        worker_pool: WorkerPool,
        collection_id: str,
        document: Document,
        training: str,
        asked: Training,
    ) -> set[str]:
        """Replace the chunks of one document by those of what it is by now; return their ids.

        Raises Unreadable, and _Gone if it is not to be used any more.
        """
        now = document
        for _ in range(_READ_TRIES):
            try:
                return await self._replace(source, chroma, worker_pool, collection_id, now, training, asked)
            except ObjectMissing:  # before anything of it was written
                if (found := await source.again(now)) is None:
                    raise _Gone from None
                now = found
        raise Conflict(f"{document.name!r} was replaced again and again while it was trained", "train again")

    async def _replace(
        self,
        source: Source,
        chroma: ChromaClient,
        worker_pool: WorkerPool,
        collection_id: str,
        document: Document,
        training: str,
        asked: Training,
    ) -> set[str]:
        """As `_train_one`. Raises ObjectMissing, with nothing written, if the document is another one by now."""
        if document.size_bytes > _MAX_TRAINED_BYTES:
            raise Unreadable(f"it has more than {_MAX_TRAINED_BYTES} bytes")
        with tempfile.TemporaryDirectory(prefix="chroma-gateway-") as directory:
            copy, chunks = Path(directory, "document"), Path(directory, "chunks")
            await _fetch(source.read(document), copy)
            total = await worker_pool.read(str(copy), document.name, asked.splitting.model_dump(), str(chunks))
            says = asked.metadata | asked.document_metadata.get(document.name, {})
            says |= {
                "document": document.name,
                "chunks": total,
                "digest": await source.digest(document),
                "tag": document.tag,
                "training": training,
            }
            ids: set[str] = set()
            async for batch in _batches_in(chunks):
                embeddings = await worker_pool.embed([text for _, text in batch])
                numbers = range(len(ids), len(ids) + len(batch))
                records: list[dict[str, Any]] = [
                    {
                        "id": record_id(document.name, number),
                        "embedding": embedding,
                        "document": text,
                        "metadata": says | {"chunk": number, "position": position},
                    }
                    for number, embedding, (position, text) in zip(numbers, embeddings, batch, strict=True)
                ]
                await chroma.upsert(collection_id, records)
                ids.update(record_id(document.name, number) for number in numbers)
            return ids

    def _client(self, asked: Training) -> ChromaClient:
        return ChromaClient(self._url, self._admit, asked.tenant, asked.database, self._headers)

    @contextlib.contextmanager
    def _claim(self, name: str, asked: Training) -> Iterator[None]:
        self._require_free(name, asked)
        claimed = (asked.tenant, asked.database, name)
        self._busy.add(claimed)
        try:
            yield
        finally:
            self._busy.discard(claimed)

    def _require_free(self, name: str, asked: Training) -> None:
        if (asked.tenant, asked.database, name) in self._busy:
            raise Conflict(f"collection {name!r} is being trained", "wait for that job, or cancel it")


def _own(collection: dict[str, Any]) -> dict[str, Any]:
    return (collection.get("configuration_json") or {}).get("embedding_function") or {}


def _require_same(collection: dict[str, Any], configuration: dict[str, Any]) -> None:
    """Raise Conflict if a collection is embedded with the same function, but configured otherwise."""

    def without_keys(config: dict[str, Any] | None) -> dict[str, Any]:  # whose place depends on the environment
        return {key: value for key, value in (config or {}).items() if not key.endswith("env_var")}

    own, ours = _own(collection), configuration["embedding_function"]
    if without_keys(own.get("config")) != without_keys(ours.get("config")):
        raise Conflict(
            f"collection {collection['name']!r} is embedded with another configuration of {own['name']!r}",
            "give its 'embedding' in the request, train into another collection, or delete this one",
        )


class _Gone(Exception):
    """A document is not to be used any more."""


def _owner(user_id: str, avatar_id: str) -> str:
    return f"{user_id}/{avatar_id}"


async def _is_unchanged(source: Source, document: Document, before: Held, training: str) -> bool:
    """Whether the collection has exactly this document's chunks; its bytes are read only if its tag is another."""
    if not before.whole or before.training != training:
        return False
    try:
        return bool(before.tag == document.tag or before.digest == await source.digest(document))
    except ObjectMissing:
        return False


async def _fetch(pieces: AsyncIterator[bytes], path: Path) -> None:
    file = await asyncio.to_thread(path.open, "wb")
    with file:
        async for piece in pieces:
            await asyncio.to_thread(file.write, piece)


async def _batches_in(chunks: Path) -> AsyncIterator[list[tuple[int, str]]]:
    """What the worker wrote: the position and text of each chunk, so many at a time as are embedded at once."""

    def batch(lines: IO[str]) -> list[tuple[int, str]]:
        return [(each[0], each[1]) for each in map(json.loads, itertools.islice(lines, _EMBED_AT_ONCE))]

    file = await asyncio.to_thread(chunks.open, encoding="utf-8")
    with file:
        while found := await asyncio.to_thread(batch, file):
            yield found
