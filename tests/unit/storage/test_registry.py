"""From the URL in `GATEWAY_STORE` to a store."""

import subprocess
import sys
from pathlib import Path

import pytest

from gateway import config
from gateway.errors import ConfigError
from gateway.storage import FileStorage, open_storage, registry
from gateway.storage.options import DEFAULT_OPTIONS, StoreOptions
from gateway.storage.s3 import S3Storage

ACCESS_POINT = "arn:aws:s3:eu-west-1:123456789012:accesspoint/vectors"


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
        (f"s3://{ACCESS_POINT}", f"s3://{ACCESS_POINT}/"),
        (f"s3://{ACCESS_POINT}/pre/fix", f"s3://{ACCESS_POINT}/pre/fix/"),
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
        "s3://arn:aws:s3:::bucket/prefix",
        "s3://arn:aws:s3::123456789012:accesspoint/everywhere.mrap",
        "s3://arn:aws:s3-object-lambda:eu-west-1:123456789012:accesspoint/lambda",
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/vectors-of/../other",
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


def granted(url: str, options: StoreOptions = DEFAULT_OPTIONS, *, may_delete: bool = True) -> dict[str, set[str]]:
    """The actions that are needed on each resource."""
    found: dict[str, set[str]] = {}
    for each in registry.grants(url, options, "users/default/", may_delete=may_delete):
        found.setdefault(each.resource, set()).add(each.action)
    return found


def test_the_least_that_s3_must_allow_is_told() -> None:
    """On the bucket, or the access point, and on objects below the prefix; no deletion where none is wanted."""
    objects = {"s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"}
    assert granted("s3://bucket/prefix/") == {
        "arn:aws:s3:::bucket": {"s3:ListBucket"},
        "arn:aws:s3:::bucket/prefix/users/default/*": objects | {"s3:DeleteObject"},
    }
    assert granted(f"s3://{ACCESS_POINT}", may_delete=False) == {
        ACCESS_POINT: {"s3:ListBucket"},
        f"{ACCESS_POINT}/object/users/default/*": objects,
    }


def test_encryption_and_acls_need_more() -> None:
    """The key of KMS is used for writing and for reading."""
    options = StoreOptions(encryption="aws:kms", kms_key_id="alias/vectors", acl="bucket-owner-full-control")
    found = granted("s3://bucket", options)
    assert found["alias/vectors"] == {"kms:GenerateDataKey", "kms:Decrypt"}
    assert "s3:PutObjectAcl" in found["arn:aws:s3:::bucket/users/default/*"]


def test_a_directory_must_be_readable_and_writable(tmp_path: Path) -> None:
    """That is all that it has."""
    assert granted(f"file://{tmp_path}") == {str(tmp_path): {"read", "write"}}


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
