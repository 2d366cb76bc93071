"""Sessions of the console: which key a browser signed in with, and until when.

A *session* stands for the token that it began with. It ends by itself after `LIFETIME_S`. It also ends at a sign-out,
when its key is removed, replaced or expired, and when the process ends. A browser holds only the session's own random
token.

The number is bounded: a key has `MAX_OF_ONE_KEY` sessions, and one more ends its oldest.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from gateway.auth.keys import Key
from gateway.auth.tokens import digest_of, new_session_token

LIFETIME_S = 8 * 3600
MAX_OF_ONE_KEY = 20


class Session(NamedTuple):
    """`key_id` and `key_digest` are those of the key at the sign-in. `ends_at_s` is of a monotonic clock."""

    key_id: str
    key_digest: str
    ends_at_s: float


class Sessions:
    """All sessions of this process, oldest first. Used from the event loop's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_digest: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._by_digest)

    def begin(self, key: Key) -> str:
        """Begin a session of `key`. Return its token, which is kept as a hash only."""
        self._drop_ended()
        of_key = [digest for digest, each in self._by_digest.items() if each.key_id == key.id]
        for digest in of_key[: max(0, len(of_key) - MAX_OF_ONE_KEY + 1)]:
            del self._by_digest[digest]
        token = new_session_token()
        self._by_digest[digest_of(token)] = Session(key.id, key.digest, self._clock() + LIFETIME_S)
        return token

    def find(self, token: str) -> Session | None:
        """The session of `token`; None if there is none, or it has ended.

        It is looked up by its hash, so the time that this takes tells nothing of other tokens.
        """
        session = self._by_digest.get(digest_of(token))
        return session if session is not None and self._clock() < session.ends_at_s else None

    def left_s(self, token: str) -> float:
        """Seconds until the session ends; 0 if it has ended."""
        session = self.find(token)
        return session.ends_at_s - self._clock() if session else 0.0

    def end(self, token: str) -> None:
        """End the session. Does nothing if there is none."""
        self._by_digest.pop(digest_of(token), None)

    def _drop_ended(self) -> None:
        now_s = self._clock()
        # All last equally long, so those that began first end first.
        while self._by_digest:
            oldest = next(iter(self._by_digest))
            if self._by_digest[oldest].ends_at_s > now_s:
                return
            del self._by_digest[oldest]
