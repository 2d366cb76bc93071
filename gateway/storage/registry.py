"""The kinds of stores there are, by the scheme of their URL, and the way from a URL to an open store.

To add a kind:

1. Write a module with a class that keeps the contract in `gateway.storage.protocol`, and a function `open_url`, which
   is an `OpenUrl`. Add a line to `_SCHEMES`, and the class to the stores in tests/contract/conftest.py.
2. Add its SDK to pyproject.toml, run `scripts/lock`, and name its loggers in `gateway.observability.logs`.
3. Name its URLs in the help of `--store` (`gateway.cli.options`) and in docs/configuration.md.
"""

import re
from importlib import import_module
from typing import NamedTuple, Protocol

from gateway.errors import ConfigError, InvalidRequest
from gateway.storage.protocol import Addressing, Storage

DEFAULT_URL = "file://./var/store"


class OpenUrl(Protocol):
    """The function `open_url` of a kind's module."""

    def __call__(self, location: str, *, addressing: Addressing) -> Storage:
        """Return the store at `location`, which is what stands after "://". Connects to nothing yet.

        `addressing` is for S3; other kinds take it and ignore it. Raises InvalidRequest if there can be no such store.
        """
        ...


class _Scheme(NamedTuple):
    """One kind of store."""

    module: str
    """Has `open_url`. It is imported when a store of that kind is opened: the SDK of S3 takes most of a second."""
    form: str
    """What its URLs look like, for people."""
    location: str
    """A regular expression for what stands after "://"."""
    outlives_container: bool
    """Whether it is still there after the container and its disk are gone."""


_SCHEMES = {
    "s3": _Scheme(
        "gateway.storage.s3",
        "s3://bucket[/prefix] (with its credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)",
        r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}(/.*)?",
        outlives_container=True,
    ),
    "file": _Scheme(
        "gateway.storage.file",
        "file:///absolute/path or file://./relative/path",
        r"(?=.*[^./])\.{0,2}/.*",
        outlives_container=False,
    ),
}

URL_FORMS = ", ".join(scheme.form for scheme in _SCHEMES.values())


def is_store_url(url: str) -> bool:
    """Whether `url` is one of `URL_FORMS`. It says nothing about whether the store can be reached."""
    return _parsed(url) is not None


def outlives_container(url: str) -> bool:
    """Whether the store at `url` is still there after the container and its disk are gone."""
    parsed = _parsed(url)
    return parsed is not None and parsed[0].outlives_container


def open_storage(url: str, *, addressing: Addressing = "auto") -> Storage:
    """Return the store at `url`, which has one of `URL_FORMS`.

    Paths are taken as they are written, without percent-escapes. `addressing` is for S3, see `S3Storage`.
    Nothing is connected to yet: whether the store can be reached shows with the first call. Raises ConfigError
    if `url` cannot be the URL of a store.
    """
    parsed = _parsed(url)
    if parsed is None:
        # What stands before an "@" may be a password.
        shown = repr(url) if "@" not in url else "a URL with '@'"
        raise ConfigError(f"GATEWAY_STORE: {shown} is not the URL of a store", f"use {URL_FORMS}")
    scheme, location = parsed
    open_url: OpenUrl = import_module(scheme.module).open_url
    try:
        return open_url(location, addressing=addressing)
    except InvalidRequest as error:
        raise ConfigError(f"GATEWAY_STORE: {error.message}", f"use {URL_FORMS}") from None


def _parsed(url: str) -> tuple[_Scheme, str] | None:
    """The scheme of `url` and what stands after "://"; None if it is not the URL of a store."""
    name, separator, location = url.partition("://")
    scheme = _SCHEMES.get(name) if separator else None
    return (scheme, location) if scheme and re.fullmatch(scheme.location, location, re.DOTALL) else None
