"""What is asked and answered."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MAX_QUESTION_CHARACTERS = 2000
MAX_RESULTS = 20


class Query(BaseModel):
    """The body of `POST /query`."""

    model_config = ConfigDict(extra="forbid")

    question: str = Field(min_length=1, max_length=MAX_QUESTION_CHARACTERS)
    max_results: int = Field(5, ge=1, le=MAX_RESULTS, description="passages that the answer is made of, at most")
    filters: dict[str, Any] = Field(
        default_factory=dict,
        description="of the passages' metadata, as Chroma's `where`",
        examples=[{"document": "a.md"}, {"page": {"$gte": 10}}],
    )
    stream: bool = Field(False, description="answer with server-sent events")


class Source(BaseModel):
    """A passage that was found. A higher score is nearer; 1 is nearest."""

    id: str
    document: str
    text: str
    score: float
    metadata: dict[str, Any]


class Times(BaseModel):
    """Milliseconds."""

    search_ms: float
    answer_ms: float


class Answer(BaseModel):
    """An answer. `[1]` in it is the first of the sources. `model` is null where sentences are extracted."""

    answer: str
    sources: list[Source]
    time: Times
    model: str | None


class Health(BaseModel):
    """The collection that is asked, and how many chunks it has."""

    status: str
    collection: str
    records: int


class Problem(BaseModel):
    """An error, in the form that Chroma and the gateway use."""

    error: str
    message: str
    hint: str | None = None
