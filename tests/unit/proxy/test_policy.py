"""The request policy: what it keeps in memory, and whose request it takes a cookie for."""

import gc

import pytest

from gateway.auth.keyring import Keyring
from gateway.auth.tokens import SESSION_COOKIE
from gateway.proxy import policy
from gateway.proxy.policy import RequestPolicy

PATH = b"/api/v2/reset"


def test_refusals_do_not_fill_the_memory() -> None:
    """However many different heads come: an error that is raised again keeps all of its tracebacks."""
    request_policy = RequestPolicy(max_body_bytes=1000)
    heads = 2 * policy._MAX_CACHED
    for number in range(heads):
        request_policy.decide(b"POST %b HTTP/1.1\r\nHost: x\r\nX: %d\r\n\r\n" % (PATH, number))
    gc.collect()
    refusals = [each for each in gc.get_objects() if isinstance(each, policy._ResetDisabled)]
    decisions = [each for each in gc.get_objects() if isinstance(each, policy.Decision) and each.head.path == PATH]
    assert len(decisions) <= policy._MAX_CACHED
    assert len(refusals) <= policy._MAX_CACHED


def test_a_session_ends_on_the_data_path_too() -> None:
    """A decision by cookie is made anew each time, so that it holds no longer than the session."""
    keyring = Keyring("an-admin-token")
    request_policy = RequestPolicy(keyring, anonymous=False, max_body_bytes=1000)
    session, _ = keyring.begin_session("an-admin-token")
    head = b"GET /api/v2/tenants/t HTTP/1.1\r\nHost: x\r\nCookie: %b=%b\r\n\r\n"
    head %= (SESSION_COOKIE.encode(), session.encode())
    decision = request_policy.decide(head)
    assert decision.principal is not None
    assert decision.principal.name == "admin"
    assert session.encode() not in decision.head.upstream, "Chroma gets no key"
    keyring.sessions.end(session)
    assert request_policy.decide(head).principal is None


def test_the_cookie_of_another_pages_request_is_no_key() -> None:
    """The browser adds it to what any page sends."""
    keyring = Keyring("an-admin-token")
    request_policy = RequestPolicy(keyring, anonymous=False, max_body_bytes=1000)
    session, _ = keyring.begin_session("an-admin-token")
    head = b"POST /api/v2/reset HTTP/1.1\r\nHost: x\r\nOrigin: http://y\r\nCookie: %b=%b\r\n\r\n"
    assert request_policy.decide(head % (SESSION_COOKIE.encode(), session.encode())).principal is None


@pytest.mark.parametrize(
    ("host", "refused"),
    [
        *(
            (each, False)
            for each in ("localhost", "localhost:8000", "LocalHost.:8000", "a.localhost", "127.0.0.1:8000")
        ),
        *((each, False) for each in ("127.1.2.3", "[::1]:8000", "192.168.0.7:8000", "host.docker.internal:8000")),
        *((each, True) for each in ("evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "evil", "")),
        *((each, True) for each in ("localhost@evil.example", "notlocalhost", "evil.example:8000, localhost")),
    ],
)
def test_a_page_cannot_use_a_name_of_its_own_for_an_open_gateway(host: str, refused: bool) -> None:
    """DNS rebinding: the page's own name leads to 127.0.0.1. A key, and a probe, may come by any name."""
    request_policy = RequestPolicy(Keyring("an-admin-token"), local_hosts_only=True, max_body_bytes=1000)
    lines = f" HTTP/1.1\r\nHost: {host}\r\n"
    for method, path in (("GET", "/api/v2/tenants/t"), ("POST", "/api/v2/tenants"), ("GET", "/api/v2/auth/identity")):
        decision = request_policy.decide(f"{method} {path}{lines}\r\n".encode())
        assert (decision.refusal is not None) is refused
        assert not decision.pass_through or not refused
        if decision.refusal is not None:
            assert decision.refusal.status == 403
            assert "GATEWAY_ALLOW_ANONYMOUS" in (decision.refusal.hint or "")
        assert request_policy.decide(f"{method} {path}{lines}\r\n".encode()) is decision, "it is cached"
    with_key = f"GET /api/v2/tenants/t{lines}X-Chroma-Token: an-admin-token\r\n\r\n"
    assert request_policy.decide(with_key.encode()).refusal is None
    assert request_policy.decide(f"GET /api/v2/heartbeat{lines}\r\n".encode()).refusal is None
    by_any_name = RequestPolicy(Keyring("an-admin-token"), max_body_bytes=1000)
    assert by_any_name.decide(f"GET /api/v2/tenants/t{lines}\r\n".encode()).refusal is None


def test_a_client_without_a_host_is_no_browser() -> None:
    request_policy = RequestPolicy(Keyring("an-admin-token"), local_hosts_only=True, max_body_bytes=1000)
    assert request_policy.decide(b"GET /api/v2/tenants/t HTTP/1.0\r\n\r\n").refusal is None


@pytest.mark.parametrize(
    ("lines", "refused"),
    [
        ("", False),
        ("Origin: http://localhost:8000\r\n", False),
        ("Origin: http://evil.example\r\n", True),
        ("Origin: http://localhost:3000\r\n", True),
        ("Origin: null\r\n", True),
        ("Origin: https://app.example\r\n", False),
        ("Origin: http://localhost:3000\r\nSec-Fetch-Site: same-origin\r\n", False),
        ("Origin: http://localhost:8000\r\nSec-Fetch-Site: same-site\r\n", True),
        ("Origin: http://evil.example\r\nSec-Fetch-Site: cross-site\r\n", True),
    ],
)
def test_a_page_of_another_origin_changes_nothing(lines: str, refused: bool) -> None:
    """Browsers without `Sec-Fetch-Site` send `Origin` with what may change something."""
    request_policy = RequestPolicy(max_body_bytes=1000, origins=["https://app.example"])
    head = f"POST /api/v2/tenants HTTP/1.1\r\nHost: localhost:8000\r\n{lines}\r\n"
    assert (request_policy.decide(head.encode()).refusal is not None) is refused
    assert request_policy.decide(head.replace("POST", "GET").encode()).refusal is None
