"""Embedding functions from Chroma's registry. They run in the worker: loading one takes seconds and memory."""

import importlib
import importlib.util
import inspect
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.errors import ConfigError
from gateway.light_imports import kept_for_good, without_rich

_TRIES = 6
# A provider answers so to a text that it does not take, not to a wrong key or an overload.
_REFUSED = {400, 413, 422}
_HINT = "install what is missing beside the gateway, set the key in its environment, or choose another function"
# A tokenizer that knows no limit says 10^30 (transformers' VERY_LARGE_INTEGER).
_MOST_TOKENS = 1 << 20
_DEFAULT_MODEL_IN = "~/.cache/chroma/onnx_models"
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}


class Provider(NamedTuple):
    """What an embedding function needs. `extra` is the extra of this distribution that installs `package`."""

    package: str
    extra: str
    models_from: str


# By their names in Chroma's registry.
PROVIDERS = {
    "openai": Provider("openai", "openai", "OpenAI's API"),
    "cohere": Provider("cohere", "cohere", "Cohere's API"),
    "sentence_transformer": Provider(
        "sentence_transformers", "sentence-transformers", "Hugging Face, kept in ~/.cache/huggingface"
    ),
}


class Embedding(BaseModel):
    """An embedding function of Chroma's registry, with its configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("default", description="`default`, `openai`, `sentence_transformer`, `cohere`, …")
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="the function's own configuration. Keys of providers stay in the environment",
        examples=[{"model_name": "text-embedding-3-small"}],
    )

    @classmethod
    def of(cls, setting: str) -> "Embedding":
        """Parse GATEWAY_EMBEDDING: a name, or JSON with name and config. Raises ConfigError."""
        try:
            return cls.model_validate_json(setting) if setting.lstrip().startswith("{") else cls(name=setting)
        except ValidationError as error:
            raise ConfigError(
                f"GATEWAY_EMBEDDING: {error.errors()[0]['msg']}",
                'give a name, or JSON such as {"name": "openai", "config": {…}}',
            ) from None


def require_harmless(config: Any) -> None:
    """Raises ValueError for configuration that only the operator may give, in GATEWAY_EMBEDDING.

    That is the gateway's own keys as keys for a provider, and models that bring code.
    """
    for key, value in config.items() if isinstance(config, dict) else ():
        if key.endswith("env_var") and str(value).upper().startswith(("GATEWAY_", "AWS_")):
            raise ValueError(f"{key} names a key of the gateway itself")
        if key == "trust_remote_code":
            raise ValueError(f"{key} is allowed in GATEWAY_EMBEDDING only")
        require_harmless(value)


class NoEmbedding(Exception):
    """An embedding function cannot be loaded or does not answer. The message says why, `hint` what to do."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class TextRefused(Exception):
    """A provider refused one of the texts. Others may be embedded."""


def load(embedding: Embedding, module: str | None) -> Any:
    """Load an embedding function and embed once with it. Raises NoEmbedding.

    `module` is imported first; it may register functions of its own.
    """
    embedding_functions = _import_chromas()
    if module is not None:
        try:
            importlib.import_module(module)
        except Exception as error:  # it is other people's code
            raise NoEmbedding(
                f"GATEWAY_EMBEDDING_MODULE {module!r} cannot be imported: {type(error).__name__}: {str(error)[:500]}"
            ) from error
    known = embedding_functions.known_embedding_functions
    if embedding.name not in known:
        raise NoEmbedding(
            f"there is no embedding function {embedding.name!r}; Chroma has {', '.join(sorted(known))}",
            "name one of these, or register your own in GATEWAY_EMBEDDING_MODULE",
        )
    _require_package(embedding, known[embedding.name])
    try:
        function = _built(embedding, embedding_functions)
    except NoEmbedding:
        raise
    except Exception as error:
        described = _described(embedding, known[embedding.name])
        raise NoEmbedding(f"{described}: {type(error).__name__}: {str(error)[:500]}", _HINT) from error
    try:
        embed(function, ["a first try"])  # some functions fetch their model, or use their key, only now
    except (NoEmbedding, TextRefused) as error:
        raise NoEmbedding(f"{_described(embedding, known[embedding.name])}: {error}", _HINT) from error
    return function


def _import_chromas() -> Any:
    """Import Chroma's registry of embedding functions, which takes a second; only the worker needs it."""
    with kept_for_good():
        without_rich("httpx")
        from chromadb.utils import embedding_functions  # noqa: PLC0415
    return embedding_functions


def _require_package(embedding: Embedding, function: Any) -> None:
    """Raises NoEmbedding if the package of a provider is not installed."""
    provider = PROVIDERS.get(embedding.name)
    if provider is not None and importlib.util.find_spec(provider.package) is None:
        raise NoEmbedding(
            f"{_described(embedding, function)}: the Python package {provider.package} is not installed",
            f"install it beside the gateway: pip install 'chroma-gateway[{provider.extra}]'",
        )


def _built(embedding: Embedding, embedding_functions: Any) -> Any:
    """Return the embedding function. Parameters that the configuration leaves out get the function's own defaults."""
    try:
        return embedding_functions.config_to_embedding_function(embedding.model_dump())
    except (AssertionError, KeyError):
        # Chroma's `build_from_config` wants what its `__init__` has defaults for (chromadb/utils/embedding_functions).
        parameters = inspect.signature(embedding_functions.known_embedding_functions[embedding.name]).parameters
    defaults = {
        name: each.default for name, each in parameters.items() if isinstance(each.default, str | int | float | bool)
    }
    try:
        return embedding_functions.config_to_embedding_function(
            {"name": embedding.name, "config": defaults | embedding.config}
        )
    except (AssertionError, KeyError):
        wanted = [name for name, each in parameters.items() if each.default is each.empty and name != "kwargs"]
        raise NoEmbedding(
            f"embedding function {embedding.name!r}: its configuration is not complete, "
            f"give {', '.join(wanted) or 'its parameters'} in 'config'",
            _HINT,
        ) from None


def _described(embedding: Embedding, function: Any) -> str:
    """Return the embedding function with its model and where that comes from, as far as they are known."""
    title = f"embedding function {embedding.name!r}"
    if embedding.name == "default":
        # chromadb/utils/embedding_functions/onnx_mini_lm_l6_v2.py, MODEL_DOWNLOAD_URL and DOWNLOAD_PATH
        return f"{title} (model all-MiniLM-L6-v2, from Chroma's bucket chroma-onnx-models, kept in {_DEFAULT_MODEL_IN})"
    parameters = inspect.signature(function).parameters
    model = embedding.config.get("model_name") or embedding.config.get("model")
    if model is None and "model_name" in parameters:
        model = parameters["model_name"].default
    if not isinstance(model, str):
        return title
    provider = PROVIDERS.get(embedding.name)
    return f"{title} (model {model}{f', from {provider.models_from}' if provider else ''})"


def tokenizer_of(function: Any) -> tuple[str, int] | None:
    """Return the function's tokenizer as JSON, and how many tokens of a text it reads. None if it has none.

    The number is without the special tokens that the function adds.
    """
    from chromadb.utils.embedding_functions import DefaultEmbeddingFunction  # noqa: PLC0415
    from chromadb.utils.embedding_functions.onnx_mini_lm_l6_v2 import ONNXMiniLM_L6_V2  # noqa: PLC0415
    from tokenizers import Tokenizer  # noqa: PLC0415

    limit = None
    if isinstance(function, DefaultEmbeddingFunction):
        function = ONNXMiniLM_L6_V2()
    tokenizer = getattr(function, "tokenizer", None)
    model = getattr(function, "_model", None)
    if tokenizer is None and model is not None:  # SentenceTransformerEmbeddingFunction
        limit = getattr(model, "max_seq_length", None)
        tokenizer = getattr(getattr(model, "tokenizer", None), "backend_tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        return None
    limit = limit or (tokenizer.truncation or {}).get("max_length")
    if not isinstance(limit, int) or limit > _MOST_TOKENS:
        return None
    return tokenizer.to_str(), limit - tokenizer.num_special_tokens_to_add(is_pair=False)


def configuration(function: Any, hnsw: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a new collection. It names the function, so that clients embed queries with it."""
    from chromadb.api.collection_configuration import create_collection_configuration_to_json  # noqa: PLC0415

    return create_collection_configuration_to_json(
        {"embedding_function": function, **({"hnsw": dict(hnsw)} if hnsw else {})}  # type: ignore[typeddict-item]
    )


def embed(function: Any, texts: list[str], sleep: Callable[[float], None] = time.sleep) -> Any:
    """Return the embedding of each text, in order. A provider that is busy is asked again.

    Raises TextRefused if the provider refuses a text, NoEmbedding if it does not embed.
    """
    for attempt in range(_TRIES):
        try:
            return function(texts)
        except Exception as error:
            if _status(error) in _REFUSED:
                raise TextRefused(f"the provider refused it: {type(error).__name__}: {str(error)[:500]}") from error
            if attempt + 1 == _TRIES or not _is_busy(error):
                raise NoEmbedding(f"embedding failed: {type(error).__name__}: {str(error)[:500]}") from error
            pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S * 2**attempt, _retry_after_s(error)))
        sleep(pause_s * random.uniform(0.8, 1.2))  # noqa: S311
    raise AssertionError


def _status(error: Exception) -> int | None:
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_busy(error: Exception) -> bool:
    if (status := _status(error)) is not None:
        return status in _RETRIED
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
