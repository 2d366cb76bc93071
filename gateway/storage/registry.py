"""The kinds of stores there are, by the scheme of their URL, and the way from a URL to an open store.

To add a kind:

1. Write a module with a class that keeps the contract in `gateway.storage.protocol`, a function `open_url`, which is
   an `OpenUrl`, and a function `grants`, which is a `Grants`. Add a line to `_SCHEMES`, and the class to the stores in
   tests/contract/conftest.py.
2. Add its SDK to pyproject.toml, run `scripts/lock`, and name its loggers in `gateway.observability.logs`.
3. Name its URLs in the help of `--store` (`gateway.cli.options`) and in docs/configuration.md.
"""

import re
from importlib import import_module
from typing import NamedTuple, Protocol

from gateway.errors import ConfigError, InvalidRequest
from gateway.storage.options import DEFAULT_OPTIONS, StoreOptions
from gateway.storage.protocol import Grant, Storage

DEFAULT_URL = "file://./var/store"


class OpenUrl(Protocol):
    """The function `open_url` of a kind's module."""

    def __call__(self, location: str, options: StoreOptions, /) -> Storage:
        """Return the store at `location`, which is what stands after "://". Connects to nothing yet.

        A kind uses the options that it knows. Raises InvalidRequest if there can be no such store.
        """
        ...


class Grants(Protocol):
    """The function `grants` of a kind's module."""

    def __call__(self, location: str, options: StoreOptions, prefix: str, /) -> list[Grant]:
        """Return the least that must be allowed below `prefix` of the store at `location`, which `open_url` opens."""
        ...


class _Scheme(NamedTuple):
    """One kind of store."""

    module: str
    """Has `open_url` and `grants`. Imported when a store of that kind is opened: S3's SDK takes most of a second."""
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
        # `open_url` says which ARNs can be used.
        r"arn:.+|[A-Za-z0-9][A-Za-z0-9._-]{1,254}(/.*)?",
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


def open_storage(url: str, options: StoreOptions = DEFAULT_OPTIONS) -> Storage:
    """Return the store at `url`, which has one of `URL_FORMS`.

    Paths are taken as they are written, without percent-escapes. Nothing is connected to yet: whether the store can be
    reached shows with the first call. Raises ConfigError if `url` cannot be the URL of a store.
    """
    scheme, location = _known(url)
    open_url: OpenUrl = import_module(scheme.module).open_url
    try:
        return open_url(location, options)
    except InvalidRequest as error:
        raise ConfigError(f"GATEWAY_STORE: {error.message}", f"use {URL_FORMS}") from None


def grants(url: str, options: StoreOptions, prefix: str, *, may_delete: bool) -> list[Grant]:
    """Return the least that a gateway must be allowed to do below `prefix` of the store at `url`. Raises ConfigError.

    The operations are those of the messages of `Storage`: put, get, list, copy, upload, abort and, with `may_delete`,
    delete. One operation may need several actions.
    """
    scheme, location = _known(url)
    needed: Grants = import_module(scheme.module).grants
    return [each for each in needed(location, options, prefix) if may_delete or each.operation != "delete"]


def _known(url: str) -> tuple[_Scheme, str]:
    """The scheme of `url` and what stands after "://". Raises ConfigError if it is not the URL of a store."""
    parsed = _parsed(url)
    if parsed is None:
        # What stands before an "@" may be a password.
        shown = repr(url) if "@" not in url else "a URL with '@'"
        raise ConfigError(f"GATEWAY_STORE: {shown} is not the URL of a store", f"use {URL_FORMS}")
    return parsed


def _parsed(url: str) -> tuple[_Scheme, str] | None:
    """The scheme of `url` and what stands after "://"; None if it is not the URL of a store."""
    name, separator, location = url.partition("://")
    scheme = _SCHEMES.get(name) if separator else None
    return (scheme, location) if scheme and re.fullmatch(scheme.location, location, re.DOTALL) else None
