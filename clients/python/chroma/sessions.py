"""Sessions: logging many records with what does not change said once."""

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, overload

from chroma.buffer import Buffer, ThreadLock, fill_in
from chroma.collection import SetCollection
from chroma.configuration import load_configuration
from chroma.embedding_set import EmbeddingSet
from chroma.errors import ChromaError, ConfigurationError, InvalidRecord, MixedEmbeddingSets
from chroma.recommendation import EXPLORE, Result
from chroma.records import Mode, Record, is_one, make_records
from chroma.server import Server
from chroma.upload import Upload, upload

Uri = str | os.PathLike[str]
Inferences = Mapping[str, Any]
_Session = TypeVar("_Session", bound="Session")


class Session:
    """What both kinds of sessions have: an embedding set, defaults of `log`, a server.

    `embedding_set`, `input_uri` and `inferences` hold for all calls of `log` that do not give them. The settings are
    those of `chroma.json`; see `chroma.configuration`.
    """

    _mode: Mode
    _timeout_s: float

    def __init__(
        self,
        *,
        embedding_set: Mapping[str, Any] | None = None,
        input_uri: Uri | None = None,
        inferences: Inferences | None = None,
        chroma_config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        chroma_json: str | Mapping[str, Any] | None = None,
        api_key: str | None = None,
        application_id: str | None = None,
        chroma_url: str | None = None,
        http_proxy: str | None = None,
        patience_s: float = 60,
    ) -> None:
        """Nothing is sent. `patience_s` is how long a request is repeated while the server cannot be reached.

        Raises ConfigurationError and InvalidRecord.
        """
        self._configuration = load_configuration(
            chroma_config,
            chroma_json,
            api_key=api_key,
            application_id=application_id,
            chroma_url=chroma_url,
            http_proxy=http_proxy,
        )
        self._embedding_set = EmbeddingSet(embedding_set) if embedding_set is not None else None
        self._input_uri, self._inferences = input_uri, inferences
        self._dimension: int | None = None
        self._server = Server(self._configuration, patience_s, timeout_s=self._timeout_s)
        self._target: SetCollection | None = None
        self._lock = ThreadLock()
        self._closed = False

    @property
    def embedding_set_id(self) -> str:
        """The id of the embedding set, computed without asking anybody. Raises InvalidRecord if none was given yet."""
        return self._known_set().id

    def close(self) -> None:
        """Close the connections. The session cannot be used any more."""
        with self._lock:
            self._closed = True
        self._server.close()

    def __enter__(self: _Session) -> _Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ChromaError("the session is closed; make another one")

    def _known_set(self) -> EmbeddingSet:
        if self._embedding_set is None:
            raise InvalidRecord("no embedding_set was given, neither to the session nor to the call")
        return self._embedding_set

    def _check_set(self, given: EmbeddingSet) -> None:
        if self._embedding_set not in (None, given):
            raise MixedEmbeddingSets(
                f"this session is of the embedding set {self._known_set().canonical}, not {given.canonical};"
                " use a session for each"
            )

    def _records(
        self,
        embedding: Any,
        input_uri: Uri | Sequence[Uri] | None,
        inferences: Inferences | Sequence[Inferences | None] | None,
        embedding_set: Mapping[str, Any] | None,
    ) -> list[Record]:
        """The records of one call. Whatever is wrong with them is raised before the session changes."""
        self._check_open()
        given = EmbeddingSet(embedding_set) if embedding_set is not None else self._known_set()
        uri = input_uri if input_uri is not None else self._input_uri
        if uri is None:
            raise InvalidRecord("no input_uri was given, neither to the session nor to the call")
        if inferences is None and self._inferences is not None:
            inferences = self._inferences if is_one(uri) else [self._inferences] * len(uri)  # type: ignore[arg-type]
        records = make_records(given, self._mode, uri, embedding, inferences, time.time_ns() // 1000)
        with self._lock:
            self._check_set(given)
            if self._dimension not in (None, records[0].dimension):
                raise InvalidRecord(
                    f"the embedding has {records[0].dimension} dimensions, and those before {self._dimension}"
                )
            self._embedding_set, self._dimension = given, records[0].dimension
        return records

    def _collection(self, embedding_set: EmbeddingSet) -> SetCollection:
        self._check_set(embedding_set)
        if self._target is None:
            self._target = SetCollection(
                self._server, self._configuration.application_id, embedding_set.id, embedding_set
            )
        return self._target


class TrainingSession(Session):
    """Logs what a model is trained on. Nothing is stored before `save`."""

    _mode = Mode.TRAINING
    _timeout_s = 120
    _buffer: Buffer | None = None

    def bufferlocal(self, file: str | os.PathLike[str]) -> Path:
        """Keep the records in `file` until they are stored, so that a crash loses none. Return its path.

        `$model`, `$layer` and `$version` are filled in from the embedding set, `$timestamp` is the present time. A file
        that is there already is appended to. Raises InvalidRecord for other names, and ChromaError after the first
        `log`.
        """
        path = fill_in(file, self._embedding_set, datetime.now()).absolute()  # noqa: DTZ005  # for people, who read it here
        with self._lock:
            self._check_open()
            if self._buffer is not None:
                raise ChromaError("bufferlocal() comes once, and before the first log()")
            self._buffer = Buffer(path)
        return path

    def log(
        self,
        *,
        embedding: Any,
        input_uri: Uri | Sequence[Uri] | None = None,
        inferences: Inferences | Sequence[Inferences | None] | None = None,
        embedding_set: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep one record, or n: an embedding (dim,) with one URI, or (n, dim) with n URIs.

        `inferences` is a dict, or n of them. Without `bufferlocal` they are kept in a temporary file until the session
        is closed, or the process ends. Raises InvalidRecord and then keeps nothing of this call; OSError if the disk is
        full; ChromaError after `close`. Threads may call it at once.
        """
        records = self._records(embedding, input_uri, inferences, embedding_set)
        self._open_buffer().append([record.line() for record in records])

    def store(
        self,
        *,
        embedding: Any,
        input_uri: Uri | Sequence[Uri] | None = None,
        inferences: Inferences | Sequence[Inferences | None] | None = None,
        embedding_set: Mapping[str, Any] | None = None,
    ) -> None:
        """Store one record, or n, now. What was logged before still waits for `save`. Safe to repeat.

        Raises InvalidRecord before anything is sent, and ServerError.
        """
        records = self._records(embedding, input_uri, inferences, embedding_set)
        target = self._collection(records[0].embedding_set)
        target.store(records)
        target.bring_statistics_up_to_date()

    def save(self, *, keep: bool = False) -> Upload:
        """Store everything that was logged, and everything else in the buffer file; then remove the file.

        With `keep` the file of `bufferlocal` stays. Safe to repeat: what is there already is not sent again. Raises
        InvalidRecord before anything is sent, and ServerError: then the file is still there, and another `save` goes
        on. Raises ChromaError after `close`.
        """
        buffer = self._open_buffer()
        return upload(buffer, self._collection, self._server, remove=not keep or buffer.path is None)

    def close(self) -> None:
        """Close the file and the connections. What was not saved stays in the file of `bufferlocal`.

        Without `bufferlocal` it ends here, with a warning. The session cannot be used any more.
        """
        super().close()
        if self._buffer is not None and self._buffer.close():
            warnings.warn(
                "the session was closed, and what it did not save is lost; bufferlocal() keeps it in a file",
                stacklevel=2,
            )

    def _open_buffer(self) -> Buffer:
        """The buffer, which the first call makes."""
        with self._lock:
            self._check_open()
            if self._buffer is None:
                self._buffer = Buffer()
            return self._buffer


class QuerySession(Session):
    """Logs what a model meets in production, and says which of it is worth training on."""

    _mode = Mode.PRODUCTION
    _timeout_s = 30

    def __init__(self, *, explore: float = EXPLORE, patience_s: float = 5, **settings: Any) -> None:
        """`explore` is the share of inputs, from 0 to 1, that is recommended though nothing else speaks for it.

        The other parameters are those of `Session`.
        """
        super().__init__(patience_s=patience_s, **settings)
        if not 0 <= explore <= 1:
            raise ConfigurationError(f"explore is a share from 0 to 1, not {explore}")
        self._explore = explore

    @overload
    def log(
        self,
        *,
        embedding: Any,
        input_uri: Uri,
        inferences: Inferences | None = None,
        embedding_set: Mapping[str, Any] | None = None,
    ) -> Result: ...

    @overload
    def log(
        self,
        *,
        embedding: Any,
        input_uri: Sequence[Uri],
        inferences: Sequence[Inferences | None] | None = None,
        embedding_set: Mapping[str, Any] | None = None,
    ) -> list[Result]: ...

    @overload
    def log(self, *, embedding: Any) -> Result: ...

    def log(
        self,
        *,
        embedding: Any,
        input_uri: Uri | Sequence[Uri] | None = None,
        inferences: Inferences | Sequence[Inferences | None] | None = None,
        embedding_set: Mapping[str, Any] | None = None,
    ) -> Result | list[Result]:
        """Store one production record, or n, and say what to do with each.

        A list of URIs has a list of results, in the same order. The records keep the result as metadata. Safe to
        repeat. Raises InvalidRecord before anything is sent, and ServerError.
        """
        records = self._records(embedding, input_uri, inferences, embedding_set)
        target = self._collection(records[0].embedding_set)
        results = target.recommend(records, self._explore)
        more = [
            {
                "training_recommended": result.training_recommended,
                "not_useful": result.not_useful,
                "recommendations": ",".join(each.tag.value for each in result.recommendations),
            }
            for result in results
        ]
        target.store(records, more)
        one = input_uri is None or is_one(input_uri)
        return results[0] if one else results
