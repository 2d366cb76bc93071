"""Records that have no vector any more: written to a file, then deleted, so that Chroma serves the others. Blocking.

Chroma fails every request for vectors that comes across such a record ("Error finding id",
`rust/frontend/src/executor/local.rs`). A vector of zeros in its place would be found by searches and be wrong. So a
person decides: upsert the record, or delete it.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gateway.chroma.database import write_lock_on
from gateway.chroma.segments import Segment
from gateway.files import sync_file

# As metadata rows are stored (`rust/segment/src/sqlite_metadata.rs`).
_DOCUMENT = "chroma:document"
_VALUES = ("string_value", "int_value", "float_value", "bool_value")
_TABLES = (("embedding_fulltext_search", "rowid"), ("embedding_metadata", "id"), ("embedding_metadata_array", "id"))


def drop_records(connection: sqlite3.Connection, segment: Segment, ids: Iterable[str], file: Path) -> int:
    """Append the records to `file`, a line of JSON each, then delete them; return how many. Chroma must not run.

    The file is durable before anything is deleted. Their index must not have them. Raises OSError, sqlite3.Error,
    QuiesceTimeout; then nothing is deleted. May be repeated.
    """
    rows = {}
    for each in ids:
        found = connection.execute(
            "select id from embeddings where segment_id = ? and embedding_id = ?", (segment.metadata_id, each)
        ).fetchone()
        if found:
            rows[int(found[0])] = each
    with file.open("ab") as opened:
        for line in _lines(connection, segment, rows):
            opened.write(line.encode() + b"\n")
        sync_file(opened)
    tables = {str(row[0]) for row in connection.execute("select name from sqlite_master where type = 'table'")}
    with write_lock_on(connection, commit=True):
        for row in rows:
            for table, column in _TABLES:
                if table in tables:
                    connection.execute(f"delete from {table} where {column} = ?", (row,))  # noqa: S608  # constants
            connection.execute("delete from embeddings where id = ?", (row,))
    return len(rows)


def _lines(connection: sqlite3.Connection, segment: Segment, rows: dict[int, str]) -> Iterator[str]:
    columns = {row[1] for row in connection.execute("pragma table_info(embedding_metadata)")}
    chosen = ", ".join(each if each in columns else "null" for each in _VALUES)
    for row, each in rows.items():
        metadata: dict[str, Any] = {}
        for key, text, whole, real, flag in connection.execute(
            f"select key, {chosen} from embedding_metadata where id = ?",  # noqa: S608  # names of columns
            (row,),
        ):
            metadata[key] = next((value for value in (text, whole, real) if value is not None), None)
            metadata[key] = bool(flag) if flag is not None else metadata[key]
        document = metadata.pop(_DOCUMENT, None)
        record = {"collection": segment.name, "id": each, "document": document, "metadata": metadata}
        yield json.dumps(record, ensure_ascii=False)
