"""Keys files and the keyring: `gateway.auth.keys`, `gateway.auth.keyring`."""

import asyncio
import json
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from gateway.auth import keyring
from gateway.auth.ack import Ack
from gateway.auth.keyring import Keyring
from gateway.auth.keys import Key, parse_keys
from gateway.auth.scope import Role
from gateway.auth.tokens import digest_of, id_of, new_token
from gateway.errors import ConfigError, Unauthorized
from tests.documentation import DOCS, blocks
from tests.keys import Keys, entry

TOKEN = new_token()
GOOD = {"name": "crawler", "id": id_of(TOKEN), "hash": digest_of(TOKEN), "role": "writer"}


def parsed(**fields: Any) -> Key:
    (key,) = parse_keys(json.dumps({"keys": [GOOD | fields]}), "keys.json")
    return key


def test_every_field_of_a_key_is_read() -> None:
    """Also the scope, whose patterns match whole names only."""
    key = parsed(
        tenants=["acme"],
        databases=["web-*"],
        collections=["pages-?", "links"],
        expires="2027-01-31T00:00:00Z",
        limits={"requests_per_s": 0.5, "in_flight": 2, "body_bytes": 10, "records": 3},
        ack="stored",
    )
    assert (key.ack, parsed(ack="local").ack, parsed().ack) == (Ack.STORED, Ack.LOCAL, None)
    assert (key.name, key.role) == ("crawler", Role.WRITER)
    assert key.expires_at_s == datetime(2027, 1, 31, tzinfo=UTC).timestamp()
    assert key.limits is not None
    assert (key.limits.requests_per_s, key.limits.in_flight, key.limits.body_bytes, key.limits.records) == (
        0.5,
        2,
        10,
        3,
    )
    assert key.scope.sees("acme", "web-1", "pages-1")
    assert key.scope.sees("acme", "web-", "links")
    for place in (
        *(
            ("acme ", "web-1", "links"),
            ("Acme", "web-1", "links"),
            ("acme", "web", "links"),
            ("acme", "1web-1", "links"),
        ),
        *(
            ("acme", "web-1", "pages-"),
            ("acme", "web-1", "pages-12"),
            ("acme", "web-1", "links\n"),
            ("acme", "web-1", ""),
        ),
    ):
        assert not key.scope.sees(*place), place


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "admin"},
        {"name": "anonymous"},
        {"name": "a\nb"},
        {"name": "x" * 65},
        {"id": "short"},
        {"hash": TOKEN},
        {"hash": "sha256:" + "0" * 63},
        {"hash": "md5:" + "0" * 64},
        {"role": "root"},
        {"role": ["admin"]},
        {"tenants": []},
        {"tenants": "acme"},
        {"tenants": [""]},
        {"collections": [1]},
        {"colections": ["pages-*"]},
        {"expires": "tomorrow"},
        {"expires": "2027-01-31"},
        {"expires": "2027-01-31T00:00:00"},
        {"expires": 5},
        {"ack": "store"},
        {"ack": ""},
        {"limits": {"records": -1}},
        {"limits": {"request_per_s": 1}},
        {"role": "admin", "tenants": ["acme"]},
    ],
)
def test_an_invalid_field_is_named_without_its_value(fields: dict[str, Any]) -> None:
    """The value may be a token in the wrong place."""
    with pytest.raises(ConfigError, match=r"keys\.json is not a list of keys: keys\.0") as raised:
        parsed(**fields)
    assert TOKEN not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "keys",
        "{",
        "[]",
        "{}",
        '{"keys": {}}',
        '{"keys": [], "keys": []}',
        '{"keys": [{"name": "a", "name": "b"}]}',
        "[[keys]]\nname = 'a'\nname = 'b'",
        "\0",
        '{"keys": ' + "[" * 100_000,
        "keys = " + "[" * 100_000,
    ],
)
def test_an_invalid_keys_file_is_a_config_error(text: str) -> None:
    """Whatever the text is."""
    with pytest.raises(ConfigError):
        parse_keys(text, "keys.json")


@given(some.text())
def test_any_text_parses_or_is_a_config_error(text: str) -> None:
    """No other exception is raised."""
    for each in (text, '{"keys": [' + text, "[[keys]]\n" + text):
        try:
            assert isinstance(parse_keys(each, "keys"), list)
        except ConfigError:
            pass


json_values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=20),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    some.dictionaries(
        some.sampled_from([*GOOD, "tenants", "databases", "collections", "expires", "limits"]), json_values
    )
)
def test_any_value_parses_or_is_a_config_error(fields: dict[str, Any]) -> None:
    """In whichever field it is."""
    try:
        parsed(**fields)
    except ConfigError:
        pass


def test_two_keys_with_one_name_or_id_are_an_error() -> None:
    """It would be ambiguous which of them applies."""
    for other in ({"name": "other"}, {"id": "0" * 12}):
        with pytest.raises(ConfigError, match="two keys have the same"):
            parse_keys(json.dumps({"keys": [GOOD, GOOD | other]}), "keys")


def test_the_keyring_finds_the_key_of_a_token(tmp_path: Path) -> None:
    """One of a thousand, and the admin token. Any other token is Unauthorized."""
    keys = Keys(tmp_path / "keys.json")
    keys.add_many(1000)
    token = keys.add("mine", "reader")
    ring = Keyring("an-admin-token", file=keys.path)
    assert ring.find(token).name == "mine"
    assert (ring.find("an-admin-token").role, ring.find("an-admin-token").name) == (Role.ADMIN, "admin")
    other, _ = entry("other", "reader")
    for wrong in (
        other,
        token[:-1],
        token + "x",
        token.upper(),
        f"cgw_{id_of(token)}_" + "x" * 43,
        digest_of(token),
        "",
    ):
        with pytest.raises(Unauthorized):
            ring.find(wrong)


def test_a_name_in_both_the_setting_and_the_file_is_an_error(tmp_path: Path) -> None:
    """It would be ambiguous which of them applies."""
    keys = Keys(tmp_path / "keys.json")
    keys.add("mine", "reader")
    with pytest.raises(ConfigError, match="both have a key of one name"):
        Keyring("an-admin-token", parse_keys(keys.path.read_text(), "GATEWAY_KEYS"), keys.path)


async def test_an_invalid_file_leaves_the_previous_keys_in_force(tmp_path: Path) -> None:
    """A mistake in the file must not let anybody in. The next valid file is loaded."""
    keys = Keys(tmp_path / "keys.json")
    token = keys.add("mine", "reader")
    ring = Keyring("an-admin-token", file=keys.path)
    changes: list[int] = []
    ring.on_change(lambda: changes.append(1))
    good = keys.path.read_text()
    for broken in ("", "nonsense", good[:-5]):
        keys.path.write_text(broken)
        with pytest.raises(ConfigError):
            await ring.reload()
        assert ring.find(token).name == "mine"
    keys.path.unlink()
    with pytest.raises(ConfigError):
        await ring.reload()
    assert not changes
    keys.remove("mine")
    await ring.reload()
    assert changes == [1]
    with pytest.raises(Unauthorized):
        ring.find(token)


async def test_a_file_that_is_being_written_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry without its last lines is valid, too, and has no scope."""
    file, changed = tmp_path / "keys.toml", asyncio.Event()
    file.write_text("keys = []")
    ring = Keyring("an-admin-token", file=file)
    scopes: list[bool] = []

    def record_scopes() -> None:
        scopes.extend(key.scope.everything for key in ring.keys)
        changed.set()

    ring.on_change(record_scopes)
    half = "[[keys]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in GOOD.items())
    stamp, read, looks = keyring._stamp, keyring._read, 0

    def finish() -> None:
        if file.read_text() == half:
            file.write_text(half + 'tenants = ["acme"]\n')

    def slow_stamp(of: Path) -> tuple[int, ...]:
        nonlocal looks
        looks += 1
        if looks == 2:
            finish()
        return stamp(of)

    def slow_read(of: Path) -> list[Key]:
        keys = read(of)
        finish()
        return keys

    monkeypatch.setattr(keyring, "_POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(keyring, "_stamp", slow_stamp)
    file.write_text(half)
    monkeypatch.setattr(keyring, "_read", slow_read)
    running = asyncio.create_task(ring.run())
    try:
        async with asyncio.timeout(10):
            await changed.wait()
    finally:
        running.cancel()
    assert scopes == [False]


def test_the_documented_example_is_a_keys_file() -> None:
    """What people copy works."""
    ((_, example),) = blocks(DOCS / "security.md", "toml")
    (key,) = parse_keys(example, "docs/security.md")
    assert key.scope.sees("acme", "web-1", "pages-1")
    assert tomllib.loads(example)["keys"][0]["role"] == "writer"


def test_tokens_are_random() -> None:
    """A thousand of them all differ, and each has 256 random bits."""
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(len(token.rpartition("_")[2]) >= 43 or "_" in token for token in tokens)
    assert all(id_of(token) is not None for token in tokens)
