"""What an embedding function needs is named; how much it reads of a text is known."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from gateway.documents import embedding
from gateway.documents.embedding import PROVIDERS, Embedding, NoEmbedding, load, tokenizer_of

ROOT = Path(__file__).parents[3]


class Function:
    """As Chroma's functions: its parameters have defaults."""

    def __init__(self, model_name: str = "a-model", api_key_env_var: str = "A_KEY") -> None:
        pass


def test_every_provider_has_an_extra() -> None:
    """Its message names an extra of this project, which installs the package that Chroma's function imports."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for provider in PROVIDERS.values():
        assert any(each.startswith(provider.package.replace("_", "-")) for each in extras[provider.extra])


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_missing_package_is_named_with_the_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with where the model would come from, and how to install it. Also if the request names another model."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for config, model in (({}, "a-model"), ({"model_name": "another"}, "another")):
        with pytest.raises(NoEmbedding) as refused:
            embedding._require_package(Embedding(name=name, config=config), Function)
        assert f"model {model}, from {PROVIDERS[name].models_from}" in str(refused.value)
        assert f"package {PROVIDERS[name].package} is not installed" in str(refused.value)
        assert f"chroma-gateway[{PROVIDERS[name].extra}]" in str(refused.value.hint)


def test_a_model_that_cannot_be_fetched_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default function fetches it when it first embeds."""

    def fails(_function: Any, _texts: list[str]) -> Any:
        raise NoEmbedding("embedding failed: ConnectError: no network")

    monkeypatch.setattr(embedding, "embed", fails)
    with pytest.raises(NoEmbedding, match=r"all-MiniLM-L6-v2, from Chroma's bucket.*no network") as refused:
        load(Embedding(), None)
    assert refused.value.hint


def test_a_module_that_cannot_be_imported_is_named() -> None:
    """It is the module's fault, not the function's."""
    with pytest.raises(NoEmbedding, match=r"GATEWAY_EMBEDDING_MODULE 'no\.such\.module'"):
        load(Embedding(), "no.such.module")


def tokenizer(truncation: int | None) -> Tokenizer:
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    if truncation is not None:
        made.enable_truncation(truncation)
    return made


class WithTokenizer:
    def __init__(self, truncation: int | None) -> None:
        self.tokenizer = tokenizer(truncation)


class SentenceTransformer:
    """As the function of that name: the model has the tokenizer and says how much it reads."""

    class _Model:
        max_seq_length: int
        tokenizer: Any

    def __init__(self, limit: int = 384) -> None:
        self._model = self._Model()
        self._model.max_seq_length = limit
        self._model.tokenizer = type("Fast", (), {"backend_tokenizer": tokenizer(128)})


@pytest.mark.parametrize(
    ("function", "most"),
    [
        (WithTokenizer(256), 254),
        (SentenceTransformer(), 382),
        (SentenceTransformer(10**30), None),
        (WithTokenizer(None), None),
        (Function(), None),
    ],
    ids=["a tokenizer", "a model", "a model without a limit", "no limit", "no tokenizer"],
)
def test_a_function_reads_its_limit_without_its_special_tokens(function: Any, most: int | None) -> None:
    """[CLS] and [SEP] take two of 256."""
    found = tokenizer_of(function)
    assert (found[1] if found else None) == most
