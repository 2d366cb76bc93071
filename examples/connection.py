"""Where the gateway is, and the keys for it.

- `CHROMA_URL`: http://127.0.0.1:8000 by default
- `CHROMA_KEY`: a key, where the gateway wants one
- `GATEWAY_ADMIN_TOKEN`: for ingests and snapshots. By default the token that `scripts/run` made in this clone
"""

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import chromadb
from chromadb.api import AsyncClientAPI, ClientAPI

from gateway.admin import Admin

ROOT = Path(__file__).parents[1]


def url() -> str:
    return os.environ.get("CHROMA_URL", "http://127.0.0.1:8000")


def _options() -> dict[str, Any]:
    parts = urlsplit(url())
    tls, key = parts.scheme == "https", os.environ.get("CHROMA_KEY")
    return {
        "host": parts.hostname,
        "port": parts.port or (443 if tls else 80),
        "ssl": tls,
        "headers": {"X-Chroma-Token": key} if key else None,
    }


def client() -> ClientAPI:
    """Chroma's client. Raises ValueError if no gateway answers."""
    return chromadb.HttpClient(**_options())


async def async_client() -> AsyncClientAPI:
    """Chroma's client for asyncio. Raises ValueError if no gateway answers."""
    return await chromadb.AsyncHttpClient(**_options())


def admin() -> Admin:
    """The gateway's admin API. Raises SystemExit if there is no token."""
    token = os.environ.get("GATEWAY_ADMIN_TOKEN")
    file = ROOT / "var/admin-token"
    if token is None and file.exists():
        token = file.read_text().strip()
    if token is None:
        raise SystemExit("no admin token: start the gateway with scripts/run, or set GATEWAY_ADMIN_TOKEN")
    return Admin(url(), token=token)
