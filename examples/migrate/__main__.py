"""Move data to the gateway, compare them afterwards, and take a snapshot.

    examples/run migrate milvus milvus.db --from docs --to docs
    examples/run migrate pdfs /workspace/papers --avatar papers

Exit status 1 if anything differs. Both may be repeated: what is there already is written over.
"""

import argparse
import sys
import time
from pathlib import Path

from examples.connection import admin
from examples.migrate.report import show
from gateway.admin import GatewayError


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="examples/run migrate", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="kind", required=True)
    milvus = commands.add_parser("milvus", help="a collection of Milvus Lite")
    milvus.add_argument("file", type=Path)
    milvus.add_argument("--from", dest="source", required=True, help="the collection in Milvus")
    milvus.add_argument("--to", dest="target", required=True, help="the collection in Chroma")
    milvus.add_argument("--text", help="the field that becomes Chroma's document; by default text, document, content …")
    pdfs = commands.add_parser("pdfs", help="a folder of PDFs")
    pdfs.add_argument("folder", type=Path)
    pdfs.add_argument("--avatar", required=True)
    pdfs.add_argument("--pattern", default="*.pdf", help="the files' names: '*' for all that the gateway reads")
    return parser.parse_args()


def main() -> None:
    asked = _parse()
    since = time.monotonic()
    try:
        if asked.kind == "milvus":
            from examples.migrate import milvus  # noqa: PLC0415  # loads Milvus, which the other one does not need

            source = milvus.open_source(asked.file, asked.source, asked.text)
            target = milvus.copy(source, asked.target)
            print(f"copied in {time.monotonic() - since:.1f} s to the collection {asked.target}")
            show(milvus.compare(source, target))
        else:
            from examples.migrate import pdfs  # noqa: PLC0415

            done = pdfs.copy(asked.folder, asked.avatar, asked.pattern)
            print(
                f"{done['written']} chunks in {time.monotonic() - since:.1f} s in the collection {done['collection']}"
            )
            for name, why in done["failed"].items():
                print(f"without chunks: {name}: {why}")
            show(pdfs.compare(asked.folder, asked.avatar, asked.pattern, done))
        with admin() as gateway:
            print(f"snapshot {gateway.snapshots.take('after the migration')['id']}")
    except GatewayError as error:
        sys.exit(str(error))


main()
