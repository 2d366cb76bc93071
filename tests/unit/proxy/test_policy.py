"""The request policy: what it keeps in memory."""

import gc

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
