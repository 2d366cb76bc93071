"""Training of a collection from the files of a directory, in the process of a command."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.config import Settings
from gateway.documents.embedding import Embedding
from gateway.documents.store import Document, content_type
from gateway.documents.train import Trainer, Training
from gateway.errors import ObjectMissing
from gateway.jobs import Progress

_PIECE_BYTES = 1 << 20


class FolderSource:
    """Files of a directory as a source of training. `digests` has the SHA-256 of each, in hex.

    `unread` are the names of files that exist and could not be read. `is_complete` says that the whole directory was
    listed.
    """

    def __init__(
        self, files: dict[str, Path], digests: dict[str, str], *, unread: Collection[str], is_complete: bool
    ) -> None:
        self._files, self._digests = files, digests
        self._unread, self._is_complete = unread, is_complete

    async def documents(self) -> list[Document]:
        return await asyncio.to_thread(lambda: [self._document(name) for name in self._files])

    async def read(self, document: Document) -> AsyncIterator[bytes]:
        path = self._files[document.name]
        try:
            file = await asyncio.to_thread(path.open, "rb")
        except FileNotFoundError:
            raise ObjectMissing(f"{path} was deleted while it was trained", "run the command again") from None
        with file:
            while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
                yield piece

    async def again(self, document: Document) -> Document | None:
        """None: a file that was deleted meanwhile is not to be used."""
        return None

    async def digest(self, document: Document) -> str:
        return self._digests[document.name]

    def may_exist(self, name: str) -> bool:
        return not self._is_complete or name in self._unread

    def _document(self, name: str) -> Document:
        status, digest = self._files[name].stat(), self._digests[name]
        modified_at = datetime.fromtimestamp(status.st_mtime, UTC)
        return Document(name, status.st_size, content_type(name), modified_at, digest, f"sha256:{digest}", True)


async def train_folder(
    source: FolderSource,
    owner: str,
    training: Training,
    settings: Settings,
    url: str,
    headers: dict[str, str] | None,
    progress: Progress,
) -> dict[str, Any]:
    """Train the collection that `training` names, through the gateway at `url`. Return what changed. Safe to repeat.

    Raises what `Trainer.train` raises.
    """
    trainer = Trainer(
        url,
        _admit,
        embedding=Embedding.of(settings.embedding),
        module=settings.embedding_module or None,
        headers=headers,
    )
    trained = await trainer.train(source, str(training.collection), owner, training, progress)
    return trained.model_dump(mode="json")


@contextlib.asynccontextmanager
async def _admit(_what: str, _collection_id: str | None, _touches: str | None) -> AsyncIterator[None]:
    """Let every request through: the gateway's own gate holds it back, as every client's."""
    yield
