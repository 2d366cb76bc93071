"""Documents that change while something else is done with them, in a store that is a directory."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import tests.word_embedding
from gateway.documents.digest import ExpectedDigests
from gateway.documents.embedding import Embedding
from gateway.documents.layout import VECTORSTORE_DATA, avatar_folder
from gateway.documents.store import Document, DocumentStore
from gateway.documents.train import FlaggedDocuments, Trained, Trainer, Training
from gateway.documents.worker_pool import TextRefused, WorkerPool
from gateway.errors import Conflict, StorageDenied
from gateway.jobs import Progress
from gateway.storage import FileStorage
from tests.bare_chroma import BareChroma, bare_chroma

pytestmark = pytest.mark.asyncio(loop_scope="module")

FOLDER = avatar_folder("user", "ada", VECTORSTORE_DATA)
WORDS = Embedding(name="words_for_tests")


@pytest.fixture
def store(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path / "store")


@pytest.fixture
def documents(store: FileStorage) -> DocumentStore:
    return DocumentStore(store, "user", 1 << 20)


async def put(
    documents: DocumentStore, name: str, text: str, *, used: bool | None = None, defer_flag: bool = False
) -> Document:
    async def pieces() -> AsyncIterator[bytes]:
        yield text.encode()

    expected = ExpectedDigests({})
    return (await documents.put(FOLDER, name, pieces(), expected=expected, used=used, defer_flag=defer_flag))[0]


async def test_a_document_that_comes_again_while_it_is_deleted_keeps_its_flag(
    documents: DocumentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the new one was stored with stays, although the deletion of the old one's flag comes later."""
    await put(documents, "a.txt", "old")
    delete = documents.store.delete

    async def delete_and_store_again(key: str) -> None:
        await delete(key)
        await put(documents, "a.txt", "new", used=False)

    monkeypatch.setattr(documents.store, "delete", delete_and_store_again)
    await documents.delete(FOLDER, "a.txt")
    assert (await documents.document(FOLDER, "a.txt")).used is False
    assert await documents.flags(FOLDER) == {"a.txt": False}


async def test_flags_that_cannot_be_read_are_told_before_anything_is_done(documents: DocumentStore) -> None:
    """Neither is a document stored nor deleted, when the answer is an error."""
    await put(documents, "a.txt", "old")
    assert FOLDER.flags_key is not None
    await documents.store.put(FOLDER.flags_key, b"{oops")
    with pytest.raises(Conflict):
        await put(documents, "b.txt", "new")
    with pytest.raises(Conflict):
        await documents.delete(FOLDER, "a.txt")
    names = [info.key.rpartition("/")[2] async for info in documents.store.list(FOLDER.prefix)]
    assert names == ["a.txt"]


async def test_deferred_flags_are_written_once(documents: DocumentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the training. Until then a missing flag means true; a flag that says otherwise is written at once."""
    await put(documents, "old.txt", "text", used=False)
    writes = 0
    put_if_match = documents.store.put_if_match

    async def counted(*arguments: Any) -> bool:
        nonlocal writes
        writes += 1
        return await put_if_match(*arguments)

    monkeypatch.setattr(documents.store, "put_if_match", counted)
    for number in range(20):
        document = await put(documents, f"{number}.txt", "text", defer_flag=True)
        assert document.used is True
    assert (writes, await documents.flags(FOLDER)) == (0, {"old.txt": False})
    listed = await FlaggedDocuments(documents, "ada").documents()
    assert (writes, len(listed), len(await documents.flags(FOLDER))) == (1, 20, 21)
    # A flag that a deletion has left behind is not taken over.
    await documents.store.delete(FOLDER.key("old.txt"))
    assert (await put(documents, "old.txt", "new", defer_flag=True)).used is True
    assert (await put(documents, "unused.txt", "new", used=False, defer_flag=True)).used is False
    flags = await documents.flags(FOLDER)
    assert (flags["old.txt"], flags["unused.txt"]) == (True, False)


async def test_a_store_that_refuses_to_delete_is_named(
    documents: DocumentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store said, not that something went wrong."""
    await put(documents, "a.txt", "text")

    async def refuse(key: str) -> None:
        raise StorageDenied(f"delete {key}: no")

    monkeypatch.setattr(documents.store, "delete", refuse)
    with pytest.raises(StorageDenied):
        await documents.delete_contents(await documents.contents("ada"), lambda _: None)


async def test_a_list_with_digests_outlives_a_document_that_goes(documents: DocumentStore, store: FileStorage) -> None:
    """The others have theirs; that one is told as it was listed."""
    for name in ("a.txt", "b.txt", "c.txt"):
        await put(documents, name, name)
    fresh = DocumentStore(store, "user", 1 << 20)
    digest = fresh.digest

    async def digest_late(folder: object, document: Document) -> str:
        if document.name == "b.txt":
            await store.delete(FOLDER.key("b.txt"))
        return await digest(FOLDER, document)

    fresh.digest = digest_late  # type: ignore[method-assign]
    page = await fresh.page(FOLDER, prefix="", after="", limit=10, with_digests=True)
    assert [each.digest.partition(":")[0] for each in page.documents] == ["sha256", "tag", "sha256"]


# ------------------------------------------------------------------ training


@pytest.fixture(scope="module")
def chroma(tmp_path_factory: pytest.TempPathFactory) -> "BareChroma":  # type: ignore[misc]
    with bare_chroma(tmp_path_factory.mktemp("chroma")) as running:
        yield running


@pytest.fixture
def trainer(chroma: BareChroma, workers: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    # To start workers takes longer than these trainings. What undoes this starts some for each training.
    monkeypatch.setattr("gateway.documents.train.WorkerPool", lambda: contextlib.nullcontext(workers))
    for each in chroma.client().list_collections():
        chroma.client().delete_collection(each.name)
    return Trainer(chroma.url, _admit, embedding=WORDS, module=tests.word_embedding.__name__)


class _admit:  # noqa: N801
    def __init__(self, _what: str, _collection_id: str | None, _touches: str | None) -> None:
        pass

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


async def train(trainer: Trainer, documents: DocumentStore, **asked: object) -> Trained:
    return await trainer.work(documents, "ada", Training.model_validate(asked))(Progress())


def texts(chroma: BareChroma, name: str = "avatar-ada") -> dict[str, str]:
    got = chroma.client().get_collection(name).get()
    return {
        str(says["document"]): text for says, text in zip(got["metadatas"] or [], got["documents"] or [], strict=True)
    }


async def test_documents_that_change_while_they_are_trained(
    chroma: BareChroma, trainer: Trainer, documents: DocumentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is replaced is trained as it is then, those that are deleted or flagged off leave; the rest is done."""
    for name in ("a.txt", "b.txt", "c.txt", "d.txt", "e.txt"):
        await put(documents, name, f"old {name}")
    await train(trainer, documents)
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        await put(documents, name, f"newer {name}")
    listed = FlaggedDocuments.documents

    async def then_change(self: FlaggedDocuments) -> list[Document]:
        found = await listed(self)
        await put(documents, "b.txt", "newest b.txt")
        await documents.delete(FOLDER, "c.txt")
        await put(documents, "d.txt", "newest d.txt", used=False)
        return found

    monkeypatch.setattr(FlaggedDocuments, "documents", then_change)
    trained = await train(trainer, documents)
    assert (trained.changed, sorted(trained.removed), trained.unchanged) == (["a.txt", "b.txt"], ["c.txt", "d.txt"], 1)
    assert texts(chroma) == {"a.txt": "newer a.txt", "b.txt": "newest b.txt", "e.txt": "old e.txt"}
    monkeypatch.undo()
    assert (await train(trainer, documents)).unchanged == 3


async def test_a_dry_run_writes_nothing_to_the_store_either(trainer: Trainer, documents: DocumentStore) -> None:
    """And neither makes an avatar of a name that was misspelt."""
    await train(trainer, documents, dry_run=True)
    await train(trainer, documents)
    assert await documents.avatars() == []
    await documents.store.put(FOLDER.key("a.txt"), b"by hand")
    await train(trainer, documents, dry_run=True)
    assert [info.key async for info in documents.store.list("")] == [FOLDER.key("a.txt")]


async def test_a_collection_that_another_avatar_was_trained_into_stays(
    chroma: BareChroma, trainer: Trainer, documents: DocumentStore
) -> None:
    """Whatever it is called: deleting an avatar takes along what is its own."""
    await put(documents, "a.txt", "text of ada")
    await train(trainer, documents, collection="avatar-bob")
    async with trainer.deleting_collection("user", "bob", keep=False) as gone:
        assert gone is None
    assert texts(chroma, "avatar-bob") == {"a.txt": "text of ada"}


async def test_nothing_is_trained_while_its_avatar_is_deleted(trainer: Trainer, documents: DocumentStore) -> None:
    """Else what is deleted would come back."""
    await put(documents, "a.txt", "text")
    await train(trainer, documents)
    async with trainer.deleting_collection("user", "ada", keep=False) as gone:
        assert gone == "avatar-ada"
        with pytest.raises(Conflict):
            trainer.work(documents, "ada", Training())


async def test_what_a_collection_is_embedded_with_cannot_be_another(
    trainer: Trainer, documents: DocumentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by its name nor by its configuration; silently keeping the old one would be neither."""
    collection = {
        "name": "notes",
        "configuration_json": {"embedding_function": {"name": "openai", "config": {"model_name": "small"}}},
    }
    for asked in (
        Embedding(name="cohere"),
        Embedding(name="openai", config={"model_name": "large"}),
    ):
        with pytest.raises(Conflict, match="is embedded with"):
            trainer._embedding_for(collection, Training(embedding=asked))
    asked = Embedding(name="openai")
    assert trainer._embedding_for(collection, Training(embedding=asked)) == asked, "never what the collection says"


async def test_tokens_that_cannot_be_counted_cost_nothing(
    chroma: BareChroma, trainer: Trainer, documents: DocumentStore
) -> None:
    """A clear error before any work, where the embedding function has no tokenizer: the chunks that are there stay."""
    await put(documents, "a.txt", "text of ada")
    await train(trainer, documents)
    with pytest.raises(Exception, match="tokenizer"):
        await train(trainer, documents, splitting={"size": 200, "overlap": 0, "unit": "tokens"})
    assert texts(chroma) == {"a.txt": "text of ada"}


@pytest.mark.parametrize(
    "why",
    [
        "a text is refused",
        pytest.param("the reader dies", marks=pytest.mark.soak),
        pytest.param("the reader is slow", marks=pytest.mark.soak),
        pytest.param("it is broken", marks=pytest.mark.soak),
    ],
)
async def test_only_a_fault_of_the_document_takes_its_chunks_away(
    chroma: BareChroma, trainer: Trainer, documents: DocumentStore, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """A reader that is killed or too slow, and a provider, are reported; the chunks of the last training stay."""
    await put(documents, "a.json", '{"a": "old"}')
    await put(documents, "b.txt", "text of b")
    await train(trainer, documents)
    await put(documents, "a.json", '{"a": "new"' if why == "it is broken" else '{"a": "new"}')
    if why.startswith("the reader"):
        monkeypatch.undo()
    if why == "the reader dies":
        create = asyncio.create_subprocess_exec

        async def create_and_kill(*command: str, **options: Any) -> Any:
            process = await create(*command, **options)
            if len(command) > 3:  # the reader, which has a limit
                process.kill()
            return process

        monkeypatch.setattr("asyncio.create_subprocess_exec", create_and_kill)
    if why == "the reader is slow":
        monkeypatch.setattr("gateway.documents.worker_pool._READ_TIMEOUT_S", 0.001)
    if why == "a text is refused":

        async def refuse(self: WorkerPool, texts: list[str]) -> list[str]:
            raise TextRefused("no")

        monkeypatch.setattr(WorkerPool, "embed", refuse)
    trained = await train(trainer, documents)
    assert list(trained.failed) == ["a.json"]
    assert (trained.added, trained.changed, trained.unchanged) == ([], [], 1)
    kept = {} if why == "it is broken" else {"a.json": "a: old"}
    assert texts(chroma) == {"b.txt": "text of b"} | kept
    monkeypatch.undo()
    if why != "it is broken":
        assert (await train(trainer, documents)).changed == ["a.json"]
        assert texts(chroma)["a.json"] == "a: new"


async def test_records_say_where_their_text_was_found(
    chroma: BareChroma, trainer: Trainer, documents: DocumentStore
) -> None:
    """So that an answer can be cited; what the request says comes first, what the gateway says is never another's."""
    await put(documents, "a.md", "---\ntitle: Birds\nauthor: Ada\ndocument: other\n---\n# One\n\nText\n")
    await put(documents, "b.jsonl", '{"a": 1}\n{oops\n')
    trained = await train(trainer, documents, metadata={"author": "Bob"})
    assert list(trained.partial) == ["b.jsonl"]
    got = chroma.client().get_collection("avatar-ada").get(where={"document": "a.md"})
    (metadata,) = got["metadatas"] or []
    assert metadata is not None
    assert (metadata["title"], metadata["author"], metadata["heading"]) == ("Birds", "Bob", "One")


async def test_parameters_of_an_existing_index_cannot_be_others(trainer: Trainer, documents: DocumentStore) -> None:
    """They are refused and not ignored; the same ones are fine."""
    await put(documents, "a.txt", "text")
    await train(trainer, documents, hnsw={"space": "ip"})
    await put(documents, "a.txt", "other text")
    with pytest.raises(Conflict, match="space 'ip', not 'l2'"):
        await train(trainer, documents, hnsw={"space": "l2"})
    assert (await train(trainer, documents, hnsw={"space": "ip"})).changed == ["a.txt"]
