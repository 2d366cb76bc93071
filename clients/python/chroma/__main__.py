"""The commands.

    python3 -m chroma upload-training FILE
    python3 -m chroma should-upload -embedding_set=ID BASE64_EMBEDDING

They print JSON to stdout. Exit status: 0 ok, 2 usage, configuration or a record that is not valid, 3 the server.
"""

import argparse
import base64
import binascii
import dataclasses
import json
import logging
import re
import sys
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from chroma.arrays import to_float32
from chroma.buffer import Buffer
from chroma.collection import SetCollection
from chroma.configuration import Configuration, load_configuration
from chroma.embedding_set import EmbeddingSet
from chroma.errors import ChromaError, ConfigurationError, InvalidRecord, ServerError
from chroma.recommendation import EXPLORE
from chroma.records import Mode, Record
from chroma.server import Server
from chroma.upload import upload

_SETTINGS = [field.name for field in dataclasses.fields(Configuration)]
_PATIENCE_S = 120


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    warnings.simplefilter("ignore")  # the answer has what they say
    try:
        configuration = load_configuration(
            options.chroma_config, options.chroma_json, **{name: getattr(options, name) for name in _SETTINGS}
        )
        with Server(configuration, _PATIENCE_S) as server:
            answer = options.command(options, configuration.application_id, server)
    except ServerError as error:
        print(f"chroma: {error}", file=sys.stderr)
        return 3
    except (ChromaError, OSError) as error:
        print(f"chroma: {error}", file=sys.stderr)
        return 2
    print(json.dumps(answer))
    return 0


def _parser() -> argparse.ArgumentParser:
    settings = argparse.ArgumentParser(add_help=False)
    for name in ("chroma_config", "chroma_json", *_SETTINGS):
        settings.add_argument(f"-{name}", f"--{name}", metavar="VALUE", help="goes before chroma.json")
    parser = argparse.ArgumentParser("python3 -m chroma", description="Log embeddings to Chroma.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    each = commands.add_parser("upload-training", parents=[settings], help="store the records of a buffer file")
    each.add_argument("file", metavar="FILE", type=Path)
    each.add_argument("-remove", "--remove", action="store_true", help="remove the file once everything is stored")
    each.set_defaults(command=_upload_training)

    each = commands.add_parser("should-upload", parents=[settings], help="whether an input is worth training on")
    each.add_argument("-embedding_set", "--embedding_set", metavar="ID", required=True, help="40 hexadecimal digits")
    each.add_argument("-label", "--label", help="what the model inferred, for `boundary`")
    each.add_argument("-explore", "--explore", type=float, default=EXPLORE, help=f"default: {EXPLORE}")
    each.add_argument("-explain", "--explain", action="store_true", help="add the reasons and their scores")
    each.add_argument("embedding", metavar="BASE64_EMBEDDING", help="float32, little-endian")
    each.set_defaults(command=_should_upload)
    return parser


def _upload_training(options: argparse.Namespace, application_id: str, server: Server) -> dict[str, Any]:
    if not options.file.is_file():
        raise ChromaError(f"there is no file {options.file}")
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)

    def open_set(embedding_set: EmbeddingSet) -> SetCollection:
        return SetCollection(server, application_id, embedding_set.id, embedding_set)

    with closing(Buffer(options.file)) as buffer:
        return dataclasses.asdict(upload(buffer, open_set, server, remove=options.remove))


def _should_upload(options: argparse.Namespace, application_id: str, server: Server) -> dict[str, Any]:
    if not re.fullmatch("[0-9a-f]{40}", options.embedding_set):
        raise InvalidRecord("the id of an embedding set has 40 hexadecimal digits, such as session.embedding_set_id")
    try:
        content = base64.b64decode(options.embedding, validate=True)
    except binascii.Error as error:
        raise InvalidRecord(f"the embedding is not base64: {error}") from error
    if len(content) % 4:
        raise InvalidRecord(f"the embedding has {len(content)} bytes, which is no whole number of float32")
    embedding = to_float32(np.frombuffer(content, "<f4")).tobytes()
    if not 0 <= options.explore <= 1:
        raise ConfigurationError(f"explore is a share from 0 to 1, not {options.explore}")
    # Nothing is stored, so what the set's dict and the URI are does not matter.
    inferences = None if options.label is None else {"label": options.label}
    record = Record(EmbeddingSet({"id": options.embedding_set}), Mode.PRODUCTION, "", embedding, inferences, 0)
    target = SetCollection(server, application_id, options.embedding_set)
    [result] = target.recommend([record], options.explore)
    answer: dict[str, Any] = {"recommendation": result.summary}
    if options.explain:
        answer["reasons"] = [{**dataclasses.asdict(each), "tag": each.tag.value} for each in result.recommendations]
    return answer


if __name__ == "__main__":
    sys.exit(main())
