"""`key new` prints an entry of a keys file that the gateway takes."""

import pytest
from typer.testing import CliRunner

from gateway.auth.ack import Ack
from gateway.auth.keys import parse_keys
from gateway.cli.keys import keys
from gateway.errors import ConfigError


@pytest.mark.parametrize("level", ["stored", "local"])
def test_a_key_may_have_an_acknowledgement_level(level: str) -> None:
    made = CliRunner().invoke(keys, ["new", "crawler", "--role", "writer", "--ack", level])
    assert made.exit_code == 0
    (key,) = parse_keys(made.stdout, "the file")
    assert (key.name, key.ack) == ("crawler", Ack(level))
    assert CliRunner().invoke(keys, ["new", "crawler"]).stdout.count("ack") == 0


def test_a_level_that_does_not_exist_makes_no_key() -> None:
    made = CliRunner().invoke(keys, ["new", "crawler", "--ack", "soon"])
    assert isinstance(made.exception, ConfigError)
    assert "keys.0.ack" in made.exception.message
    assert made.stdout == ""
