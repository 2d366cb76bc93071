"""Tests of gateway.chroma.native."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.chroma import native


@pytest.mark.parametrize(
    ("configured", "environment", "filter_of_events"),
    [
        ({}, {}, native._QUIET),
        ({"open_telemetry": None}, {}, native._QUIET),
        ({"open_telemetry": {"service_name": "mine"}}, {}, None),
        ({}, {"RUST_LOG": "error,chroma=trace"}, "error,chroma=trace"),
    ],
)
def test_chroma_writes_what_is_wrong_unless_it_is_asked_for_more(
    configured: dict[str, Any],
    environment: dict[str, str],
    filter_of_events: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its traces need the events that it would not write."""
    config = tmp_path / "chroma.yaml"
    config.write_text(json.dumps({"persist_path": str(tmp_path), **configured}))
    seen: list[object] = []

    def cli(arguments: list[str]) -> None:
        seen.extend((arguments, os.environ.get("RUST_LOG")))

    monkeypatch.setitem(sys.modules, "chromadb_rust_bindings", SimpleNamespace(cli=cli))
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    with pytest.raises(SystemExit):
        native.main(config)
    assert seen == [["chroma", "run", str(config)], filter_of_events]
