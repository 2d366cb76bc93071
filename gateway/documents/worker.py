"""The process that reads documents and embeds. It may be slow, leak, crash or be killed without harm.

It reads one JSON object a line on stdin and answers with one a line on stdout. `gateway.documents.worker_pool` is the
other end.
"""

import base64
import json
import os
import resource
import struct
import sys
from pathlib import Path
from typing import Any

from gateway.documents.embedding import Embedding, NoEmbedding, TextRefused, configuration, embed, load, tokenizer_of
from gateway.documents.readers.ocr import NoOcr, Ocr, require_ocr
from gateway.documents.readers.text import NoText
from gateway.documents.split import Splitting, TokenCounter, split


class Worker:
    """Does what a line asks for."""

    def __init__(self) -> None:
        self._function: Any = None
        self._counter: tuple[str, TokenCounter] | None = None

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: PLR0911
        """Return the answer to one request. A failure is an answer with `error`.

        `is_fault_of_document` says that another attempt would fail the same way.
        """
        try:
            match asked["do"]:
                case "read":
                    return self._read(asked)
                case "require_ocr":
                    require_ocr(asked["ocr"])
                    return {}
                case "load":
                    return self._load(asked)
                case "embed":
                    vectors = embed(self._function, asked["texts"])
                    return {"embeddings": [_packed(vector) for vector in vectors]}
                case other:
                    return {"error": f"unknown request {other!r}"}
        except NoText as error:
            return {"error": str(error), "is_fault_of_document": True}
        except TextRefused as error:
            return {"error": str(error), "is_refused": True}
        except NoOcr as error:
            return {"error": str(error)}
        except NoEmbedding as error:
            return {"error": str(error), "hint": error.hint}
        except MemoryError:
            return {"error": "it needs too much memory"}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {str(error)[:300]}"}

    def _read(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Write the chunks of a document to a file, one JSON array [position, text, metadata] a line."""
        from gateway.documents.readers import kinds  # noqa: PLC0415  # the process that embeds needs none

        ocr = Ocr(asked["ocr"]) if asked["ocr"] is not None else None
        text = kinds.read(Path(asked["path"]).read_bytes(), asked["name"], ocr)
        how, counter = Splitting.model_validate(asked["splitting"]), self._counter_for(asked)
        count = 0
        with Path(asked["to"]).open("w", encoding="utf-8") as out:
            for chunk in split(text, how, counter):
                out.write(json.dumps([chunk.position, chunk.text, text.metadata | chunk.where]) + "\n")
                count += 1
        return {"chunks": count, "problems": text.problems}

    def _counter_for(self, asked: dict[str, Any]) -> TokenCounter | None:
        if asked["max_tokens"] is None:
            return None
        if self._counter is None or self._counter[0] != asked["tokenizer"]:
            self._counter = asked["tokenizer"], TokenCounter(Path(asked["tokenizer"]), asked["max_tokens"])
        return self._counter[1]

    def _load(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Load the embedding function, and write its tokenizer to a file if it has one."""
        self._function = load(Embedding.model_validate(asked["embedding"]), asked["module"])
        max_tokens = None
        if (found := tokenizer_of(self._function)) is not None:
            tokenizer, max_tokens = found
            Path(asked["tokenizer"]).write_text(tokenizer, encoding="utf-8")
        return {"configuration": configuration(self._function, asked["hnsw"]), "max_tokens": max_tokens}


def _packed(vector: Any) -> str:
    """Return a vector as float32, little-endian, in base64. Chroma's own client sends it so."""
    values = [float(value) for value in vector]
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def main() -> None:
    """Answer lines until stdin ends."""
    if len(sys.argv) > 1:
        limit = int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.nice(5)  # the gateway's requests come first
    # Libraries print to stdout. The answers must not mix with that.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
