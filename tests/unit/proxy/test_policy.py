"""The door: what is left of those who were there."""

import gc

from gateway.proxy import policy
from gateway.proxy.policy import RequestPolicy

PATH = b"/api/v2/reset"


def test_nothing_is_left_of_who_is_refused() -> None:
    """However many come with heads that differ: an error that is raised again and again keeps every one of them."""
    gateway_process = RequestPolicy(max_body_bytes=1000)
    rounds = 2 * policy._REMEMBERED
    for number in range(rounds):
        gateway_process.enter(b"POST %b HTTP/1.1\r\nHost: x\r\nX: %d\r\n\r\n" % (PATH, number))
    gc.collect()
    refusals = [each for each in gc.get_objects() if isinstance(each, policy._ResetDisabled)]
    entries = [each for each in gc.get_objects() if isinstance(each, policy.Decision) and each.head.path == PATH]
    assert len(entries) <= policy._REMEMBERED
    assert len(refusals) <= policy._REMEMBERED
