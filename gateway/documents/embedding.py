"""Embedding functions by Chroma's own registry. Runs in the worker: loading one costs seconds and memory."""

import importlib
import random
import time
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.errors import ConfigError

_TRIES = 6
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_LATER = {408, 409, 425, 429, 500, 502, 503, 504, 529}


class Embedding(BaseModel):
    """Which embedding function, as Chroma's registry knows it, and its own configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("default", description="`default`, `openai`, `sentence_transformer`, `cohere`, …")
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="what that function is configured with; keys of providers stay in the environment",
    )

    @classmethod
    def of(cls, setting: str) -> "Embedding":
        """What GATEWAY_EMBEDDING says: a name, or JSON with name and config. Raises ConfigError."""
        try:
            return cls.model_validate_json(setting) if setting.lstrip().startswith("{") else cls(name=setting)
        except ValidationError as error:
            raise ConfigError(
                f"GATEWAY_EMBEDDING: {error.errors()[0]['msg']}",
                'give a name, or JSON such as {"name": "openai", "config": {…}}',
            ) from None


def require_harmless(config: Any) -> None:
    """Raise ValueError for what is the operator's to say, in GATEWAY_EMBEDDING, and nobody's who sends requests.

    That is which of the gateway's own keys a provider is sent, and that code comes with a model.
    """
    for key, value in config.items() if isinstance(config, dict) else ():
        if key.endswith("env_var") and str(value).upper().startswith(("GATEWAY_", "AWS_")):
            raise ValueError(f"{key} names a key that is for the gateway alone")
        if key == "trust_remote_code":
            raise ValueError(f"{key} can be said in GATEWAY_EMBEDDING only")
        require_harmless(value)


class NoEmbedding(Exception):
    """An embedding function cannot be had, or does not work; says why."""


def load(embedding: Embedding, module: str | None) -> Any:
    """The embedding function, shown to work. `module` is imported first and may register more. Raises NoEmbedding."""
    from chromadb.utils import embedding_functions  # noqa: PLC0415  # seconds, and only the worker needs it

    try:
        if module is not None:
            importlib.import_module(module)
        if embedding.name not in embedding_functions.known_embedding_functions:
            known = ", ".join(sorted(embedding_functions.known_embedding_functions))
            raise NoEmbedding(f"there is no embedding function {embedding.name!r}; Chroma has {known}")
        function: Any = embedding_functions.config_to_embedding_function(embedding.model_dump())
        embed(function, ["a first try"])
    except NoEmbedding:
        raise
    except Exception as error:
        raise NoEmbedding(
            f"embedding function {embedding.name!r}: {type(error).__name__}: {str(error)[:500]}"
        ) from error
    return function


def configuration(function: Any, hnsw: dict[str, Any]) -> dict[str, Any]:
    """What a collection is created with, so that every client embeds its questions with the same function."""
    from chromadb.api.collection_configuration import create_collection_configuration_to_json  # noqa: PLC0415

    return create_collection_configuration_to_json(
        {"embedding_function": function, **({"hnsw": dict(hnsw)} if hnsw else {})}  # type: ignore[typeddict-item]
    )


def embed(function: Any, texts: list[str], sleep: Callable[[float], None] = time.sleep) -> Any:
    """The embedding of each text, in order. A provider that says "later" is asked again. Raises NoEmbedding."""
    for attempt in range(_TRIES):
        try:
            return function(texts)
        except Exception as error:
            if attempt + 1 == _TRIES or not _says_later(error):
                raise NoEmbedding(f"embedding failed: {type(error).__name__}: {str(error)[:500]}") from error
            pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S * 2**attempt, _retry_after_s(error)))
        sleep(pause_s * random.uniform(0.8, 1.2))  # noqa: S311
    raise AssertionError


def _says_later(error: Exception) -> bool:
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status in _LATER
    words = type(error).__name__ + str(error)[:500]
    return isinstance(error, ConnectionError | TimeoutError) or any(
        word in words
        for word in ("RateLimit", "rate limit", "Too Many Requests", "Timeout", "APIConnection", "ConnectError")
    )


def _retry_after_s(error: Exception) -> float:
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        return float(headers.get("retry-after", 0))
    except (TypeError, ValueError):
        return 0.0
