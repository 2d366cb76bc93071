"""Names to keys of the store, and back. Pure.

Every part of a key that comes from a request is checked here first.
"""

import re
import unicodedata
from dataclasses import dataclass

from gateway.errors import InvalidRequest, NotFound

_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
# A document's name has to leave room for the user, the avatar and the store's own prefix.
_MAX_NAME_BYTES = 900
# Characters that XML, in which S3 lists objects, cannot carry, and the replacement of bytes that are not UTF-8.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffd-\uffff]")

FLAGS_FILE = "metadata.json"


@dataclass(frozen=True, slots=True)
class FolderKind:
    """A kind of folder that the layout names. `path` is relative to the avatar.

    `flags` is the path of the folder that holds its flags. `reserved` are the names of the layout's folders inside it.
    """

    path: str
    flags: str | None = None
    reserved: tuple[str, ...] = ()
    read_only: bool = False


VECTORSTORE_DATA = FolderKind("vectorstore_data", flags="vectorstore_metadata")
FOLDER_KINDS = (
    VECTORSTORE_DATA,
    FolderKind("vectorstore_metadata", read_only=True),
    FolderKind("adapters/training_data", flags="adapters/metadata"),
    FolderKind("adapters/metadata", read_only=True),
    FolderKind("adapters", reserved=("training_data", "metadata")),
    FolderKind("media/audio"),
    *(FolderKind(f"media/original/{kind}") for kind in ("video", "text", "audio", "images")),
)
IMAGE = FolderKind("image")


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder of one avatar, or of the user. Its keys begin with `prefix`, which ends with `/`."""

    prefix: str
    kind: FolderKind
    flags_key: str | None = None

    def key(self, name: str) -> str:
        """Return the key of the document `name`. Raises InvalidRequest if `name` is not allowed in this folder."""
        return self.prefix + check_name(name, self.kind)

    def name(self, key: str) -> str | None:
        """Return the name of the document at `key`, or None if `key` is no document of this folder."""
        name = key.removeprefix(self.prefix)
        try:
            return check_name(name, self.kind) if name != key else None
        except InvalidRequest:
            return None


def user_prefix(user_id: str) -> str:
    """Return the prefix of all keys of a user."""
    return f"users/{user_id}/"


def avatars_prefix(user_id: str) -> str:
    """Return the prefix of all avatars of a user."""
    return f"{user_prefix(user_id)}avatars/"


def avatar_prefix(user_id: str, avatar_id: str) -> str:
    """Return the prefix of all keys of an avatar. Raises InvalidRequest if `avatar_id` is not allowed."""
    return f"{avatars_prefix(user_id)}{check_avatar(avatar_id)}/"


def avatar_folder(user_id: str, avatar_id: str, kind: FolderKind) -> Folder:
    """Return an avatar's folder of this kind. Raises InvalidRequest if `avatar_id` is not allowed."""
    prefix = avatar_prefix(user_id, avatar_id)
    return Folder(f"{prefix}{kind.path}/", kind, f"{prefix}{kind.flags}/{FLAGS_FILE}" if kind.flags else None)


def image_folder(user_id: str) -> Folder:
    """Return the folder of the user's own image."""
    return Folder(f"{user_prefix(user_id)}{IMAGE.path}/", IMAGE)


def resolve(path: str) -> tuple[FolderKind, str | None]:
    """Split a path below an avatar into its kind of folder and the document's name.

    The name is None if the path is the folder itself. Raises NotFound if the layout has no such folder.
    """
    for kind in FOLDER_KINDS:  # folders inside others come first
        if path.removesuffix("/") == kind.path:
            return kind, None
        if path.startswith(f"{kind.path}/"):
            return kind, path.removeprefix(f"{kind.path}/")
    raise NotFound(
        f"an avatar has no folder for {path[:80]!r}", f"the folders are {', '.join(kind.path for kind in FOLDER_KINDS)}"
    )


def check_avatar(avatar_id: str) -> str:
    """Return `avatar_id`. Raises InvalidRequest if it is not allowed."""
    if not _ID.fullmatch(avatar_id):
        raise InvalidRequest(
            f"{avatar_id[:80]!r} is not allowed as an avatar's id",
            "use 1 to 128 letters, digits, '.', '_' or '-', with a letter or digit at both ends",
        )
    return avatar_id


def check_name(name: str, kind: FolderKind) -> str:
    """Return `name` unchanged. Raises InvalidRequest if it is not allowed for a document in this kind of folder.

    Names are kept byte for byte: Unicode is not normalised, nothing is cut.
    """
    shown = repr(name[:80]) + ("…" if len(name) > 80 else "")
    if forbidden := _FORBIDDEN.search(name):
        character = unicodedata.name(forbidden[0], f"U+{ord(forbidden[0]):04X}")
        raise InvalidRequest(f"{shown} is not allowed as a name: it contains {character}")
    if "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise InvalidRequest(
            f"{shown} is not allowed as a name", "use no '\\', and between '/' no empty parts, '.' or '..'"
        )
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise InvalidRequest(
            f"{shown} is not allowed as a name: it has {len(name.encode())} bytes, at most {_MAX_NAME_BYTES} fit"
        )
    if name.partition("/")[0] in kind.reserved:
        raise InvalidRequest(f"{shown} is not allowed as a name in {kind.path}: the layout has a folder of that name")
    return name


def collection_name(avatar_id: str) -> str:
    """Return the default name of an avatar's collection. The prefix makes it long enough: Chroma wants 3 characters."""
    return f"avatar-{check_avatar(avatar_id)}"
