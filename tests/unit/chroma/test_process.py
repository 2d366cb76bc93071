"""The configuration of Chroma: an operator's settings below what the gateway must set."""

from pathlib import Path
from typing import Any

import pytest

from gateway.chroma.process import CHROMAS_MAX_PAYLOAD_BYTES, merged_config, read_config
from gateway.errors import ConfigError

DATA = Path("/data")


def test_an_operators_settings_are_passed_on(tmp_path: Path) -> None:
    """Also those that the gateway does not know. What it must set stays."""
    file = tmp_path / "chroma.yaml"
    file.write_text("cors_allow_origins: ['https://app.example.com']\nopen_telemetry:\n  service_name: mine\nnew: 1\n")
    config = merged_config(DATA, 8001, operators=read_config(file))
    assert config["cors_allow_origins"] == ["https://app.example.com"]
    assert config["open_telemetry"] == {"service_name": "mine"}
    assert (config["new"], config["port"], config["persist_path"]) == (1, 8001, "/data")
    assert merged_config(DATA, 8001, operators={"stdout_tracing": False})["stdout_tracing"] is False


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"port": 8002}, "port"),
        ({"listen_address": "0.0.0.0"}, "listen_address"),
        ({"persist_path": "/elsewhere"}, "persist_path"),
        ({"allow_reset": True}, "allow_reset"),
        ({"sqlite_filename": "other.sqlite3"}, "sqlite_filename"),
        ({"sqlitedb": {"url": "/elsewhere"}}, "sqlitedb.url"),
        ({"segment_manager": {"persist_path": "/elsewhere"}}, "segment_manager.persist_path"),
        ({"max_payload_size_bytes": 50 << 20}, "max_payload_size_bytes"),
    ],
)
def test_a_contradiction_is_named(given: dict[str, Any], named: str) -> None:
    """It stops the start instead of being overruled."""
    with pytest.raises(ConfigError, match=f"GATEWAY_CHROMA_CONFIG sets {named} to"):
        merged_config(DATA, 8001, max_payload_bytes=60 << 20, operators=given)


def test_what_says_the_same_is_no_contradiction() -> None:
    """As in a file that was in use without the gateway."""
    same = {"port": 8001, "listen_address": "127.0.0.1", "persist_path": "/data", "allow_reset": False}
    assert merged_config(DATA, 8001, operators=same).items() >= same.items()


@pytest.mark.parametrize(
    ("wanted", "given", "passed"),
    [
        (CHROMAS_MAX_PAYLOAD_BYTES, {}, None),
        (1 << 20, {}, None),
        (60 << 20, {}, 60 << 20),
        (60 << 20, {"max_payload_size_bytes": 80 << 20}, 80 << 20),
        (1 << 20, {"max_payload_size_bytes": 80 << 20}, 80 << 20),
    ],
)
def test_chroma_takes_what_the_gateway_lets_through(wanted: int, given: dict[str, Any], passed: int | None) -> None:
    """Its own limit stays where that is enough."""
    config = merged_config(DATA, 8001, max_payload_bytes=wanted, operators=given)
    assert config.get("max_payload_size_bytes") == passed


@pytest.mark.parametrize("text", ["- a\n- list\n", "not: [closed", "just text"])
def test_a_file_that_is_no_mapping_stops_the_start(tmp_path: Path, text: str) -> None:
    """The message names the setting and the file."""
    file = tmp_path / "chroma.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"GATEWAY_CHROMA_CONFIG: {file}"):
        read_config(file)


def test_a_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    """An empty one does not."""
    with pytest.raises(ConfigError, match="No such file"):
        read_config(tmp_path / "missing.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert read_config(tmp_path / "empty.yaml") == {}
