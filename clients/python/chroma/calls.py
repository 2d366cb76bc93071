"""`chroma.log`: one call without a session of one's own."""

import atexit
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, overload

from chroma.configuration import Configuration, load_configuration
from chroma.embedding_set import EmbeddingSet
from chroma.errors import ConfigurationError
from chroma.recommendation import Result
from chroma.sessions import Inferences, QuerySession, TrainingSession, Uri

_KEPT = 16
_sessions: OrderedDict[tuple[bool, str, Configuration], TrainingSession | QuerySession] = OrderedDict()
_lock = threading.Lock()


@overload
def log(
    *,
    embedding: Any,
    input_uri: Uri | Sequence[Uri],
    embedding_set: Mapping[str, Any],
    training_mode: Literal[True],
    inferences: Inferences | Sequence[Inferences | None] | None = None,
    **settings: Any,
) -> None: ...


@overload
def log(
    *,
    embedding: Any,
    input_uri: Uri,
    embedding_set: Mapping[str, Any],
    training_mode: Literal[False],
    inferences: Inferences | None = None,
    **settings: Any,
) -> Result: ...


@overload
def log(
    *,
    embedding: Any,
    input_uri: Sequence[Uri],
    embedding_set: Mapping[str, Any],
    training_mode: Literal[False],
    inferences: Sequence[Inferences | None] | None = None,
    **settings: Any,
) -> list[Result]: ...


def log(
    *,
    embedding: Any,
    input_uri: Uri | Sequence[Uri],
    embedding_set: Mapping[str, Any],
    training_mode: bool,
    inferences: Any = None,
    **settings: Any,
) -> Result | list[Result] | None:
    """Store one record now, or n: an embedding (dim,) with one URI, or (n, dim) with n URIs.

    In training mode it returns None. Else it says what to do with each input, as `QuerySession.log` does. For many
    records of training `TrainingSession` is much faster. `settings` are `chroma_config`, `chroma_json`, `api_key`,
    `application_id`, `chroma_url` and `http_proxy`. Safe to repeat. Raises InvalidRecord and ConfigurationError before
    anything is sent, and ServerError.
    """
    if not isinstance(training_mode, bool):
        raise ConfigurationError(f"training_mode is True or False, not {training_mode!r}")
    configuration = load_configuration(**settings)
    key = (training_mode, EmbeddingSet(embedding_set).id, configuration)
    with _lock:
        session = _sessions.pop(key, None)
        if session is None:
            kind = TrainingSession if training_mode else QuerySession
            session = kind(embedding_set=embedding_set, **asdict(configuration))
        _sessions[key] = session
        if len(_sessions) > _KEPT:
            _sessions.popitem(last=False)
    if isinstance(session, TrainingSession):
        session.store(embedding=embedding, input_uri=input_uri, inferences=inferences)
        return None
    return session.log(embedding=embedding, input_uri=input_uri, inferences=inferences)


@atexit.register
def _close() -> None:
    """Close the connections of all calls."""
    while _sessions:
        _sessions.popitem()[1].close()
