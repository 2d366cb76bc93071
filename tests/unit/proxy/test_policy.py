"""The request policy: what it keeps in memory, and whose request it takes a cookie for."""

import gc

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
