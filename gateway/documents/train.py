"""Training: makes a collection hold exactly the chunks of the documents that are flagged true.

The only record of what was trained is the collection itself: each record names the bytes it was made of and how. So
training after a crash, after a restore or after records were deleted by hand does exactly what is missing.
"""

import asyncio
import contextlib
import itertools
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gateway.documents.collection import Admit, ChromaClient
from gateway.documents.embedding import Embedding, require_harmless
from gateway.documents.layout import VECTORSTORE_DATA, avatar_folder, collection_name
from gateway.documents.plan import RESERVED, TrainedRecords, by_document, record_id, training_of
from gateway.documents.readers.ocr import LANGUAGES
from gateway.documents.split import Splitting
from gateway.documents.store import Document, DocumentStore
from gateway.documents.worker_pool import TextRefused, Unreadable, WorkerPool
from gateway.errors import Conflict, InvalidRequest, NotFound, ObjectMissing
from gateway.jobs import Progress

_EMBED_BATCH = 64
_MAX_TRAINED_BYTES = 512 << 20
_READ_TRIES = 5
_TRAINED_FOR = "chroma-gateway:avatar"  # a key of the collection's metadata

Value = str | int | float | bool


class Training(BaseModel):
    """The body of a request to train."""

    model_config = ConfigDict(extra="forbid")

    collection: str | None = Field(None, min_length=3, max_length=512, description="by default `avatar-{avatar_id}`")
    tenant: str = Field("default_tenant", description="of the collection")
    database: str = Field("default_database", description="of the collection")
    splitting: Splitting = Field(default_factory=Splitting, description="into chunks")
    ocr: str | None = Field(
        None,
        max_length=100,
        description="languages of scanned PDF pages, as tesseract calls them: `eng`, `deu+eng`. Needs tesseract. "
        "By default such pages are only named in `partial`",
    )
    embedding: Embedding | None = Field(
        None, description="by default GATEWAY_EMBEDDING; must be the one that the collection was created with"
    )
    hnsw: dict[str, Value] = Field(
        default_factory=dict,
        description="of a new collection: `space`, `ef_construction`, `max_neighbors`, …",
        examples=[{"space": "cosine"}],
    )
    metadata: dict[str, Value] = Field(
        default_factory=dict, description="for every record", examples=[{"source": "handbook"}]
    )
    document_metadata: dict[str, dict[str, Value]] = Field(
        default_factory=dict,
        description="for the records of one document, by its name",
        examples=[{"a.md": {"chapter": 1}}],
    )
    dry_run: bool = Field(False, description="write nothing, only report what would change")
    adopt: bool = Field(
        False, description="take over a collection that was not made by training this avatar, and delete its records"
    )

    @field_validator("embedding")
    @classmethod
    def _harmless(cls, value: Embedding | None) -> Embedding | None:
        require_harmless(value.config if value else {})
        return value

    @field_validator("ocr")
    @classmethod
    def _languages(cls, value: str | None) -> str | None:
        if value is not None and not LANGUAGES.fullmatch(value):
            raise ValueError("give languages of tesseract such as eng or deu+eng")
        return value

    def reading(self) -> dict[str, Any]:
        """Return how a document becomes chunks."""
        return self.splitting.model_dump() | ({"ocr": self.ocr} if self.ocr is not None else {})

    @field_validator("metadata", "document_metadata")
    @classmethod
    def _no_reserved_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        named = {key for key, inner in value.items() for key in (inner if isinstance(inner, dict) else (key,))}
        if taken := sorted(named & RESERVED):
            raise ValueError(f"{taken[0]!r} is a name that the gateway itself sets")
        return value


class Trained(BaseModel):
    """What a training did, or with `dry_run` would do."""

    collection: str = Field(description="its name")
    dry_run: bool = Field(description="whether nothing was written")
    added: list[str] = Field(default_factory=list, description="documents that were not in the collection")
    changed: list[str] = Field(default_factory=list, description="documents whose chunks were replaced")
    removed: list[str] = Field(default_factory=list, description="documents whose chunks were deleted")
    unchanged: int = Field(0, description="number of documents that needed no work")
    failed: dict[str, str] = Field(
        default_factory=dict,
        description="why, by document. The chunks of an earlier training stay, unless the document itself is at fault",
    )
    partial: dict[str, list[str]] = Field(
        default_factory=dict, description="documents that were read in part: what could not be read, by document"
    )
    foreign: int = Field(0, description="records that belonged to no document; they were deleted")
    written: int = Field(0, description="chunks written")
    deleted: int = Field(0, description="chunks deleted, without those that were replaced")


class Source(Protocol):
    """Where training gets its documents."""

    async def documents(self) -> list[Document]:
        """Return the documents to train."""

    def read(self, document: Document) -> AsyncIterator[bytes]:
        """Yield a document's bytes. Raises ObjectMissing if it was deleted or replaced."""

    async def again(self, document: Document) -> Document | None:
        """Return the present version of a document, or None if it is not to be trained any more."""

    async def digest(self, document: Document) -> str:
        """Return the SHA-256 of a document, in hex. Raises ObjectMissing as `read` does."""

    def may_exist(self, name: str) -> bool:
        """Return whether a document that `documents` did not return may exist all the same. Its chunks stay then."""


class FlaggedDocuments:
    """The documents of an avatar that are flagged true."""

    def __init__(self, store: DocumentStore, avatar_id: str, *, repair: bool = True) -> None:
        """With `repair`, `documents` also rewrites a flags file that is missing entries or has stale ones."""
        self._store, self._folder = store, avatar_folder(store.user_id, avatar_id, VECTORSTORE_DATA)
        self._repair = repair

    async def documents(self) -> list[Document]:
        if self._repair:
            await self._store.set_flags(self._folder, {}, repair=True)
        return [document async for document in self._store.all(self._folder) if document.used]

    def read(self, document: Document) -> AsyncIterator[bytes]:
        return self._store.read(self._folder, document)

    async def again(self, document: Document) -> Document | None:
        try:
            found = await self._store.document(self._folder, document.name)
        except NotFound:
            return None
        return found if found.used else None

    async def digest(self, document: Document) -> str:
        return await self._store.digest(self._folder, document)

    def may_exist(self, name: str) -> bool:
        return False


class Trainer:
    """Trains collections of one Chroma. At most one training of a collection runs at a time."""

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
        """`restores` returns how many times Chroma's data was replaced by a restore."""
        self._restores = restores
        self._url, self._admit, self._headers = url, admit, headers
        self._embedding, self._module = embedding, module
        self._busy: set[tuple[str, str, str]] = set()

    def work(self, store: DocumentStore, avatar_id: str, asked: Training) -> Callable[[Progress], Awaitable[Trained]]:
        """Return the work of a job that trains an avatar's collection. Raises Conflict if one runs already."""
        name = asked.collection or collection_name(avatar_id)
        self._require_free(name, asked)

        async def work(progress: Progress) -> Trained:
            source = FlaggedDocuments(store, avatar_id, repair=not asked.dry_run)
            return await self.train(source, name, _avatar_key(store.user_id, avatar_id), asked, progress)

        return work

    def require_free(self, avatar_id: str) -> None:
        """Raises Conflict while the avatar's default collection is being trained."""
        self._require_free(collection_name(avatar_id), Training())

    @contextlib.asynccontextmanager
    async def deleting_collection(self, user_id: str, avatar_id: str, *, keep: bool) -> AsyncIterator[str | None]:
        """Delete the avatar's default collection and yield its name, or None if there is none or `keep` is true.

        A collection of that name that was not trained for this avatar stays. No training of it starts before the block
        ends.
        """
        name = collection_name(avatar_id)
        with self._claim(name, Training()):
            yield None if keep else await self._delete_collection(name, _avatar_key(user_id, avatar_id))

    async def _delete_collection(self, name: str, trained_for: str) -> str | None:
        async with self._client(Training()) as chroma:
            found = await chroma.collection(name)
            if found is None or (found.get("metadata") or {}).get(_TRAINED_FOR) != trained_for:
                return None
            await chroma.drop(name)
            return name

    async def train(self, source: Source, name: str, trained_for: str, asked: Training, progress: Progress) -> Trained:
        """Make collection `name` hold exactly the chunks of the source's documents.

        Safe to repeat after any failure. Raises Conflict if the collection is in use, was not made for `trained_for`,
        or a snapshot was restored meanwhile.
        """
        before = self._restores()
        with self._claim(name, asked):
            async with self._client(asked) as chroma, WorkerPool() as worker_pool:
                if asked.ocr is not None:
                    await worker_pool.require_ocr(asked.ocr)
                trained = await self._train(source, name, trained_for, asked, progress, chroma, worker_pool)
            if self._restores() != before and not asked.dry_run:
                # Records that were found unchanged may be gone now.
                raise Conflict(f"a snapshot was restored while {name!r} was trained", "train again")
            return trained

    # ------------------------------------------------------------------ inside

    async def _train(
        self,
        source: Source,
        name: str,
        trained_for: str,
        asked: Training,
        progress: Progress,
        chroma: ChromaClient,
        worker_pool: WorkerPool,
    ) -> Trained:
        trained = Trained(collection=name, dry_run=asked.dry_run)
        progress.phase("look", None, "records")
        documents = await source.documents()
        collection = await chroma.collection(name)
        present, foreign = await self._present(chroma, collection, trained_for, asked, progress)
        trained.foreign = len(foreign)
        todo: list[tuple[Document, str]] = []
        for document in documents:
            says = asked.metadata | asked.document_metadata.get(document.name, {})
            training = training_of(asked.reading(), says)
            before = present.get(document.name)
            if before is not None and await _is_unchanged(source, document, before, training):
                trained.unchanged += 1
                continue
            (trained.added if before is None else trained.changed).append(document.name)
            todo.append((document, training))
        wanted = {document.name for document in documents}
        unwanted = {name for name in present.keys() - wanted if not source.may_exist(name)}
        trained.removed = sorted(unwanted)
        if asked.dry_run:
            return trained
        if todo or collection is None:
            collection = await self._embedded(chroma, worker_pool, collection, name, trained_for, asked, progress)
        collection_id: str = collection["id"]
        progress.phase("train", len(todo), "documents")
        for document, training in todo:
            ids_before = present.get(document.name, TrainedRecords()).ids
            names = trained.changed if document.name in present else trained.added
            try:
                kept, problems = await self._train_one(
                    source, chroma, worker_pool, collection_id, document, training, asked
                )
                trained.written += len(kept)
                if problems:
                    trained.partial[document.name] = problems
            except (Unreadable, TextRefused) as error:
                names.remove(document.name)
                trained.failed[document.name] = str(error)
                # Only a fault of the document itself takes its chunks away.
                is_at_fault = isinstance(error, Unreadable) and error.is_fault_of_document
                kept = set() if is_at_fault else ids_before
            except _NotUsed:
                names.remove(document.name)
                kept = set()
                if document.name in present:
                    trained.removed.append(document.name)
            leftover = ids_before - kept
            await chroma.delete(collection_id, leftover)
            trained.deleted += len(leftover)
            progress.advance(1)
        gone = [key for document in unwanted for key in present[document].ids]
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
        trained_for: str,
        asked: Training,
        progress: Progress,
    ) -> dict[str, Any]:
        """Return the collection to write to. It is created only after the embedding function has worked once."""
        progress.phase("load the embedding function", None, "")
        embedding = self._embedding_for(collection, asked)
        configuration = await worker_pool.load(embedding, self._module, dict(asked.hnsw))
        if asked.splitting.unit == "tokens" and worker_pool.max_tokens is None:
            raise InvalidRequest(
                f"splitting: embedding function {embedding.name!r} has no tokenizer to count tokens with",
                "split by characters",
            )
        if collection is None:
            return await chroma.create(name, configuration, {_TRAINED_FOR: trained_for})
        _require_same(collection, configuration, asked.hnsw)
        return collection

    async def _present(
        self,
        chroma: ChromaClient,
        collection: dict[str, Any] | None,
        trained_for: str,
        asked: Training,
        progress: Progress,
    ) -> tuple[dict[str, TrainedRecords], list[str]]:
        if collection is None:
            return {}, []
        records = []
        async for record in chroma.records(collection["id"]):
            records.append(record)
            if len(records) % 1000 == 0:
                progress.at(len(records))
        present, foreign = by_document(records)
        mark = (collection.get("metadata") or {}).get(_TRAINED_FOR)
        if mark != trained_for and records and not asked.adopt:
            raise Conflict(
                f"collection {collection['name']!r} holds records and was "
                + (f"trained for {mark!r}" if mark else "not made by training"),
                "name another collection, or set 'adopt' to let its records go",
            )
        if mark != trained_for and not asked.dry_run:
            await chroma.set_metadata(
                collection["id"], (collection.get("metadata") or {}) | {_TRAINED_FOR: trained_for}
            )
        return present, foreign

    def _embedding_for(self, collection: dict[str, Any] | None, asked: Training) -> Embedding:
        """Return the embedding function of the request or of the settings.

        The configuration in the collection is only compared, never used: every client with write access can change
        it. It could name any host, any variable of our environment to be sent there, and a model whose code would run.
        Raises Conflict if the collection has another embedding function.
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
    ) -> tuple[set[str], list[str]]:
        """Replace the chunks of one document by those of its present version.

        Return the new ids, and what could not be read of the document. Raises Unreadable or TextRefused before anything
        is written, and _NotUsed if the document is not to be trained any more.
        """
        now = document
        for _ in range(_READ_TRIES):
            try:
                return await self._replace(source, chroma, worker_pool, collection_id, now, training, asked)
            except ObjectMissing:  # before anything of it was written
                if (found := await source.again(now)) is None:
                    raise _NotUsed from None
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
    ) -> tuple[set[str], list[str]]:
        """As `_train_one`. Raises ObjectMissing, before anything is written, if the document was replaced."""
        if document.size_bytes > _MAX_TRAINED_BYTES:
            raise Unreadable(f"it has more than {_MAX_TRAINED_BYTES} bytes")
        with tempfile.TemporaryDirectory(prefix="chroma-gateway-") as directory:
            copy, chunks, records = (Path(directory, name) for name in ("document", "chunks", "records"))
            await _fetch(source.read(document), copy)
            read = await worker_pool.read(
                str(copy), document.name, asked.splitting.model_dump(), str(chunks), ocr=asked.ocr
            )
            metadata = asked.metadata | asked.document_metadata.get(document.name, {})
            metadata |= {
                "document": document.name,
                "chunks": read.chunks,
                "digest": await source.digest(document),
                "tag": document.tag,
                "training": training,
            }
            # All chunks are embedded before the first is written: a text that is refused changes nothing.
            await _embed(chunks, records, metadata, worker_pool)
            async for batch in _batches_in(records):
                await chroma.upsert(collection_id, batch)
            return {record_id(document.name, number) for number in range(read.chunks)}, read.problems

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


def _require_same(collection: dict[str, Any], configuration: dict[str, Any], asked_hnsw: Mapping[str, Value]) -> None:
    """Raises Conflict if the collection has another configuration than the request wants."""

    def without_keys(config: dict[str, Any] | None) -> dict[str, Any]:  # these differ between environments
        return {key: value for key, value in (config or {}).items() if not key.endswith("env_var")}

    hnsw = (collection.get("configuration_json") or {}).get("hnsw") or {}
    for key, value in asked_hnsw.items():
        if key in hnsw and hnsw[key] != value:
            raise Conflict(
                f"collection {collection['name']!r} has the HNSW parameter {key} {hnsw[key]!r}, not {value!r}",
                "leave 'hnsw' out, train into another collection, or delete this one",
            )
    own, ours = _own(collection), configuration["embedding_function"]
    if without_keys(own.get("config")) != without_keys(ours.get("config")):
        raise Conflict(
            f"collection {collection['name']!r} is embedded with another configuration of {own['name']!r}",
            "give its 'embedding' in the request, train into another collection, or delete this one",
        )


class _NotUsed(Exception):
    """A document was deleted, or is not flagged any more."""


def _avatar_key(user_id: str, avatar_id: str) -> str:
    return f"{user_id}/{avatar_id}"


async def _is_unchanged(source: Source, document: Document, before: TrainedRecords, training: str) -> bool:
    """Return whether the collection has exactly this document's chunks. Reads the document only if its tag changed."""
    if not before.is_whole or before.training != training:
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


async def _embed(chunks: Path, records: Path, metadata: dict[str, Any], worker_pool: WorkerPool) -> None:
    """Write a record for each chunk that the worker wrote. Raises TextRefused."""
    number = 0
    with await asyncio.to_thread(records.open, "w", encoding="utf-8") as out:
        async for batch in _batches_in(chunks):
            embeddings = await worker_pool.embed([text for _, text, _ in batch])
            lines = []
            for embedding, (position, text, found) in zip(embeddings, batch, strict=True):
                own = {name: value for name, value in found.items() if name not in RESERVED}
                record = {
                    "id": record_id(metadata["document"], number),
                    "embedding": embedding,
                    "document": text,
                    "metadata": own | metadata | {"chunk": number, "position": position},
                }
                lines.append(json.dumps(record) + "\n")
                number += 1
            await asyncio.to_thread(out.writelines, lines)


async def _batches_in(path: Path) -> AsyncIterator[list[Any]]:
    """Yield the JSON values of a file, one a line, in batches for one embedding call."""

    def batch(lines: IO[str]) -> list[Any]:
        return [json.loads(line) for line in itertools.islice(lines, _EMBED_BATCH)]

    file = await asyncio.to_thread(path.open, encoding="utf-8")
    with file:
        while found := await asyncio.to_thread(batch, file):
            yield found
