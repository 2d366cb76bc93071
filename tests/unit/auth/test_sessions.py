"""Sessions of the console: a cookie stands for a key, of our own pages only, and not for ever."""

from pathlib import Path

import pytest

from gateway.auth.keyring import Keyring
from gateway.auth.keys import parse_keys
from gateway.auth.origins import is_same_origin
from gateway.auth.sessions import LIFETIME_S, MAX_OF_ONE_KEY, Sessions
from gateway.auth.tokens import SESSION_COOKIE, credentials_in, new_session_token, token_in
from gateway.errors import Unauthorized
from tests.keys import Keys


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.json")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keyring(keys: Keys, clock: Clock) -> Keyring:
    keys.add("watcher")
    built = Keyring("an-admin-token", file=keys.path)
    built.sessions = Sessions(clock)
    return built


def test_a_session_stands_for_its_key(keyring: Keyring, keys: Keys) -> None:
    """The admin token's and a key's; the token of the session is another one."""
    for token, name in (("an-admin-token", "admin"), (keys.tokens["watcher"], "watcher")):
        session, key = keyring.begin_session(token)
        assert (key.name, keyring.find(session)) == (name, key)
        assert token not in session


def test_a_session_ends_by_itself(keyring: Keyring, clock: Clock) -> None:
    """At its time, and no use of it moves that."""
    session, _ = keyring.begin_session("an-admin-token")
    clock.now_s += LIFETIME_S - 1
    keyring.find(session)
    assert keyring.sessions.left_s(session) == 1
    clock.now_s += 1
    with pytest.raises(Unauthorized, match="has ended"):
        keyring.find(session)
    keyring.begin_session("an-admin-token")
    assert len(keyring.sessions) == 1, "an ended one is forgotten"


def test_no_session_begins_with_a_session(keyring: Keyring) -> None:
    """It would last for ever, by a new one before its end."""
    session, _ = keyring.begin_session("an-admin-token")
    with pytest.raises(Unauthorized):
        keyring.begin_session(session)


def test_a_session_ends_at_a_sign_out(keyring: Keyring) -> None:
    """At once, and the others of the key go on."""
    first, second = (keyring.begin_session("an-admin-token")[0] for _ in range(2))
    keyring.sessions.end(first)
    with pytest.raises(Unauthorized):
        keyring.find(first)
    keyring.find(second)


@pytest.mark.parametrize("change", ["removed", "replaced", "expired"])
async def test_a_session_ends_with_its_key(keyring: Keyring, keys: Keys, change: str) -> None:
    """When the key is removed from the file, gets another token, or expires."""
    session, key = keyring.begin_session(keys.tokens["watcher"])
    if change == "replaced":
        entries = [{"name": "watcher", "id": key.id, "hash": f"sha256:{'a' * 64}", "role": "reader"}]
        keyring._install(parse_keys(str({"keys": entries}).replace("'", '"'), "test"))
    else:
        keys.remove("watcher")
        if change == "expired":
            keyring._install([key._replace(expires_at_s=1.0)])
        else:
            await keyring.reload()
    with pytest.raises(Unauthorized):
        keyring.find(session)


def test_the_sessions_of_a_key_are_bounded(keyring: Keyring, keys: Keys) -> None:
    """One more ends the oldest of the same key, and none of another."""
    other, _ = keyring.begin_session("an-admin-token")
    sessions = [keyring.begin_session(keys.tokens["watcher"])[0] for _ in range(MAX_OF_ONE_KEY + 1)]
    with pytest.raises(Unauthorized):
        keyring.find(sessions[0])
    for each in (other, *sessions[1:]):
        keyring.find(each)


SESSION = new_session_token()
COOKIE = (b"cookie", f"theme=dark; {SESSION_COOKIE}={SESSION}; a=b".encode())
HOST = (b"host", b"chroma.example.com")


@pytest.mark.parametrize(
    ("method", "headers", "counts"),
    [
        (b"GET", [(b"sec-fetch-site", b"same-origin")], True),
        (b"POST", [(b"sec-fetch-site", b"same-origin")], True),
        (b"POST", [(b"sec-fetch-site", b"same-origin"), (b"origin", b"https://another.example.com")], True),
        (b"GET", [(b"sec-fetch-site", b"cross-site")], False),
        (b"GET", [(b"sec-fetch-site", b"same-site")], False),
        (b"GET", [(b"sec-fetch-site", b"none")], False),
        (b"POST", [(b"sec-fetch-site", b"same-site"), (b"origin", b"https://chroma.example.com")], False),
        (b"GET", [], True),
        (b"HEAD", [], True),
        (b"POST", [], False),
        (b"DELETE", [], False),
        (b"POST", [(b"origin", b"http://chroma.example.com")], True),
        (b"POST", [(b"origin", b"https://Chroma.Example.com")], True),
        (b"GET", [(b"origin", b"https://another.example.com")], False),
        (b"POST", [(b"origin", b"https://chroma.example.com.evil.com")], False),
        (b"POST", [(b"origin", b"https://chroma.example.com:8443")], False),
        (b"POST", [(b"origin", b"null")], False),
        (b"POST", [(b"origin", b"")], False),
    ],
)
def test_a_cookie_counts_for_our_own_pages_only(
    method: bytes, headers: list[tuple[bytes, bytes]], counts: bool
) -> None:
    """As the browser says it: by Sec-Fetch-Site, and where that is missing by Origin. A change needs one of them."""
    all_headers = [HOST, COOKIE, *headers]
    assert is_same_origin(method, all_headers) is counts
    assert token_in(credentials_in(method, all_headers)) == (SESSION if counts else None)


OTHER = new_session_token()


@pytest.mark.parametrize(
    ("cookies", "counts"),
    [
        ([f"__Host-{SESSION_COOKIE}={SESSION}"], True),
        ([f"{SESSION_COOKIE}={OTHER}; __Host-{SESSION_COOKIE}={SESSION}"], True),
        ([f"__Host-{SESSION_COOKIE}={SESSION}", f"{SESSION_COOKIE}={OTHER}"], True),
        ([f"{SESSION_COOKIE}={SESSION}; {SESSION_COOKIE}={OTHER}"], False),
        ([f"{SESSION_COOKIE}={OTHER}", f"{SESSION_COOKIE}={SESSION}"], False),
        ([f"__Host-{SESSION_COOKIE}={OTHER}; a=b; __Host-{SESSION_COOKIE}={SESSION}"], False),
    ],
)
def test_no_other_server_of_the_domain_chooses_the_session(cookies: list[str], counts: bool) -> None:
    """It can add a cookie to the browser's, and cannot let it begin with `__Host-`."""
    headers = [HOST, *((b"cookie", each.encode()) for each in cookies)]
    assert token_in(credentials_in(b"GET", headers)) == (SESSION if counts else None)


def test_without_a_host_nothing_is_of_the_same_origin() -> None:
    """HTTP/1.0 has none: two empty names are not the same name."""
    assert not is_same_origin(b"POST", [(b"origin", b"null")])


def test_a_header_goes_before_the_cookie() -> None:
    """A client that sends a key of its own gets what that key may."""
    same = (b"sec-fetch-site", b"same-origin")
    for header in ((b"authorization", b"Bearer own"), (b"x-chroma-token", b"own")):
        assert token_in(credentials_in(b"GET", [COOKIE, same, header])) == "own"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"theme=dark",
        f"{SESSION_COOKIE}=short".encode(),
        f"x{SESSION_COOKIE}={SESSION}".encode(),
        f"{SESSION_COOKIE}={SESSION}x".encode(),
        f"{SESSION_COOKIE}=cgw_0123456789ab_{'a' * 43}".encode(),
        b"\xff\xfe=\x80",
    ],
    ids=["none", "another", "short", "another name", "too long", "a key", "no text"],  # not the token, which is random
)
def test_other_cookies_hold_nothing(value: bytes) -> None:
    """They are no credentials, so they do not keep decisions out of the cache either."""
    assert credentials_in(b"GET", [HOST, (b"cookie", value)]) == ()
