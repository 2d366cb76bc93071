"""The schema migrations that the installed Chroma knows.

They are compiled into its native module (`rust/sqlite/src/migrations.rs`). The wheel's SQL files are fewer
(docs/chroma-internals.md, "Migrations"). So a child process lets the native module create an empty database and reads
its table `migrations`, which takes 0.15 s.
"""

import functools
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from gateway.chroma.disk import DATABASE
from gateway.errors import ConfigError

_TIMEOUT_S = 60
_MAKE_DATABASE = """
import sys
from chromadb_rust_bindings import Bindings, MigrationHash, MigrationMode, SqliteDBConfig
directory, database = sys.argv[1:]
config = SqliteDBConfig(hash_type=MigrationHash.MD5, migration_mode=MigrationMode.Apply, url=database)
Bindings(allow_reset=False, sqlite_db_config=config, persist_path=directory, hnsw_cache_size=1)
"""


@functools.cache
def installed_migrations() -> frozenset[tuple[str, int]]:
    """(dir, version) of each. Blocks; cached. Raises ConfigError if the installed chromadb makes no database."""
    try:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / DATABASE
            subprocess.run(  # noqa: S603  # our own interpreter and our own text
                [sys.executable, "-c", _MAKE_DATABASE, directory, str(path)],
                check=True,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
            )
            with closing(sqlite3.connect(path)) as connection:
                return frozenset(connection.execute("select dir, version from migrations"))
    except (OSError, subprocess.SubprocessError, sqlite3.Error) as error:
        why = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        raise ConfigError(
            f"the migrations of the installed chromadb cannot be read: {why}",
            "install the gateway with its locked dependencies: scripts/setup",
        ) from error
