"""From `GATEWAY_STORE` to a store."""

from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.storage import FileStorage, S3Storage, open_storage


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
def test_a_url_names_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, expected: str) -> None:
    """Every documented form opens the store it names; relative ones are made absolute here and now."""
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
def test_anything_else_is_refused(url: str) -> None:
    """What is not exactly one of the forms stops the start with a message naming GATEWAY_STORE."""
    with pytest.raises(ConfigError, match=r"^GATEWAY_STORE: "):
        open_storage(url)


def test_the_hint_says_what_is_accepted() -> None:
    """Whoever got it wrong reads the accepted forms."""
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
