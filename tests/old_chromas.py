"""What do bare Chroma and doctor say of directories that old versions made, before and after a repair?

`python -m tests.old_chromas VERSION…` makes an environment of its own for each version (in `var/old`, once), lets it
write a directory (`tests/data/make_old_chroma.py`), damages copies of it, and prints a table in Markdown. Bare Chroma
is that of the same version, in a process of its own. Needs a package index.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.chroma.disk import HEADER, ID_MAP, LEVEL0, LINK_LISTS
from tests.gateway_process import ROOT

MAKE = ROOT / "tests/data/make_old_chroma.py"
# Reads everything: ids, documents and embeddings of each collection, and searches for each record.
READ = """
import json, sys
import chromadb
client = chromadb.PersistentClient(sys.argv[1], chromadb.Settings(anonymized_telemetry=False))
found = {}
for listed in client.list_collections():
    collection = client.get_collection(listed if isinstance(listed, str) else listed.name)
    got = collection.get(include=["documents", "embeddings"])
    for vector in got["embeddings"]:
        collection.query(query_embeddings=[[float(each) for each in vector]], n_results=1)
    for place, each in enumerate(got["ids"]):
        vector = [round(float(value), 3) for value in got["embeddings"][place]]
        found[f"{collection.name}/{each}"] = [got["documents"][place], vector]
print(json.dumps(found))
"""


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def _half_of_the_elements(path: Path) -> None:
    # Of 50 elements of 8 dimensions (172 bytes each): the file has room for more.
    os.truncate(path, 25 * 172)


DAMAGES: dict[str, tuple[str, Callable[[Path], None]] | None] = {
    "sound": None,
    "header cut": (HEADER, _cut),
    "links zeroed": (LINK_LISTS, lambda path: path.write_bytes(b"\x01" * path.stat().st_size)),
    "id map cut": (ID_MAP, _cut),
    "half of the vectors": (LEVEL0, _half_of_the_elements),
}


def environment(version: str, parent: Path) -> Path:
    """The interpreter of an environment with that version."""
    if version == importlib.metadata.version("chromadb"):
        return Path(sys.executable)
    path = parent / f"venv-{version}"
    if not (path / "done").exists():
        venv.create(path, with_pip=True, clear=not path.exists())
        subprocess.run(
            [path / "bin/python", "-m", "pip", "install", "-q", f"chromadb=={version}", "numpy<2"], check=True
        )
        (path / "done").touch()
    return path / "bin/python"


def read(python: Path, directory: Path) -> dict[str, Any] | str:
    """What bare Chroma has, or the last line of what it said."""
    done = subprocess.run([python, "-c", READ, directory], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        return last if done.returncode > 0 else f"killed by signal {-done.returncode}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def doctor(*arguments: str | Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "doctor", "--json", *arguments], capture_output=True, text=True, check=False
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def row(version: str, damage: str, python: Path, sound: Path, expected: dict[str, Any], scratch: Path) -> str:
    damaged, kind = scratch / "damaged", DAMAGES[damage]
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(sound, damaged)
    if kind:
        # Some versions make the files of an index that was never synced too, but no id map.
        (index,) = [path.parent for path in damaged.glob(f"*/{ID_MAP}")]
        kind[1](index / kind[0])
    looked = scratch / "looked"  # Chroma may change what it opens
    shutil.rmtree(looked, ignore_errors=True)
    shutil.copytree(damaged, looked)
    before = _said(read(python, looked), expected)
    found = doctor(damaged)
    codes = ", ".join(sorted({f"`{each['code']}`" for each in found["findings"] if each["severity"] == "error"}))
    repaired = doctor(damaged, "--repair", "--backup", scratch / f"backup-{version}-{damage.replace(' ', '-')}")
    lost = sum(len(each["lost_ids"]) for each in repaired.get("repair", {}).get("collections", []))
    if lost:
        doctor(
            damaged, "--repair", "--drop-lost", "--backup", scratch / f"dropped-{version}-{damage.replace(' ', '-')}"
        )
    after = _said(read(python, damaged), expected)
    return f"| {version} | {damage} | {before} | {codes or 'nothing wrong'} | {after} |"


def _said(found: dict[str, Any] | str, expected: dict[str, Any]) -> str:
    if isinstance(found, str):
        return f"fails: {found[:60].replace('|', '/')}"
    wrong = sum(1 for each, value in found.items() if expected[each] != value)
    return f"{len(found)} of {len(expected)}" + (f", {wrong} of them wrong" if wrong else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="+")
    parser.add_argument("--environments", type=Path, default=ROOT / "var/old")
    arguments = parser.parse_args()
    arguments.environments.mkdir(parents=True, exist_ok=True)
    print("| made by | damage | bare Chroma of that version reads | doctor finds | after `--repair` it reads |")
    print("| --- | --- | --- | --- | --- |")
    for version in arguments.versions:
        python = environment(version, arguments.environments)
        with tempfile.TemporaryDirectory() as directory:
            scratch = Path(directory)
            subprocess.run([python, MAKE, scratch / "made.tar.gz"], check=True)
            with tarfile.open(scratch / "made.tar.gz") as archive:
                archive.extractall(scratch, filter="data")
            (scratch / "chroma_db").rename(scratch / "sound")
            expected = read(python, scratch / "sound")
            if isinstance(expected, str):
                raise SystemExit(f"{version} cannot read what it made: {expected}")
            for damage in DAMAGES:
                print(row(version, damage, python, scratch / "sound", expected, scratch), flush=True)


if __name__ == "__main__":
    main()
