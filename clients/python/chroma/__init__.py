"""Log the embeddings of a model, and learn which inputs are worth training on.

- An *embedding set* is what made an embedding: model, version, layer. Only embeddings of one set are compared.
- A *record* is one embedding of one input, with what the model inferred from it. Its *mode* is training or production.
- A *buffer file* has records that are not stored yet.
- A *recommendation* says whether to train on an input, and why.

Modules, the lower ones first: `errors`; `configuration`, `embedding_set`, `arrays`; `records`, `server`; `buffer`,
`neighbours`; `statistics`; `recommendation`; `collection`; `upload`; `sessions`; `calls`; `__main__`, the commands.
"""

from chroma.calls import log
from chroma.embedding_set import EmbeddingSet
from chroma.errors import (
    ChromaError,
    ConfigurationError,
    Denied,
    InvalidRecord,
    MixedEmbeddingSets,
    Refused,
    ServerError,
    Unavailable,
)
from chroma.recommendation import Recommendation, Result, Tag
from chroma.sessions import QuerySession, TrainingSession
from chroma.upload import Upload

__all__ = [
    "ChromaError",
    "ConfigurationError",
    "Denied",
    "EmbeddingSet",
    "InvalidRecord",
    "MixedEmbeddingSets",
    "QuerySession",
    "Recommendation",
    "Refused",
    "Result",
    "ServerError",
    "Tag",
    "TrainingSession",
    "Unavailable",
    "Upload",
    "log",
]
