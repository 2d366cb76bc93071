"""Where a command looks for the gateway, and as whom."""

from pathlib import Path

import httpx
import pytest

from gateway.cli.client import base_url, connect, find_token
from gateway.config import Settings
from gateway.errors import ConfigError

LOCAL = "http://127.0.0.1:8000"


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting and no token file of this machine is seen."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOST", "PORT", "GATEWAY_ADMIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("2001:db8::7", "http://[2001:db8::7]:8000"),
        ("192.168.1.7", "http://192.168.1.7:8000"),
        ("localhost", "http://localhost:8000"),
    ],
)
def test_the_url_is_where_the_gateway_can_be_reached(monkeypatch: pytest.MonkeyPatch, host: str, url: str) -> None:
    """A wildcard address becomes loopback, and an IPv6 address has brackets."""
    monkeypatch.setenv("GATEWAY_ALLOW_ANONYMOUS", "true")
    monkeypatch.setenv("HOST", host)
    assert base_url(Settings()) == url
    assert httpx.URL(url).host == url.removeprefix("http://").removesuffix(":8000").strip("[]")


def test_the_port_is_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """PORT is in the URL."""
    monkeypatch.setenv("PORT", "9123")
    assert base_url(Settings()) == "http://127.0.0.1:9123"


def test_a_given_url_wins() -> None:
    """It is taken as it is, with its path and without a slash at the end."""
    assert base_url(Settings(), "https://gateway.example.com/") == "https://gateway.example.com"
    assert base_url(Settings(), "http://[::1]:9000") == "http://[::1]:9000"
    assert base_url(Settings(), "https://example.com/chroma/") == "https://example.com/chroma"


@pytest.mark.parametrize(
    "url", ["localhost:8000", "gateway.example.com", "http://", "ftp://host", "http://:::8000", ""]
)
def test_what_is_no_http_url_is_a_usage_error(url: str) -> None:
    """The message names the option."""
    with pytest.raises(ConfigError, match="--url"):
        base_url(Settings(), url)


def test_the_token_is_the_options_then_the_settings_then_the_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first of the three that is there; None where none is."""
    assert find_token(Settings(), LOCAL) is None
    (tmp_path / "var").mkdir()
    (tmp_path / "var/admin-token").write_text("of-the-file\n")
    assert find_token(Settings(), LOCAL) == "of-the-file"
    monkeypatch.setenv("GATEWAY_ADMIN_TOKEN", "of-the-settings")
    assert find_token(Settings(), LOCAL) == "of-the-settings"
    assert find_token(Settings(), LOCAL, "of-the-option") == "of-the-option"
    (tmp_path / "var/admin-token").write_text("\n")
    monkeypatch.delenv("GATEWAY_ADMIN_TOKEN")
    assert find_token(Settings(), LOCAL) is None


def test_without_a_token_nothing_is_sent() -> None:
    """The error says where one is looked for."""
    with pytest.raises(ConfigError, match=r"GATEWAY_ADMIN_TOKEN.*var/admin-token"):
        connect(None, None)


def in_directory(tmp_path: Path, url: str | None) -> None:
    """A gateway was started here: its token, and where it was served."""
    (tmp_path / "var").mkdir()
    (tmp_path / "var/admin-token").write_text("of-the-file\n")
    if url is not None:
        (tmp_path / "var/url").write_text(f"{url}\n")


def test_the_gateway_of_the_directory_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By what `serve` noted, unless PORT or HOST say otherwise."""
    in_directory(tmp_path, "http://127.0.0.1:8010")
    assert base_url(Settings()) == "http://127.0.0.1:8010"
    monkeypatch.setenv("PORT", "8020")
    assert base_url(Settings()) == "http://127.0.0.1:8020"


@pytest.mark.parametrize(
    ("served", "asked", "sent"),
    [
        ("http://127.0.0.1:8010", "http://127.0.0.1:8010", True),
        ("http://127.0.0.1:8010", "http://localhost:8010", True),
        ("http://127.0.0.1:8010", "http://127.0.0.1:8000", False),
        ("http://127.0.0.1:8010", "https://127.0.0.1:8010", False),
        ("http://127.0.0.1:8010", "http://gateway.example.com:8010", False),
        ("http://10.0.0.7:8000", "http://10.0.0.7:8000", True),
        (None, "http://127.0.0.1:8020", True),
        (None, "https://gateway.example.com", False),
    ],
)
def test_the_token_of_the_directory_is_sent_to_its_gateway_only(
    tmp_path: Path, served: str | None, asked: str, sent: bool
) -> None:
    """Another program may listen at another port, and another host is not ours to tell."""
    in_directory(tmp_path, served)
    assert find_token(Settings(), asked) == ("of-the-file" if sent else None)
    if not sent:
        with pytest.raises(ConfigError, match=r"GATEWAY_ADMIN_TOKEN.*var/admin-token is of another gateway"):
            connect(asked, None)


def test_the_env_file_of_the_service_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As scripts/install-service reads it: a value is text. What the environment has goes before it."""
    environment = {"PORT": "8030"}
    monkeypatch.setattr("os.environ", environment)
    lines = [
        "# settings",
        "PORT=8020",
        "",
        'GATEWAY_ADMIN_TOKEN=a token\'s "text"',
        "no setting",
        "GATEWAY_USER_ID=ada",
    ]
    (tmp_path / ".env").write_text("\n".join(lines))
    with connect(None, None) as gateway:
        assert gateway.url == "http://127.0.0.1:8030"
    assert environment == {"PORT": "8030", "GATEWAY_ADMIN_TOKEN": 'a token\'s "text"', "GATEWAY_USER_ID": "ada"}
