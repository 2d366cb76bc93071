"""The keyring: finds the key of a token or of a session, and reloads the keys file when it changes."""

import asyncio
import hmac
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from gateway.auth.keys import ADMIN_NAME, Key, parse_keys
from gateway.auth.scope import Role
from gateway.auth.sessions import Sessions
from gateway.auth.tokens import digest_of, id_of, is_session
from gateway.errors import ConfigError, Unauthorized

log = structlog.get_logger()

_POLL_INTERVAL_S = 0.5
_MAX_FILE_BYTES = 16 << 20
# Stands in for the digest of an unknown key, so that the comparison takes as long as with a known one.
_NO_DIGEST = "sha256:" + "0" * 64
_HINT = "ask the operator of this gateway for a valid key"
_SIGN_IN_HINT = "sign in again at /console"


class Keyring:
    """All keys. `find` is fast enough for the event loop: one hash, one look-up and two comparisons."""

    def __init__(self, admin_token: str, keys: Iterable[Key] = (), file: Path | None = None) -> None:
        """`admin_token` becomes a key with the admin role. Raises ConfigError if `file` cannot be used."""
        self._admin = Key(ADMIN_NAME, "", digest_of(admin_token), Role.ADMIN)
        self.sessions = Sessions()
        self._fixed = tuple(keys)
        self._file = file
        self._stamp: tuple[int, ...] | None = None
        self._keys: dict[str, Key] = {}
        self._on_change: list[Callable[[], None]] = []
        self._error: str | None = None  # why the current file is not in force
        if file is not None:
            self._stamp = _stamp(file)
        self._install(_read(file) if file is not None else [])

    @property
    def keys(self) -> tuple[Key, ...]:
        """All keys without the admin token's."""
        return tuple(self._keys.values())

    def on_change(self, call: Callable[[], None]) -> None:
        """Call `call` after every change of the keys."""
        self._on_change.append(call)

    def find(self, token: str) -> Key:
        """The key of `token`, or the key that a session's token stands for. Raises Unauthorized.

        The time it takes does not depend on how much of a token is right.
        """
        if is_session(token):
            return self._find_by_session(token)
        digest = digest_of(token)
        found = self._keys.get(id_of(token) or "")
        is_admin = hmac.compare_digest(digest, self._admin.digest)
        is_found = hmac.compare_digest(digest, found.digest if found else _NO_DIGEST)
        if is_admin:
            return self._admin
        if found is None or not is_found:
            raise Unauthorized("the key is not known here", _HINT)
        require_valid(found)
        return found

    def begin_session(self, token: str) -> tuple[str, Key]:
        """Begin a session with the key of `token`. Return the session's token, and the key.

        Raises Unauthorized, also for the token of a session: no session outlives its time by a new one.
        """
        if is_session(token):
            raise Unauthorized("a session is no key", _HINT)
        key = self.find(token)
        return self.sessions.begin(key), key

    def _find_by_session(self, token: str) -> Key:
        session = self.sessions.find(token)
        if session is None:
            raise Unauthorized("the session has ended", _SIGN_IN_HINT)
        key = self._admin if session.key_id == self._admin.id else self._keys.get(session.key_id)
        if key is None or key.digest != session.key_digest:
            self.sessions.end(token)
            raise Unauthorized("the key of this session is not known here any more", _SIGN_IN_HINT)
        require_valid(key)
        return key

    async def run(self) -> None:
        """Reload the file when it changes, until cancelled. Polls every `_POLL_INTERVAL_S`.

        A changed file is read once it stayed the same for one interval: the first half of an entry that is being
        written may be a valid entry without its scope. If the file cannot be read or parsed, the previous keys stay in
        force and the log says why.
        """
        if self._file is None:
            return
        seen = self._stamp
        while True:
            await asyncio.sleep(_POLL_INTERVAL_S)
            try:
                stamp = await asyncio.to_thread(_stamp, self._file)
                if stamp == seen:
                    await self.reload()
                seen = stamp
            except Exception as error:
                if self._error != str(error):
                    self._error = str(error)
                    log.error("keys file not loaded, the previous keys stay in force", cause=str(error))

    async def reload(self) -> None:
        """Read the file if it has changed. Raises ConfigError, and then the previous keys stay in force."""
        if self._file is None:
            return
        stamp = await asyncio.to_thread(_stamp, self._file)
        if stamp == self._stamp and self._error is None:
            return
        keys = await asyncio.to_thread(_read, self._file)
        if await asyncio.to_thread(_stamp, self._file) != stamp:
            return  # it changed while it was read
        self._install(keys)
        self._stamp, self._error = stamp, None
        log.info("keys file reloaded", keys=len(self._keys))

    def _install(self, read: list[Key]) -> None:
        keys = [*self._fixed, *read]
        for what in ("name", "id"):
            values = [getattr(key, what) for key in keys]
            if len(set(values)) < len(values):
                raise ConfigError(f"GATEWAY_KEYS and GATEWAY_KEYS_FILE both have a key of one {what}", "remove one")
        self._keys = {key.id: key for key in keys}
        for call in self._on_change:
            call()


def require_valid(key: Key) -> None:
    """Raise Unauthorized if the key has expired."""
    if key.expires_at_s is not None and time.time() >= key.expires_at_s:
        raise Unauthorized("the key has expired", _HINT)


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        status = file.stat()
    except OSError as error:
        raise ConfigError(f"the keys file {file} cannot be read: {error.strerror}", "see GATEWAY_KEYS_FILE") from error
    # The time alone is not enough: on a coarse clock two changes can have the same time.
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
