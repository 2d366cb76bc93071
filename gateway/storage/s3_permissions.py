"""What S3 must allow a gateway: the actions of IAM, for each operation of a store. Pure."""

from gateway.storage.options import StoreOptions
from gateway.storage.protocol import Grant

# Completing a multipart upload is s3:PutObject too.
_ACTIONS = {
    "get": ("s3:GetObject",),
    "list": ("s3:ListBucket",),
    "put": ("s3:PutObject",),
    "upload": ("s3:PutObject",),
    "abort": ("s3:AbortMultipartUpload",),
    "copy": ("s3:GetObject", "s3:PutObject"),
    "delete": ("s3:DeleteObject",),
}
_WRITES = ("put", "upload", "copy")


def grants_in(bucket: str, prefix: str, options: StoreOptions) -> list[Grant]:
    """Return the least that is needed for objects whose keys begin with `prefix`.

    `bucket` is a name, or the ARN of an access point.
    """
    is_access_point = bucket.startswith("arn:")
    arn = bucket if is_access_point else f"arn:aws:s3:::{bucket}"
    objects = f"{arn}/object/{prefix}*" if is_access_point else f"{arn}/{prefix}*"
    needed = [
        Grant(operation, action, arn if action == "s3:ListBucket" else objects)
        for operation, actions in _ACTIONS.items()
        for action in actions
    ]
    if options.acl:
        needed += [Grant(operation, "s3:PutObjectAcl", objects) for operation in _WRITES]
    if options.encryption in ("aws:kms", "aws:kms:dsse"):
        key = options.kms_key_id or "the KMS key"
        needed += [Grant(operation, "kms:GenerateDataKey", key) for operation in _WRITES]
        # Completing a multipart upload reads its parts.
        needed += [Grant(operation, "kms:Decrypt", key) for operation in ("get", "upload", "copy")]
    return needed
