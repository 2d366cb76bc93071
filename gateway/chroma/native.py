"""`chroma run CONFIG`, by its native entry.

The `chroma` script imports all of chromadb and then calls `chromadb_rust_bindings.cli`. Calling that entry directly
starts the same server in a tenth of the time and on a quarter of the memory (docs/chroma-internals.md).

Run as `python -P -m gateway.chroma.native CONFIG`. CONFIG is a configuration file of Chroma's own, written by
`gateway.chroma.process.write_config`. In a gateway's data directory the process holds `.gateway/chroma.lock` for its
whole life, so that no second Chroma can run on the same files.
"""

import contextlib
import fcntl
import json
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

# The admin token and the store's credentials are not for Chroma, and a CHROMA_ variable would override CONFIG
# (`rust/frontend-core/src/config.rs`, `load_yaml_with_env`).
_NOT_FOR_CHROMA = ("GATEWAY_", "AWS_", "CHROMA_")
# Warnings and errors, with the request that they belong to. Chroma's own default writes several lines for each request
# (`rust/tracing/src/init_tracer.rs`, `init_global_filter_layer`). Without them a query takes a fifth less.
_QUIET = "error,chroma=warn,chroma_tracing::tower_tracing=debug"
_WRONG_SETTING = 2


def environment_for_chroma(inherited: Mapping[str, str]) -> dict[str, str]:
    """`inherited` without secrets and without what would change Chroma's configuration."""
    kept = {name: value for name, value in inherited.items() if not name.startswith(_NOT_FOR_CHROMA)}
    return kept | {"ANONYMIZED_TELEMETRY": "False"}


def main(config: Path) -> NoReturn:
    """Become Chroma. Exits with 2 where another Chroma uses the data directory.

    Whoever starts this process gives it `environment_for_chroma`.
    """
    configured = json.loads(config.read_text())
    data_dir = Path(configured["persist_path"])
    if configured.get("open_telemetry") is None:  # the same filter decides what is traced
        os.environ.setdefault("RUST_LOG", _QUIET)
    # Each synced index needs four descriptors; the usual soft limit of 1,024 is enough for 250 collections.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    private = data_dir / ".gateway"
    if private.is_dir():
        _claim(private / "chroma.lock")
    arguments = ["chroma", "run", str(config)]
    try:
        from chromadb_rust_bindings import cli  # noqa: PLC0415  # where it is missing, the script does the same
    except ImportError:
        os.execv(Path(sys.executable).with_name("chroma"), arguments)  # noqa: S606  # no shell is wanted
    cli(arguments)
    sys.exit(0)


def _claim(lock: Path) -> None:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.set_inheritable(descriptor, True)
        return
    print(f"another Chroma uses {lock.parent.parent}: stop it, or set another GATEWAY_DATA_DIR", file=sys.stderr)
    sys.exit(_WRONG_SETTING)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
