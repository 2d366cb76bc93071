"""What people are told to do about an error of an S3 store."""

import ssl

import pytest
from botocore.exceptions import EndpointConnectionError, HTTPClientError, SSLError

from gateway.storage.s3_hints import hint_for_refusal, hint_for_transport, misspelling

KMS = "User: arn:aws:iam::1:user/a is not authorized to perform: kms:GenerateDataKey on this resource"
SSE_C = "The object was stored using a form of Server Side Encryption. The correct parameters must be provided"


@pytest.mark.parametrize(
    ("operation", "code", "status", "said", "expected"),
    [
        ("put", "AccessDenied", 403, "no", "GATEWAY_S3_SSE"),
        ("put", "AccessDenied", 403, KMS, "kms:GenerateDataKey"),
        ("put", "KMS.NotFoundException", 400, "no", "GATEWAY_S3_SSE_KMS_KEY_ID"),
        ("put", "AccessControlListNotSupported", 400, "no", "GATEWAY_S3_ACL"),
        ("put", "InvalidStorageClass", 400, "no", "GATEWAY_S3_STORAGE_CLASS"),
        ("get", "InvalidRequest", 400, SSE_C, "GATEWAY_S3_SSE_CUSTOMER_KEY"),
        ("get", "AccessDenied", 403, "no", "s3:ListBucket"),
        ("delete", "AccessDenied", 403, "no", "GATEWAY_STORE_NEVER_DELETE"),
        ("list", "PermanentRedirect", 301, "no", "AWS_REGION"),
        ("list", "Whatever", 400, "no", "AWS_ENDPOINT_URL_S3"),
    ],
)
def test_a_refusal_names_what_to_set_or_allow(operation: str, code: str, status: int, said: str, expected: str) -> None:
    """By the operation, the code and, where these say too little, the message."""
    assert expected in hint_for_refusal(operation, code, status, said)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SSLError(endpoint_url="https://store", error="certificate verify failed"), "SSL_CERT_FILE"),
        (HTTPClientError(error=FileNotFoundError(2, "No such file or directory")), "SSL_CERT_FILE"),
        (HTTPClientError(error=ssl.SSLError("no certificate found")), "SSL_CERT_FILE"),
        (EndpointConnectionError(endpoint_url="https://store"), "AWS_ENDPOINT_URL_S3"),
        (ConnectionResetError(), "AWS_ENDPOINT_URL_S3"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_an_error_of_certificates_names_the_file_with_authorities(error: Exception, expected: str) -> None:
    """Anything else on the way is about the endpoint."""
    assert expected in hint_for_transport(error)


@pytest.mark.parametrize("value", ["", "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPx==", "a'b", "two words", '"'])
def test_what_may_be_a_secret_is_not_called_misspelt(value: str) -> None:
    """MinIO takes any characters."""
    assert misspelling(value, in_one_word=False) is None
