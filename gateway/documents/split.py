"""Splits text into chunks that an embedding model reads whole. Linear in the length of the text."""

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer

from gateway.documents.readers.text import Text

# Without a tokenizer. Most of these fit a model that reads 256 tokens, but not in every language.
_DEFAULT_CHARACTERS = 800
_DEFAULT_OVERLAP = 1 / 8
# A tokenizer turns a word that it does not know into one token, however long the word is.
_CHARACTERS_PER_TOKEN = 8
# Tokens of this many characters are counted at once: tokenizers take time for each call and memory for each token.
_COUNTED_CHARACTERS = 1 << 16

_PARAGRAPH = re.compile(r"\n\s*\n")
_LINE = re.compile(r"\n")
_SENTENCE = re.compile(r"[.!?…]['\"”’)\]]*\s+|[。！？؟।]['\"”’」』)\]]*\s*")
_WORD = re.compile(r"\s+")
# Characters that belong to the one before: combining marks, variation selectors, joiners, skin tones.
_EXTENDS = re.compile("[\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u064b-\u065f\u0900-\u0903\u093a-\u094f\u0e31"
                      "\u0e34-\u0e3a\u0e47-\u0e4e\u1ab0-\u1aff\u1dc0-\u1dff\u200d\u20d0-\u20ff\u3099\u309a\ufe00-\ufe0f\ufe20-\ufe2f"
                      "\U0001f3fb-\U0001f3ff]")  # fmt: skip


class Splitting(BaseModel):
    """How text is split. The defaults are the embedding function's own limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int | None = Field(
        None,
        ge=20,
        le=100_000,
        description="the most of a chunk, in `unit`. Default: what the embedding function reads of a text, or 800 "
        "characters if it has no tokenizer. A chunk never has more tokens than the embedding function reads",
    )
    overlap: int | None = Field(
        None,
        ge=0,
        description="how much of the previous chunk a chunk may repeat, in `unit`. Default: an eighth of size",
    )
    unit: Literal["characters", "tokens"] | None = Field(
        None, description="Default: `tokens` if the embedding function has a tokenizer and no size is given"
    )

    @model_validator(mode="after")
    def _moves_on(self) -> "Splitting":
        if self.size is not None and self.overlap is not None and self.overlap > self.size // 2:
            raise ValueError("overlap must be at most half of size")
        return self


class NoTokenizer(Exception):
    """Tokens cannot be counted: the embedding function has no tokenizer."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a text. `position` is the index of its first character in the text, `where` its source's metadata."""

    position: int
    text: str
    where: dict[str, Any]


class TokenCounter:
    """Counts the tokens that an embedding model makes of a text. `limit` is the most that it reads of one text."""

    def __init__(self, tokenizer_file: Path, limit: int) -> None:
        """`limit` is without special tokens. Truncation in the tokenizer's file is ignored."""
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.limit = limit

    def starts(self, text: str) -> list[int]:
        """Return the index in `text` at which each token begins, in order."""
        return [start for start, end in self._tokenizer.encode(text, add_special_tokens=False).offsets if end > start]

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True, slots=True)
class _Limits:
    characters: int
    overlap_characters: int
    tokens: int | None = None
    overlap_tokens: int = 0


def split(text: Text, how: Splitting, counter: TokenCounter | None = None) -> Iterator[Chunk]:
    """Yield the chunks of `text` in order.

    Only white space between chunks is left out. A chunk ends, where possible, at the end of a section, block,
    paragraph, line, sentence or word. Raises NoTokenizer if `how` counts tokens and `counter` is None.
    """
    return _Splitter(text, _limits(how, counter), counter).chunks()


def _limits(how: Splitting, counter: TokenCounter | None) -> _Limits:
    unit = how.unit or ("tokens" if counter is not None and how.size is None else "characters")
    if unit == "tokens":
        if counter is None:
            raise NoTokenizer
        size = min(how.size or counter.limit, counter.limit)
        overlap = min(how.overlap if how.overlap is not None else int(size * _DEFAULT_OVERLAP), size // 2)
        return _Limits(size * _CHARACTERS_PER_TOKEN, overlap * _CHARACTERS_PER_TOKEN, size, overlap)
    size = how.size or _DEFAULT_CHARACTERS
    overlap = min(how.overlap if how.overlap is not None else int(size * _DEFAULT_OVERLAP), size // 2)
    return _Limits(size, overlap, counter.limit if counter else None, counter.limit // 2 if counter else 0)


class _Splitter:
    def __init__(self, text: Text, limits: _Limits, counter: TokenCounter | None) -> None:
        self._text, self._limits, self._counter = text.text, limits, counter
        self._blocks = text.blocks
        self._block_starts = [block.start for block in self._blocks]
        # The window of the text whose tokens are known.
        self._counted_from = self._counted_to = 0
        self._token_starts: list[int] = []

    def chunks(self) -> Iterator[Chunk]:
        start, previous_end = self._skip_space(0), 0
        while start < len(self._text):
            end = self._end(start)
            if end <= previous_end:  # the overlap alone fills a chunk
                start = self._skip_space(previous_end)
                end = self._end(start)
            previous_end = end
            stripped = self._text[start:end].rstrip()
            if stripped:
                yield Chunk(start, stripped, self._where(start))
            if end >= len(self._text):
                return
            start = self._skip_space(self._next_start(start, end))

    def _end(self, start: int) -> int:
        """Return where the chunk that begins at `start` ends, which is after `start`."""
        end = self._most(start)
        while True:
            end = self._boundary(start, end) if end < len(self._text) else end
            if self._counter is None or self._limits.tokens is None:
                return end
            # The tokens of a part may be others than the part of the tokens.
            count = self._counter.count(self._text[start:end].rstrip())
            if count <= self._limits.tokens or end == start + 1:
                return end
            end = start + max(1, min(end - start - 1, (end - start) * self._limits.tokens // count))

    def _most(self, start: int) -> int:
        """Return the last index at which a chunk that begins at `start` may end."""
        end = min(len(self._text), start + self._limits.characters)
        if self._limits.tokens is None:
            return end
        self._count(start, end)
        first = bisect.bisect_left(self._token_starts, start)
        after = first + self._limits.tokens
        if after < len(self._token_starts):
            end = min(end, max(start + 1, self._token_starts[after]))
        return end

    def _count(self, start: int, end: int) -> None:
        """Make sure that the tokens between `start` and `end` are known."""
        if self._counted_from <= start and end <= self._counted_to:
            return
        assert self._counter is not None
        upto = min(len(self._text), max(end, start + _COUNTED_CHARACTERS))
        window = self._text[start:upto]
        self._counted_from, self._counted_to = start, upto
        self._token_starts = [start + index for index in self._counter.starts(window)]

    def _boundary(self, start: int, most: int) -> int:
        """Return the best index to end at, after `start` and at most `most`."""
        half = start + (most - start) // 2
        low = bisect.bisect_right(self._block_starts, start)
        high = bisect.bisect_right(self._block_starts, most)
        for index in range(high - 1, low - 1, -1):
            if self._block_starts[index] <= half:
                break
            if self._blocks[index].begins_section:
                return self._block_starts[index]
        if high > low:
            last = self._block_starts[high - 1]
            block = self._blocks[high - 1]
            if last > half or (block.is_whole and block.end - block.start <= self._limits.characters):
                return last
        window = self._text[start:most]
        is_whole = high > 0 and self._blocks[high - 1].is_whole
        for pattern in (_PARAGRAPH, *((_LINE, _SENTENCE) if is_whole else (_SENTENCE, _LINE)), _WORD):
            if cut := _last_end(pattern, window, half - start):
                return start + cut
        cut = _last_end(_WORD, window, 0)
        if cut:
            return start + cut
        while most > start + 1 and most < len(self._text) and _EXTENDS.match(self._text, most):
            most -= 1
        return most

    def _next_start(self, start: int, end: int) -> int:
        """Return where the next chunk begins: before `end` by the overlap, at a word or a block."""
        if self._limits.overlap_characters == 0:
            return end
        index = bisect.bisect_left(self._block_starts, end)
        if index < len(self._blocks) and self._block_starts[index] == end and self._blocks[index].begins_section:
            return end
        earliest = max(start + 1, end - self._limits.overlap_characters)
        if self._limits.tokens is not None and self._counted_from <= start:
            after = bisect.bisect_left(self._token_starts, end) - self._limits.overlap_tokens
            if 0 <= after < len(self._token_starts):
                earliest = max(earliest, self._token_starts[after])
        index = bisect.bisect_left(self._block_starts, earliest)
        if index < len(self._blocks) and self._block_starts[index] < end:
            return self._block_starts[index]
        if self._blocks and self._blocks[max(0, bisect.bisect_right(self._block_starts, end - 1) - 1)].is_whole:
            return end
        for pattern in (_SENTENCE, _WORD):
            match = pattern.search(self._text, earliest, end)
            if match is not None and match.end() < end:
                return match.end()
        return end

    def _skip_space(self, start: int) -> int:
        match = _WORD.match(self._text, start)
        return match.end() if match else start

    def _where(self, start: int) -> dict[str, Any]:
        index = bisect.bisect_right(self._block_starts, start) - 1
        return self._blocks[index].where if index >= 0 else {}


def _last_end(pattern: re.Pattern[str], window: str, after: int) -> int:
    """Return the end of the last match of `pattern` that ends after the index `after`, or 0."""
    last = 0
    for match in pattern.finditer(window, max(0, after)):
        if match.end() > after:
            last = match.end()
    return last
