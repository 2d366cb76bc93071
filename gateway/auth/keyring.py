"""The keyring: finds the key of a token, and reads the keys file anew when it changes."""

import asyncio
import hmac
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from gateway.auth.keys import ADMIN_NAME, Key, parse_keys
from gateway.auth.scope import Role
from gateway.auth.tokens import digest_of, id_of
from gateway.errors import ConfigError, Unauthorized

log = structlog.get_logger()

_LOOK_EVERY_S = 0.5
_MAX_FILE_BYTES = 16 << 20
# Compared with where there is no key of that id, so that this takes as long.
_NOBODY = "sha256:" + "0" * 64
_HINT = "ask whoever runs this gateway for a key that is valid"


class Keyring:
    """All keys. `find` may be asked from the event loop: it is a hash, a look-up and two comparisons."""

    def __init__(self, admin_token: str, keys: Iterable[Key] = (), file: Path | None = None) -> None:
        """`admin_token` is the token of a key of its own. Raises ConfigError when `file` cannot be used."""
        self._admin = Key(ADMIN_NAME, "", digest_of(admin_token), Role.ADMIN)
        self._fixed = tuple(keys)
        self._file = file
        self._stamp: tuple[int, ...] | None = None
        self._keys: dict[str, Key] = {}
        self._on_change: list[Callable[[], None]] = []
        self.complaint: str | None = None
        """Why the latest keys file is not in force, if it is not."""
        if file is not None:
            self._stamp = _stamp(file)
        self._put(_read(file) if file is not None else [])

    @property
    def keys(self) -> tuple[Key, ...]:
        """All but the admin token's."""
        return tuple(self._keys.values())

    def when_changed(self, call: Callable[[], None]) -> None:
        """Have `call` called after every change."""
        self._on_change.append(call)

    def find(self, token: str) -> Key:
        """The key of `token`. Raises Unauthorized; takes as long whether and which key is close."""
        digest = digest_of(token)
        found = self._keys.get(id_of(token) or "")
        is_admin = hmac.compare_digest(digest, self._admin.digest)
        is_found = hmac.compare_digest(digest, found.digest if found else _NOBODY)
        if is_admin:
            return self._admin
        if found is None or not is_found:
            raise Unauthorized("the key is not known here", _HINT)
        require_valid(found)
        return found

    async def run(self) -> None:
        """Look twice a second whether the file has changed, until cancelled.

        It is read when it has stayed the same for one look: the first half of an entry is an entry, without its scope.
        One that cannot be read or understood changes nothing: the keys of before stay in force, and the log says why.
        """
        if self._file is None:
            return
        seen = self._stamp
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                stamp = await asyncio.to_thread(_stamp, self._file)
                if stamp == seen:
                    await self.look()
                seen = stamp
            except Exception as error:
                if self.complaint != str(error):
                    self.complaint = str(error)
                    log.error("the keys file is not in force, the keys of before are", cause=str(error))

    async def look(self) -> None:
        """Read the file if it has changed. Raises ConfigError."""
        if self._file is None:
            return
        stamp = await asyncio.to_thread(_stamp, self._file)
        if stamp == self._stamp and self.complaint is None:
            return
        keys = await asyncio.to_thread(_read, self._file)
        if await asyncio.to_thread(_stamp, self._file) != stamp:
            return  # somebody is writing it
        self._put(keys)
        self._stamp, self.complaint = stamp, None
        log.info("the keys file was read anew", keys=len(self._keys))

    def _put(self, read: list[Key]) -> None:
        keys = [*self._fixed, *read]
        for what in ("name", "id"):
            values = [getattr(key, what) for key in keys]
            if len(set(values)) < len(values):
                raise ConfigError(f"GATEWAY_KEYS and GATEWAY_KEYS_FILE both have a key of one {what}", "remove one")
        self._keys = {key.id: key for key in keys}
        for call in self._on_change:
            call()


def require_valid(key: Key) -> None:
    """Raise Unauthorized if the key has ended."""
    if key.expires_at_s is not None and time.time() >= key.expires_at_s:
        raise Unauthorized("the key has expired", _HINT)


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        status = file.stat()
    except OSError as error:
        raise ConfigError(f"the keys file {file} cannot be read: {error.strerror}", "see GATEWAY_KEYS_FILE") from error
    # Not by time alone: two changes within one tick of a coarse clock would be one.
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns


def _read(file: Path) -> list[Key]:
    try:
        with file.open("rb") as opened:
            raw = opened.read(_MAX_FILE_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"the keys file {file} cannot be read: {error.strerror}", "see GATEWAY_KEYS_FILE") from error
    except UnicodeDecodeError:
        raise ConfigError(f"the keys file {file} is not UTF-8", "see GATEWAY_KEYS_FILE") from None
    if len(raw) > _MAX_FILE_BYTES:
        raise ConfigError(f"the keys file {file} is longer than {_MAX_FILE_BYTES} bytes", "see GATEWAY_KEYS_FILE")
    return parse_keys(text, str(file))
