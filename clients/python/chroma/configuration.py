"""The settings: where the server is, and how to get there."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from re import fullmatch
from typing import Any

from chroma.errors import ConfigurationError

FILE_NAME = "chroma.json"


@dataclass(frozen=True)
class Configuration:
    """The keys of `chroma.json`, and their defaults."""

    api_key: str | None = field(default=None, repr=False)
    """The gateway's key. An open gateway, and Chroma itself, need none."""
    application_id: str = "default"
    """The first part of the names of this application's collections."""
    chroma_url: str = "http://127.0.0.1:8000"
    """Where the gateway, or Chroma itself, is."""
    http_proxy: str | None = None
    """The URL of a proxy to go through. Without it, the usual variables of the environment hold."""


def load_configuration(
    chroma_config: str | PathLike[str] | Mapping[str, Any] | None = None,
    chroma_json: str | Mapping[str, Any] | None = None,
    **arguments: str | None,
) -> Configuration:
    """Settings from four sources. Each goes before the ones above it, key by key.

    1. the file `chroma.json` in the working directory, if there is one
    2. `chroma_config`, the path of such a file, or its content as a dict
    3. `chroma_json`, the same content as JSON text or as a dict
    4. `arguments`: `api_key`, `application_id`, `chroma_url`, `http_proxy`; None is left out

    Raises ConfigurationError.
    """
    settings: dict[str, str] = {}
    here = Path(FILE_NAME)
    if here.exists():
        settings |= _checked(_parse(_read(here), FILE_NAME), FILE_NAME)
    if isinstance(chroma_config, Mapping):
        settings |= _checked(chroma_config, "chroma_config")
    elif chroma_config is not None:
        settings |= _checked(_parse(_read(Path(chroma_config)), str(chroma_config)), str(chroma_config))
    if isinstance(chroma_json, str):
        settings |= _checked(_parse(chroma_json, "chroma_json"), "chroma_json")
    elif chroma_json is not None:
        settings |= _checked(chroma_json, "chroma_json")
    settings |= _checked({name: value for name, value in arguments.items() if value is not None}, "the arguments")
    return Configuration(**settings)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}") from error


def _parse(text: str, source: str) -> Mapping[str, Any]:
    try:
        parsed = json.loads(text)
    except ValueError as error:
        hint = "; the path of a file goes into chroma_config" if source == "chroma_json" else ""
        raise ConfigurationError(f"{source} is not JSON: {error}{hint}") from error
    if not isinstance(parsed, dict):
        raise ConfigurationError(f"{source} is not a JSON object")
    return parsed


def _checked(settings: Mapping[str, Any], source: str) -> dict[str, str]:
    known = [each.name for each in fields(Configuration)]
    checked = {}
    for name, value in settings.items():
        if name not in known:
            nearest = get_close_matches(str(name), known, n=1, cutoff=0)[0]
            raise ConfigurationError(f"unknown key {name!r} in {source}; the nearest is {nearest!r}")
        if value is None:
            continue
        if not isinstance(value, str) or not value:
            raise ConfigurationError(f"{name!r} in {source} is not a text")
        checked[name] = value
    if not fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", checked.get("application_id", "a")):
        raise ConfigurationError(
            f"'application_id' in {source} has other characters than letters, digits and ._-, or more than 100"
        )
    for name in ("chroma_url", "http_proxy"):
        if not fullmatch(r"https?://[^/\s]+\S*", checked.get(name, "http://a")):
            raise ConfigurationError(f"{name!r} in {source} is not a URL that begins with http:// or https://")
    return checked
