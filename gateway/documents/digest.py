"""What a client says the bytes are that it sends: checked before they are stored."""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping

from gateway.errors import InvalidRequest

# RFC 9530, of which SHA-256 and SHA-512 are what is still recommended.
_CONTENT_DIGEST = re.compile(r"\s*([A-Za-z0-9-]+)\s*=\s*:([A-Za-z0-9+/=]*):\s*")
_ALGORITHMS = {"sha-256": "sha256", "sha-512": "sha512"}


class Expected:
    """The digests that were declared of one upload; none of them is fine too."""

    def __init__(self, declared: Mapping[str, bytes]) -> None:
        """`declared` has the digest's bytes by the algorithm's name in `hashlib`."""
        self._declared = dict(declared)
        self._digests = {name: hashlib.new(name, usedforsecurity=False) for name in declared}

    def update(self, piece: bytes) -> None:
        """Take in the next bytes."""
        for digest in self._digests.values():
            digest.update(piece)

    def check(self) -> None:
        """Raise InvalidRequest unless the bytes so far are what was declared."""
        for name, digest in self._digests.items():
            if digest.digest() != self._declared[name]:
                raise InvalidRequest(
                    f"the bytes that came have the {name} {digest.hexdigest()}, "
                    f"not {self._declared[name].hex()} as was said; nothing was stored",
                    "send it again",
                )


def declared(content_digest: str | None, content_md5: str | None, sha256: str | None) -> Expected:
    """What the headers `Content-Digest` and `Content-MD5` and a digest in hex say. Raises InvalidRequest."""
    found: dict[str, bytes] = {}
    for part in content_digest.split(",") if content_digest else ():
        match = _CONTENT_DIGEST.fullmatch(part)
        if match is None:
            raise InvalidRequest("Content-Digest: cannot be read", "e.g. Content-Digest: sha-256=:base64 of it:")
        if (name := _ALGORITHMS.get(match[1].lower())) is not None:
            found[name] = _decoded(match[2], name)
    if content_digest and not found:
        raise InvalidRequest("Content-Digest: names no digest we know", f"use one of {', '.join(_ALGORITHMS)}")
    if content_md5:
        found["md5"] = _decoded(content_md5, "md5")
    if sha256:
        try:
            said = bytes.fromhex(sha256)
        except ValueError:
            said = b""
        if len(said) != hashlib.sha256().digest_size or found.get("sha256", said) != said:
            raise InvalidRequest("sha256: must be 64 hexadecimal digits, and the same as in Content-Digest")
        found["sha256"] = said
    return Expected(found)


def _decoded(text: str, name: str) -> bytes:
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != hashlib.new(name, usedforsecurity=False).digest_size:
        raise InvalidRequest(f"the {name} that was declared is not one in base64")
    return digest
