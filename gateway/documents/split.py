"""Text into chunks that an embedding model takes whole."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from semantic_text_splitter import MarkdownSplitter, TextSplitter

from gateway.errors import InvalidRequest

# Where chromadb keeps its default model (`onnx_mini_lm_l6_v2.py`, DOWNLOAD_PATH).
_TOKENIZER = Path.home() / ".cache/chroma/onnx_models/all-MiniLM-L6-v2/onnx/tokenizer.json"


class Splitting(BaseModel):
    """How text is split. The defaults fit the default model, which reads 256 tokens and ignores the rest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(800, ge=20, le=100_000, description="of a chunk at most, in `unit`")
    overlap: int = Field(100, ge=0, description="what a chunk may repeat of the one before, in `unit`")
    unit: Literal["characters", "tokens"] = Field("characters", description="`tokens` are the default model's")

    @model_validator(mode="after")
    def _moves_on(self) -> "Splitting":
        if self.overlap > self.size // 2:
            raise ValueError("overlap must be at most half of size")
        return self


def check_tokens(how: Splitting) -> None:
    """Raise InvalidRequest if `how` counts tokens and there is nothing to count them with."""
    if how.unit == "tokens" and not _TOKENIZER.is_file():
        raise InvalidRequest(
            f"splitting: tokens are counted with the default model's tokenizer, which is not at {_TOKENIZER}",
            "train once with the default embedding function, which fetches it, or split by characters",
        )


def split(text: str, name: str, how: Splitting) -> list[tuple[int, str]]:
    """The chunks of `text` in order, each with the character that it begins at. Raises FileNotFoundError.

    Markdown is split between its sections first, everything else between paragraphs, sentences, words.
    """
    kind: Any = MarkdownSplitter if name.lower().endswith(".md") else TextSplitter
    if how.unit == "tokens":
        splitter = kind.from_huggingface_tokenizer_file(str(_TOKENIZER), how.size, overlap=how.overlap)
    else:
        splitter = kind(how.size, overlap=how.overlap)
    return list(splitter.chunk_indices(text))
