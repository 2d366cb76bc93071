"""The digests that a client declares for an upload. They are checked before the document is stored."""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping

from gateway.errors import InvalidRequest

# RFC 9530. It recommends SHA-256 and SHA-512 only.
_CONTENT_DIGEST = re.compile(r"\s*([A-Za-z0-9-]+)\s*=\s*:([A-Za-z0-9+/=]*):\s*")
_ALGORITHMS = {"sha-256": "sha256", "sha-512": "sha512"}


class ExpectedDigests:
    """The declared digests of one upload. There may be none."""

    def __init__(self, declared: Mapping[str, bytes]) -> None:
        """`declared` maps the algorithm's name in `hashlib` to the digest's bytes."""
        self._declared = dict(declared)
        self._digests = {name: hashlib.new(name, usedforsecurity=False) for name in declared}

    def update(self, piece: bytes) -> None:
        """Add the next bytes of the upload."""
        for digest in self._digests.values():
            digest.update(piece)

    def check(self) -> None:
        """Raises InvalidRequest unless the bytes have every declared digest."""
        for name, digest in self._digests.items():
            if digest.digest() != self._declared[name]:
                raise InvalidRequest(
                    f"the received bytes have the {name} {digest.hexdigest()}, "
                    f"declared was {self._declared[name].hex()}; nothing was stored",
                    "send it again",
                )


def parse_digests(content_digest: str | None, content_md5: str | None, sha256: str | None) -> ExpectedDigests:
    """Read the headers `Content-Digest` and `Content-MD5`, and `sha256` in hex. Raises InvalidRequest."""
    found: dict[str, bytes] = {}
    for part in content_digest.split(",") if content_digest else ():
        match = _CONTENT_DIGEST.fullmatch(part)
        if match is None:
            raise InvalidRequest("Content-Digest: cannot be parsed", "write Content-Digest: sha-256=:BASE64:")
        if (name := _ALGORITHMS.get(match[1].lower())) is not None:
            found[name] = _decoded(match[2], name)
    if content_digest and not found:
        raise InvalidRequest("Content-Digest: no supported algorithm", f"use one of {', '.join(_ALGORITHMS)}")
    if content_md5:
        found["md5"] = _decoded(content_md5, "md5")
    if sha256:
        try:
            value = bytes.fromhex(sha256)
        except ValueError:
            value = b""
        if len(value) != hashlib.sha256().digest_size or found.get("sha256", value) != value:
            raise InvalidRequest("sha256: must be 64 hexadecimal digits, and the same as in Content-Digest")
        found["sha256"] = value
    return ExpectedDigests(found)


def _decoded(text: str, name: str) -> bytes:
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != hashlib.new(name, usedforsecurity=False).digest_size:
        raise InvalidRequest(f"the declared {name} is not a digest in base64")
    return digest
