"""What to do about an error of an S3 store, in the words of the settings."""

import ssl

from botocore.exceptions import BotoCoreError, SSLError

SET_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the container a role"
CHECK_CREDENTIALS = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where they are temporary, AWS_SESSION_TOKEN"
CHECK_REGION = "set AWS_REGION to the region of the bucket"
CHECK_ENDPOINT = "check GATEWAY_STORE, and AWS_ENDPOINT_URL_S3, which must not have the bucket's name in it"
CHECK_SPELLING = "take away spaces, line breaks and quotes at its ends: `printf %s` writes a file without a line break"
BRING_BACK = (
    "bring it back with `aws s3api restore-object`, wait until that has ended, and try again; and let no lifecycle rule"
    " of the bucket move objects of the gateway to Glacier or Deep Archive"
)
_CHECK_AUTHORITIES = "name the PEM file of the certificate authority in AWS_CA_BUNDLE or SSL_CERT_FILE"
_CHECK_CUSTOMER_KEY = "set GATEWAY_S3_SSE_CUSTOMER_KEY to the key with which the objects were stored"

_READS = "allow s3:GetObject and s3:ListBucket: without the second, S3 answers 403 for an object that is missing"
_WRITES = "allow s3:PutObject; where a policy wants encryption or an ACL, set GATEWAY_S3_SSE or GATEWAY_S3_ACL"
_ALLOW = {
    "get": _READS,
    "head": _READS,
    "list": "allow s3:ListBucket",
    "put": _WRITES,
    "copy": f"allow s3:GetObject; {_WRITES}",
    "delete": "allow s3:DeleteObject, or set GATEWAY_STORE_NEVER_DELETE=true",
}

_BY_CODE = {
    "NoSuchBucket": "create it, or correct GATEWAY_STORE",
    "InvalidAccessKeyId": CHECK_CREDENTIALS,
    "SignatureDoesNotMatch": CHECK_CREDENTIALS,
    "ExpiredToken": CHECK_CREDENTIALS,
    "InvalidToken": CHECK_CREDENTIALS,
    "RequestTimeTooSkewed": "set the clock of this machine",
    "AuthorizationHeaderMalformed": CHECK_REGION,
    "AccessControlListNotSupported": "unset GATEWAY_S3_ACL: the bucket has no ACLs",
    "InvalidStorageClass": "correct GATEWAY_S3_STORAGE_CLASS",
}
_BY_STATUS = {301: CHECK_REGION, 307: CHECK_REGION, 401: CHECK_CREDENTIALS}
# So S3 answers to SSE-C with no key, with another key, and with a key for an object that has none.
_ABOUT_CUSTOMER_KEYS = ("form of Server Side Encryption", "correct secret key", "encryption parameters")


def hint_for_refusal(operation: str, code: str, status: int, said: str) -> str:
    """Return what to do about an answer to `operation` that the next try would get too. `said` is its message."""
    if hint := _BY_CODE.get(code):
        return hint
    if code.startswith("KMS.") or "kms:" in said:
        return "allow kms:GenerateDataKey and kms:Decrypt on the key, and check GATEWAY_S3_SSE_KMS_KEY_ID"
    if any(each in said for each in _ABOUT_CUSTOMER_KEYS):
        return _CHECK_CUSTOMER_KEY
    if status == 403:
        return f"{_ALLOW.get(operation, _WRITES)}; `chroma-gateway store check` tries everything"
    return _BY_STATUS.get(status, CHECK_ENDPOINT)


def hint_for_transport(error: BaseException) -> str:
    """Return what to do about an error on the way to the server."""
    cause = error.kwargs.get("error") if isinstance(error, BotoCoreError) else error
    # The file with authorities cannot be read, or the server's certificate is of no authority in it.
    if isinstance(error, SSLError) or isinstance(cause, ssl.SSLError | FileNotFoundError):
        return _CHECK_AUTHORITIES
    return CHECK_ENDPOINT


def misspelling(value: str, *, in_one_word: bool) -> str | None:
    """Return what is wrong with a key or URL that has a space at an end, a line break or quotes round it, else None.

    With `in_one_word`, it may have no space at all.
    """
    if "\n" in value or "\r" in value:
        return "has a line break in it"
    if value != value.strip() or (in_one_word and any(map(str.isspace, value))):
        return "has a space in it"
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return "has quotes round it"
    return None
