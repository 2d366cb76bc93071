"""Where everything is in the store: names to keys and back. Pure.

Nothing that comes from outside becomes a part of a key before it was looked at here.
"""

import re
import unicodedata
from dataclasses import dataclass

from gateway.errors import InvalidRequest, NotFound

_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
# A document's name has to leave room for the user, the avatar and the store's own prefix.
_MAX_NAME_BYTES = 900
# What XML, in which S3 lists objects, cannot say, and what stands for bytes that were no UTF-8.
_UNSAYABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffd-\uffff]")

FLAGS_FILE = "metadata.json"


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder of the layout. `flags` is the folder that holds its flags; `reserved` are folders inside it."""

    path: str
    flags: str | None = None
    reserved: tuple[str, ...] = ()
    read_only: bool = False


VECTORSTORE_DATA = Folder("vectorstore_data", flags="vectorstore_metadata")
FOLDERS = (
    VECTORSTORE_DATA,
    Folder("vectorstore_metadata", read_only=True),
    Folder("adapters/training_data", flags="adapters/metadata"),
    Folder("adapters/metadata", read_only=True),
    Folder("adapters", reserved=("training_data", "metadata")),
    Folder("media/audio"),
    *(Folder(f"media/original/{kind}") for kind in ("video", "text", "audio", "images")),
)
IMAGE = Folder("image")


@dataclass(frozen=True, slots=True)
class Place:
    """One folder of one avatar, or of the user. `prefix` is of its keys and ends with `/`."""

    prefix: str
    folder: Folder
    flags_key: str | None = None

    def key(self, name: str) -> str:
        """The key of the document `name`. Raises InvalidRequest if that cannot be a name here."""
        return self.prefix + check_name(name, self.folder)

    def name(self, key: str) -> str | None:
        """The name of the document at `key`; None if it is not this folder's: then nobody here may touch it."""
        name = key.removeprefix(self.prefix)
        try:
            return check_name(name, self.folder) if name != key else None
        except InvalidRequest:
            return None


def user_prefix(user_id: str) -> str:
    """The prefix of everything of a user."""
    return f"users/{user_id}/"


def avatars_prefix(user_id: str) -> str:
    """The prefix of all avatars of a user."""
    return f"{user_prefix(user_id)}avatars/"


def avatar_prefix(user_id: str, avatar_id: str) -> str:
    """The prefix of everything of an avatar. Raises InvalidRequest if `avatar_id` cannot be one."""
    return f"{avatars_prefix(user_id)}{check_avatar(avatar_id)}/"


def avatar_place(user_id: str, avatar_id: str, folder: Folder) -> Place:
    """Where a folder of an avatar is."""
    prefix = avatar_prefix(user_id, avatar_id)
    return Place(f"{prefix}{folder.path}/", folder, f"{prefix}{folder.flags}/{FLAGS_FILE}" if folder.flags else None)


def image_place(user_id: str) -> Place:
    """Where the user's own image is."""
    return Place(f"{user_prefix(user_id)}{IMAGE.path}/", IMAGE)


def resolve(path: str) -> tuple[Folder, str | None]:
    """The folder and the document's name that a path below an avatar means; no name for the folder itself.

    Raises NotFound where the layout has no such folder.
    """
    for folder in FOLDERS:  # those inside others come first
        if path.removesuffix("/") == folder.path:
            return folder, None
        if path.startswith(f"{folder.path}/"):
            return folder, path.removeprefix(f"{folder.path}/")
    raise NotFound(
        f"an avatar has no folder for {path[:80]!r}", f"the folders are {', '.join(folder.path for folder in FOLDERS)}"
    )


def check_avatar(avatar_id: str) -> str:
    """Return `avatar_id` if it can be one, else raise InvalidRequest."""
    if not _ID.fullmatch(avatar_id):
        raise InvalidRequest(
            f"{avatar_id[:80]!r} cannot be an avatar's id",
            "use 1 to 128 letters, digits, '.', '_' or '-', with a letter or digit at both ends",
        )
    return avatar_id


def check_name(name: str, folder: Folder) -> str:
    """Return `name` if a document in `folder` can be called so, else raise InvalidRequest.

    What is allowed is kept as it is: no form of Unicode is turned into another, nothing is cut.
    """
    shown = repr(name[:80]) + ("…" if len(name) > 80 else "")
    if unsayable := _UNSAYABLE.search(name):
        character = unicodedata.name(unsayable[0], f"U+{ord(unsayable[0]):04X}")
        raise InvalidRequest(f"{shown} cannot be a name: {character} is not allowed in one")
    if "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise InvalidRequest(
            f"{shown} cannot be a name", "use names without '\\', and between '/' no empty parts, '.' or '..'"
        )
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise InvalidRequest(f"{shown} cannot be a name: it has {len(name.encode())} bytes, {_MAX_NAME_BYTES} fit")
    if name.partition("/")[0] in folder.reserved:
        raise InvalidRequest(f"{shown} cannot be a name in {folder.path}: a folder of its own is called so")
    return name


def collection_name(avatar_id: str) -> str:
    """What an avatar's collection is called, unless the request says otherwise. Chroma wants 3 characters or more."""
    return f"avatar-{check_avatar(avatar_id)}"
