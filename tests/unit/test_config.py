"""Settings are what docs/configuration.md says, and a wrong one is named."""

import base64
import re
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import TypeAdapter

from gateway.config import Settings, load_settings, variable_of
from gateway.errors import ConfigError
from gateway.storage import open_storage
from gateway.storage.options import StoreOptions
from tests.documentation import DOCS, rows

ROOT = Path(__file__).parents[2]
# Not an operator's: supervisord sets it.
INTERNAL = {"SUPERVISOR_SERVER_URL"}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None of this machine's own settings, in a directory of our own."""
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_of(field), raising=False)
    monkeypatch.chdir(tmp_path)


def documented() -> dict[str, str]:
    """Name and default, as written, of each row of docs/configuration.md."""
    cells = [row for row in rows(DOCS / "configuration.md") if row[0].startswith("`")]
    return {
        name: default.strip("`")
        for names, defaults, _ in cells
        for name, default in zip(
            re.findall(r"`([A-Z0-9_]+)`", names), defaults.split(", ") if "`, `" in names else [defaults], strict=True
        )
    }


# ---------------------------------------------------------------------- what is documented


def test_the_page_lists_exactly_the_settings_there_are() -> None:
    """Each setting has its row, and each row its setting."""
    assert set(documented()) == {variable_of(field) for field in Settings.model_fields} - INTERNAL


def test_the_page_shows_the_defaults() -> None:
    """The table has the defaults that are used. A default that depends on something is described in words."""
    shown = documented()
    plain = {name: default for name, default in shown.items() if " " not in default}
    assert set(shown) - set(plain) == {
        "GATEWAY_ADMIN_TOKEN",
        "GATEWAY_ALLOW_ANONYMOUS",
        "GATEWAY_ALLOW_RESET",
        "GATEWAY_ALERT_URL",
        "GATEWAY_AUDIT_FILE",
        "GATEWAY_CHROMA_CONFIG",
        "GATEWAY_CORS_ORIGINS",
        "GATEWAY_KEYS",
        "GATEWAY_KEYS_FILE",
        "GATEWAY_LOG_FORMAT",
        "GATEWAY_S3_ACL",
        "GATEWAY_S3_REQUEST_PAYER",
        "GATEWAY_S3_SSE",
        "GATEWAY_S3_SSE_CUSTOMER_KEY",
        "GATEWAY_S3_SSE_KMS_KEY_ID",
        "GATEWAY_S3_STORAGE_CLASS",
        "GATEWAY_SNAPSHOT_CRON",
        "GATEWAY_SNAPSHOT_INTERVAL_S",
        "GATEWAY_SNAPSHOT_ON_EXIT",
        "GATEWAY_SNAPSHOT_PING_URL",
        "GATEWAY_TRACES",
        "GATEWAY_TRUSTED_PROXIES",
        "GOOGLE_CLOUD_PROJECT",
    }
    settings = load_settings()
    for name, default in plain.items():
        (field,) = (field for field in Settings.model_fields if variable_of(field) == name)
        value = getattr(settings, field)
        expected = (
            Path(default).absolute() if isinstance(value, Path) else TypeAdapter(type(value)).validate_python(default)
        )
        assert value == expected, name


def test_defaults_are_those_of_the_contract() -> None:
    """Users' scripts rely on them."""
    settings = load_settings()
    assert (settings.host, settings.port, settings.chroma_port) == ("127.0.0.1", 8000, 8001)
    assert settings.data_dir == Path("var/chroma").absolute()
    assert open_storage(settings.store).url == f"file://{Path('var/store').absolute()}/"
    assert settings.repository_prefix == "users/default/vectorstore/"
    assert settings.admin_token is None
    assert settings.restore == "latest"
    assert settings.snapshot_interval_s == 0
    assert settings.gate_timeout_s == 30


@pytest.mark.parametrize(
    ("store", "given", "takes"),
    [
        ("file:///srv/store", None, False),
        ("s3://bucket", None, True),
        ("file:///srv/store", "true", True),
        ("s3://bucket", "false", False),
    ],
)
def test_a_final_snapshot_is_taken_where_the_store_outlives_the_container(
    monkeypatch: pytest.MonkeyPatch, store: str, given: str | None, takes: bool
) -> None:
    """By default; GATEWAY_SNAPSHOT_ON_EXIT overrides it."""
    monkeypatch.setenv("GATEWAY_STORE", store)
    if given:
        monkeypatch.setenv("GATEWAY_SNAPSHOT_ON_EXIT", given)
    assert load_settings().takes_final_snapshot is takes


@pytest.mark.parametrize(
    ("given", "terminal", "json"),
    [(None, True, False), (None, False, True), ("text", False, False), ("json", True, True)],
)
def test_logs_are_text_on_a_terminal_and_json_elsewhere(
    monkeypatch: pytest.MonkeyPatch, given: str | None, terminal: bool, json: bool
) -> None:
    """GATEWAY_LOG_FORMAT overrides it."""
    if given:
        monkeypatch.setenv("GATEWAY_LOG_FORMAT", given)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    assert load_settings().logs_as_json is json


# ---------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("GATEWAY_DATADIR", "GATEWAY_DATA_DIR"),
        ("GATEWAY_SNAPSHOT_INTERVAL", "GATEWAY_SNAPSHOT_INTERVAL_S"),
        ("GATEWAY_STORAGE", "GATEWAY_STORE"),
        ("GATEWAY_PORT", "PORT"),
    ],
)
def test_an_unknown_name_is_reported_with_the_most_similar_one(
    monkeypatch: pytest.MonkeyPatch, wrong: str, meant: str
) -> None:
    """A typing error stops the start."""
    monkeypatch.setenv(wrong, "x")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert caught.value.message == f"{wrong} is not a setting; did you mean {meant}?"
    assert caught.value.exit_code == 2
    assert "docs/configuration.md" in (caught.value.hint or "")


def test_an_unknown_name_like_no_other_is_reported_without_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops the start too."""
    monkeypatch.setenv("GATEWAY_XYZZY", "1")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert caught.value.message == "GATEWAY_XYZZY is not a setting"


def test_variables_without_our_prefix_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only GATEWAY_* names are checked."""
    monkeypatch.setenv("CHROMA_PORT", "x")
    monkeypatch.setenv("MY_GATEWAY_PORT", "x")
    load_settings()


WRONG = {
    "PORT": ["0", "65536", "eighty", "80.5"],
    "GATEWAY_CHROMA_PORT": ["-1", "x", "8000"],
    "GATEWAY_STORE": ["/srv/store", "http://bucket", "s3:bucket", "gs://bucket", "S3://bucket"],
    "GATEWAY_USER_ID": ["..", ".hidden", "a/b", "a\\b", "a b", "ü", "a" * 129, "a\n"],
    "GATEWAY_RESTORE": ["newest", "LATEST", "../x", "20261120T210455Z", "20261120T210455Z-3F9A1C", "latest\n"],
    "GATEWAY_SNAPSHOT_INTERVAL_S": ["-1", "-1h", "5x", "1h5", "h", "m5", "nan", "inf"],
    "GATEWAY_SNAPSHOT_CRON": ["hourly", "* * * *", "0 0 30 2 *"],
    "GATEWAY_SNAPSHOT_JITTER_S": ["-1", "nan"],
    "GATEWAY_SNAPSHOT_PING_URL": ["example.org/ping", "file:///etc/passwd"],
    "GATEWAY_ALERT_URL": ["example.org/alert", "file:///etc/passwd"],
    "GATEWAY_ACK": ["store", "STORED", "true"],
    "GATEWAY_SNAPSHOT_ON_EXIT": ["maybe", "2"],
    "GATEWAY_EXIT_BUDGET_S": ["0", "inf"],
    "GATEWAY_KEEP_DAILY": ["-1", "all"],
    "GATEWAY_GC_GRACE_S": ["-1"],
    "GATEWAY_TAKEOVER_TIMEOUT_S": ["-1"],
    "GATEWAY_REQUIRE_FENCING": ["perhaps"],
    "GATEWAY_GATE_TIMEOUT_S": ["0", "-5", "soon", "nan"],
    "GATEWAY_DRAIN_TIMEOUT_S": ["0"],
    "GATEWAY_READ_TIMEOUT_S": ["0"],
    "GATEWAY_RESTORE_RETRY_S": ["-1"],
    "GATEWAY_S3_ADDRESSING": ["dns"],
    "GATEWAY_S3_SSE": ["aes256", "kms"],
    "GATEWAY_S3_SSE_KMS_KEY_ID": ["alias/vectors"],  # without GATEWAY_S3_SSE=aws:kms
    "GATEWAY_S3_SSE_CUSTOMER_KEY": ["short", "c2hvcnQ=", "not base64 not base64 not base64 not base64 "],
    "GATEWAY_S3_ACL": ["public-read", "public-read-write", "authenticated-read"],
    "GATEWAY_S3_STORAGE_CLASS": ["GLACIER", "DEEP_ARCHIVE", "standard", "A B"],
    "GATEWAY_S3_REQUEST_PAYER": ["true"],
    "GATEWAY_LOG_FORMAT": ["xml"],
    "GATEWAY_LOG_LEVEL": ["INFO!", "trace"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """It ends the start with exit code 2; no default takes its place."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{name}: ") as caught:
        load_settings()
    assert caught.value.exit_code == 2


def test_no_write_waits_for_a_journal_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write would be refused."""
    monkeypatch.setenv("GATEWAY_ACK", "stored")
    assert load_settings().ack == "stored"
    monkeypatch.setenv("GATEWAY_JOURNAL_INTERVAL_S", "0")
    with pytest.raises(ConfigError, match=r"^GATEWAY_ACK: .*GATEWAY_JOURNAL_INTERVAL_S"):
        load_settings()


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90", 90),
        ("0.5", 0.5),
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("7d", 604_800),
        ("2w", 1_209_600),
        ("250ms", 0.25),
        (" 5 m ", 300),
    ],
)
def test_a_duration_may_have_a_unit(monkeypatch: pytest.MonkeyPatch, written: str, seconds: float) -> None:
    """As people write it; a number alone is seconds."""
    monkeypatch.setenv("GATEWAY_SNAPSHOT_INTERVAL_S", written)
    assert load_settings().snapshot_interval_s == seconds


def test_every_duration_takes_units() -> None:
    """A setting whose name ends with _S has the one type for it."""
    durations = [field for field in Settings.model_fields if field.endswith("_s") and field != "limit_requests_per_s"]
    assert len(durations) >= 10
    for field in durations:
        info = Settings.model_fields[field]
        assert TypeAdapter(Annotated[float, *info.metadata]).validate_python("1h30m") == 5400, field


def test_every_wrong_setting_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One start is enough to learn of all of them."""
    monkeypatch.setenv("PORT", "0")
    monkeypatch.setenv("GATEWAY_STORE", "x")
    monkeypatch.setenv("GATEWAY_STOR", "x")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    for name in ("PORT: ", "GATEWAY_STORE: ", "GATEWAY_STOR is not a setting"):
        assert name in caught.value.message


def test_a_secret_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the admin token nor a value that was given for another setting by mistake."""
    monkeypatch.setenv("GATEWAY_ADMIN_TOKEN", "s3cret-token")
    monkeypatch.setenv("GATEWAY_LOG_FORMAT", "s3cret-elsewhere")
    monkeypatch.setenv("GATEWAY_STORE", "https://key:s3cret@host/bucket")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert "s3cret" not in str(caught.value)
    monkeypatch.delenv("GATEWAY_LOG_FORMAT")
    monkeypatch.delenv("GATEWAY_STORE")
    assert "s3cret" not in repr(load_settings())


@pytest.mark.parametrize("field", sorted(Settings.model_fields))
def test_an_empty_value_means_the_default(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    """Containers pass `NAME=` for a variable that is not set."""
    default = getattr(load_settings(), field)
    monkeypatch.setenv(variable_of(field), "")
    assert getattr(load_settings(), field) == default


def test_what_is_set_about_requests_to_the_store_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the names of S3's own options. By default nothing is said."""
    assert load_settings().store_options == StoreOptions()
    for name, value in (
        ("ADDRESSING", "path"),
        ("SSE", "aws:kms"),
        ("SSE_KMS_KEY_ID", "alias/vectors"),
        ("ACL", "bucket-owner-full-control"),
        ("STORAGE_CLASS", "STANDARD_IA"),
        ("REQUEST_PAYER", "requester"),
    ):
        monkeypatch.setenv(f"GATEWAY_S3_{name}", value)
    assert load_settings().store_options == StoreOptions(
        addressing="path",
        encryption="aws:kms",
        kms_key_id="alias/vectors",
        acl="bucket-owner-full-control",
        storage_class="STANDARD_IA",
        request_payer="requester",
    )


def test_a_customer_key_is_a_secret_and_excludes_other_encryption(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may end with the line break of a file. No message has it."""
    key = base64.b64encode(bytes(range(32))).decode()
    monkeypatch.setenv("GATEWAY_S3_SSE_CUSTOMER_KEY", f"{key}\n")
    settings = load_settings()
    assert settings.store_options.customer_key == bytes(range(32))
    assert key not in repr(settings)
    assert "customer_key" not in repr(settings.store_options)
    monkeypatch.setenv("GATEWAY_S3_SSE", "AES256")
    with pytest.raises(ConfigError, match=r"^GATEWAY_S3_SSE_CUSTOMER_KEY: .*GATEWAY_S3_SSE") as caught:
        load_settings()
    assert key not in str(caught.value)


def test_a_line_break_after_the_store_is_not_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the last character of a prefix it would be another place."""
    monkeypatch.setenv("GATEWAY_STORE", "s3://bucket/prefix\n")
    assert load_settings().store == "s3://bucket/prefix"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("admin_token", "long-enough"),
        ("snapshot_ping_url", "https://ping.example.com/x"),
        ("alert_url", "https://alert.example.com/x"),
    ],
)
def test_a_line_break_after_a_secret_is_not_a_part_of_it(
    monkeypatch: pytest.MonkeyPatch, field: str, value: str
) -> None:
    """No request could carry it."""
    monkeypatch.setenv(variable_of(field), f"{value}\n")
    assert getattr(load_settings(), field).get_secret_value() == value


def test_settings_are_frozen() -> None:
    """The values read at the start hold until the end."""
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1  # type: ignore[misc]


def test_nothing_but_settings_reads_the_environment() -> None:
    """`gateway.config` is the only reader of GATEWAY_*. Other modules may pass the environment on to a program."""
    readers = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / "gateway").rglob("*.py"))
        for line in path.read_text().splitlines()
        if re.search(r"os\.getenv|os\.environ", line)
    ]
    elsewhere = [each for each in readers if not each.startswith("gateway/config.py")]
    assert [reader for reader in elsewhere if "GATEWAY" in reader or "getenv" in reader] == []


# ---------------------------------------------------------------------- closed by default


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "gateway.example.com"])
def test_no_gateway_listens_beyond_loopback_without_a_key(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """The message says what to set. Each of those settings is enough, and only GATEWAY_ALLOW_ANONYMOUS opens it."""
    monkeypatch.setenv("HOST", host)
    with pytest.raises(ConfigError, match=r"HOST: .*GATEWAY_KEYS_FILE.*GATEWAY_ALLOW_ANONYMOUS=true"):
        load_settings()
    for name, value in (
        ("GATEWAY_KEYS_FILE", "keys.toml"),
        ("GATEWAY_KEYS", '{"keys": []}'),
        ("GATEWAY_ADMIN_TOKEN", "long-enough"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert load_settings().is_closed
    monkeypatch.setenv("GATEWAY_ALLOW_ANONYMOUS", "true")
    assert not load_settings().is_closed


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_loopback_is_open_until_there_are_keys(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """As Chroma is. There the admin token is for /admin/* only."""
    monkeypatch.setenv("HOST", host)
    monkeypatch.setenv("GATEWAY_ADMIN_TOKEN", "long-enough")
    assert not load_settings().is_closed
    monkeypatch.setenv("GATEWAY_KEYS_FILE", "keys.toml")
    assert load_settings().is_closed


@pytest.mark.parametrize(
    "origins", ["*", "https://*.example.com", "https://example.com/", "example.com", "null", "https://a b"]
)
def test_origins_are_exact(monkeypatch: pytest.MonkeyPatch, origins: str) -> None:
    """No pattern is accepted, and none that a browser never sends."""
    monkeypatch.setenv("GATEWAY_CORS_ORIGINS", origins)
    with pytest.raises(ConfigError, match="GATEWAY_CORS_ORIGINS"):
        load_settings()


def test_a_wrong_network_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error must not make the gateway trust a proxy."""
    monkeypatch.setenv("GATEWAY_TRUSTED_PROXIES", "10.0.0.0/8,everyone")
    with pytest.raises(ConfigError, match=r"GATEWAY_TRUSTED_PROXIES.*everyone"):
        load_settings()
