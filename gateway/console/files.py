"""The static files of the console. They are read once; together they are small."""

import hashlib
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from typing import NamedTuple

INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class File(NamedTuple):
    """`etag` is in double quotes, as in the header."""

    data: bytes
    media_type: str
    etag: str


@lru_cache(1)
def static_files() -> dict[str, File]:
    """All files by path, such as `pages/overview.js`. Blocks at the first call."""
    return dict(_found(files("gateway.console") / "static", ""))


def _found(directory: Traversable, prefix: str) -> list[tuple[str, File]]:
    found = []
    for each in directory.iterdir():
        if each.is_dir():
            found += _found(each, f"{prefix}{each.name}/")
        elif (media_type := _TYPES.get(PurePosixPath(each.name).suffix)) is not None:
            data = each.read_bytes()
            found.append((f"{prefix}{each.name}", File(data, media_type, f'"{hashlib.sha256(data).hexdigest()[:32]}"')))
    return found
