"""From the URL in `GATEWAY_STORE` to a store."""

import subprocess
import sys
from pathlib import Path

import pytest

from gateway import config
from gateway.errors import ConfigError
from gateway.storage import FileStorage, open_storage, registry
from gateway.storage.s3 import S3Storage


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:///srv/store", "file:///srv/store/"),
        ("file:///srv/store/", "file:///srv/store/"),
        ("file:///srv/a b/100%25", "file:///srv/a b/100%25/"),
        ("file://./var/store", "file://{cwd}/var/store/"),
        ("file://../store", "file://{parent}/store/"),
        ("s3://bucket", "s3://bucket/"),
        ("s3://bucket/", "s3://bucket/"),
        ("s3://bucket/pre/fix", "s3://bucket/pre/fix/"),
        ("s3://my.bucket-1/pre/fix/", "s3://my.bucket-1/pre/fix/"),
    ],
)
def test_every_documented_url_opens_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, expected: str
) -> None:
    """Relative paths become absolute when the store is opened."""
    monkeypatch.chdir(tmp_path)
    store = open_storage(url)
    assert isinstance(store, FileStorage if url.startswith("file") else S3Storage)
    assert store.url == expected.format(cwd=tmp_path, parent=tmp_path.parent)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "bucket",
        "/srv/store",
        "./var/store",
        "file:/srv/store",
        "file://",
        "file:///",
        "file://./",
        "file://srv/store",
        "file://localhost/srv/store",
        "FILE:///srv/store",
        "s3:bucket",
        "s3://",
        "s3:///prefix",
        "s3://-bucket",
        "s3://buck et",
        "s3://bucket:9000/prefix",
        "s3://bucket/a//b",
        "s3://bucket/../other",
        "gs://bucket",
        "https://bucket.s3.amazonaws.com",
    ],
)
def test_any_other_url_is_refused(url: str) -> None:
    """The start ends with a message that names GATEWAY_STORE."""
    with pytest.raises(ConfigError, match=r"^GATEWAY_STORE: "):
        open_storage(url)


def test_the_configuration_names_no_scheme() -> None:
    """Adding a kind of store needs no change of `gateway.config`."""
    source = Path(config.__file__).read_text()
    assert [f"{name}:" for name in registry._SCHEMES if f"{name}:/" in source] == []


def test_the_sdk_of_s3_is_imported_only_for_a_store_in_s3() -> None:
    """It takes most of a second, which the start with another store does not spend."""
    code = "import sys, gateway.config, gateway.storage; gateway.storage.open_storage('file:///srv/store')"
    check = f"{code}; sys.exit('aioboto3' in sys.modules or 'botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_hint_names_the_accepted_forms() -> None:
    """And the message shows the URL that was given."""
    with pytest.raises(ConfigError) as caught:
        open_storage("gs://bucket")
    for form in ("s3://bucket[/prefix]", "file:///absolute/path", "file://./relative/path"):
        assert form in (caught.value.hint or "")
    assert "gs://bucket" in caught.value.message


def test_a_password_in_the_url_is_not_shown() -> None:
    """Credentials put into the URL by mistake do not end up in a log."""
    with pytest.raises(ConfigError) as caught:
        open_storage("s3://AKIA:hush@bucket/prefix")
    assert "hush" not in str(caught.value)
    assert "AWS_SECRET_ACCESS_KEY" in str(caught.value)
