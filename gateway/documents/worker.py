"""The process that opens documents and embeds: it may be slow, leak, crash or be killed without harm.

One JSON object a line comes on stdin, one goes back on stdout; `gateway.documents.worker_pool` is the other end.
"""

import base64
import json
import os
import resource
import struct
import sys
from pathlib import Path
from typing import Any

from gateway.documents.embedding import Embedding, NoEmbedding, configuration, embed, load
from gateway.documents.split import Splitting, split
from gateway.documents.text import NoText, read_text


class Worker:
    """Does what a line asks for."""

    def __init__(self) -> None:
        self._function: Any = None

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: PLR0911
        """The answer to one request; what is wrong with a document or a provider is an answer too."""
        try:
            match asked["do"]:
                case "read":
                    return self._read(asked)
                case "load":
                    self._function = load(Embedding.model_validate(asked["embedding"]), asked["module"])
                    return {"configuration": configuration(self._function, asked["hnsw"])}
                case "embed":
                    vectors = embed(self._function, asked["texts"])
                    return {"embeddings": [_packed(vector) for vector in vectors]}
                case other:
                    return {"error": f"nobody knows how to {other}"}
        except (NoText, NoEmbedding) as error:
            return {"error": str(error)}
        except MemoryError:
            return {"error": "it needs too much memory"}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {str(error)[:300]}"}

    def _read(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Write the chunks of a document to a file, one JSON array [position, text] a line."""
        text = read_text(Path(asked["path"]), asked["name"])
        count = 0
        with Path(asked["to"]).open("w", encoding="utf-8") as out:
            for position, chunk in split(text, asked["name"], Splitting.model_validate(asked["splitting"])):
                out.write(json.dumps([position, chunk]) + "\n")
                count += 1
        return {"chunks": count}


def _packed(vector: Any) -> str:
    """Float32, little-endian, in base64: as Chroma's own client sends it."""
    values = [float(value) for value in vector]
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def main() -> None:
    """Answer lines until stdin ends."""
    if len(sys.argv) > 1:
        limit = int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.nice(5)  # requests come first
    # Libraries print what they like; the answers go where only we write.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
