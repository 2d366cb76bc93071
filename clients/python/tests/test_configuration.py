"""Where the settings come from."""

import json
from pathlib import Path
from typing import Any

import pytest

from chroma import ConfigurationError, TrainingSession
from chroma.configuration import load_configuration


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_later_source_goes_before_the_earlier(directory: Path) -> None:
    """chroma.json, chroma_config, chroma_json, arguments; key by key."""
    (directory / "chroma.json").write_text(json.dumps(dict.fromkeys(["api_key", "application_id"], "file")))
    config = {"application_id": "config", "chroma_url": "http://config"}
    given = {"chroma_url": "http://json", "http_proxy": "http://json"}
    loaded = load_configuration(config, given, http_proxy="http://argument")
    assert loaded.api_key == "file"
    assert loaded.application_id == "config"
    assert loaded.chroma_url == "http://json"
    assert loaded.http_proxy == "http://argument"


def test_one_key_in_all_sources(directory: Path) -> None:
    """Without the last source, the one before it holds."""
    (directory / "chroma.json").write_text('{"api_key": "1"}')
    (directory / "other.json").write_text('{"api_key": "2"}')
    assert load_configuration().api_key == "1"
    assert load_configuration("other.json").api_key == "2"
    assert load_configuration("other.json", '{"api_key": "3"}').api_key == "3"
    assert load_configuration("other.json", '{"api_key": "3"}', api_key="4").api_key == "4"


def test_without_any_source_there_are_defaults() -> None:
    """A gateway on this machine."""
    assert load_configuration().chroma_url == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"chroma_json": {"api_kye": "a"}}, "unknown key 'api_kye' in chroma_json; the nearest is 'api_key'"),
        ({"chroma_config": {"url": "a"}}, "unknown key 'url' in chroma_config; the nearest is 'chroma_url'"),
        ({"chroma_json": {"api_key": 1}}, "'api_key' in chroma_json is not a text"),
        ({"chroma_json": "a/path.json"}, "the path of a file goes into chroma_config"),
        ({"chroma_json": "[]"}, "is not a JSON object"),
        ({"chroma_config": "missing.json"}, "cannot read missing.json"),
        ({"chroma_url": "127.0.0.1:8000"}, "is not a URL"),
        ({"http_proxy": "proxy"}, "'http_proxy' in the arguments is not a URL"),
        ({"application_id": "a b"}, "other characters"),
    ],
)
def test_a_mistake_is_named(settings: dict[str, Any], expected: str) -> None:
    """With the key, its source and the nearest key that there is."""
    with pytest.raises(ConfigurationError) as raised:
        load_configuration(**settings)
    assert expected in str(raised.value)


def test_an_unknown_key_of_the_file_is_an_error(directory: Path) -> None:
    """Also when a session is made."""
    (directory / "chroma.json").write_text('{"aplication_id": "a"}')
    with pytest.raises(ConfigurationError, match=r"unknown key 'aplication_id' in chroma\.json.*'application_id'"):
        TrainingSession(embedding_set={"model": "a"})


def test_the_key_is_not_shown() -> None:
    """A configuration in a log has no key."""
    assert "secret" not in repr(load_configuration(api_key="secret"))
