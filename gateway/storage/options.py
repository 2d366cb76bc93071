"""What an operator can set about the requests to a store; `gateway.config` reads it from the environment."""

from dataclasses import dataclass, field
from typing import Literal

Addressing = Literal["auto", "path", "virtual"]
Encryption = Literal["AES256", "aws:kms", "aws:kms:dsse"]
# Not the canned ACLs that let strangers read: the objects are every vector and document of a user.
Acl = Literal["private", "bucket-owner-read", "bucket-owner-full-control"]
RequestPayer = Literal["requester"]


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """A kind of store uses what it knows and ignores the rest. Today all of it is for S3.

    The options are those of S3's API (https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html).
    """

    addressing: Addressing = "auto"
    """Where a request names the bucket: in the path, in the host name ("virtual"), or ("auto") in the path if an
    endpoint is configured and else in the host name."""
    encryption: Encryption | None = None
    """With which of its own keys the server encrypts: S3's ("AES256") or one of KMS."""
    kms_key_id: str | None = None
    """The id, ARN or alias of the KMS key; None is the one of the bucket or of AWS."""
    customer_key: bytes | None = field(default=None, repr=False)
    """32 bytes with which the server encrypts (SSE-C). It does not keep them: without them nothing can be read."""
    acl: Acl | None = None
    storage_class: str | None = None
    request_payer: RequestPayer | None = None
    page_keys: int | None = None
    """The most keys that one answer to a list may have; None is as many as the server gives, 1,000 at S3."""


DEFAULT_OPTIONS = StoreOptions()
