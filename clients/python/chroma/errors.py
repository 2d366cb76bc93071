"""What this client raises.

ChromaError
├── ConfigurationError      a setting is unknown, malformed or missing
├── InvalidRecord           what was logged cannot be stored; nothing of the call was kept or sent
│   └── MixedEmbeddingSets  embeddings of different sets were brought together
└── ServerError             the server did not do what it was asked
    ├── Unavailable         it cannot be reached, or is busy; the same call may be made again
    ├── Denied              the key is missing, wrong, or may not do this
    └── Refused             any other refusal; its text is the server's

An OSError of the buffer file, such as that of a full disk, is passed on.
"""


class ChromaError(Exception):
    """The root of this client's errors."""


class ConfigurationError(ChromaError, ValueError):
    """A setting is unknown, malformed or missing."""


class InvalidRecord(ChromaError, ValueError):
    """What was logged cannot be stored."""


class MixedEmbeddingSets(InvalidRecord):
    """Embeddings of different sets, which cannot be compared, were brought together."""


class ServerError(ChromaError):
    """The server did not do what it was asked."""


class Unavailable(ServerError):
    """The server cannot be reached, or is busy. The same call may be made again."""


class Denied(ServerError):
    """The key is missing, wrong, or may not do this."""


class Refused(ServerError):
    """Any other refusal."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
