"""The door: what is left of those who were there."""

import gc

from gateway.proxy import door
from gateway.proxy.door import Door

PATH = b"/api/v2/reset"


def test_nothing_is_left_of_who_is_refused() -> None:
    """However many come with heads that differ: an error that is raised again and again keeps every one of them."""
    house = Door(max_body_bytes=1000)
    rounds = 2 * door._REMEMBERED
    for number in range(rounds):
        house.enter(b"POST %b HTTP/1.1\r\nHost: x\r\nX: %d\r\n\r\n" % (PATH, number))
    gc.collect()
    refusals = [each for each in gc.get_objects() if isinstance(each, door._ResetDisabled)]
    entries = [each for each in gc.get_objects() if isinstance(each, door.Entry) and each.head.path == PATH]
    assert len(entries) <= door._REMEMBERED
    assert len(refusals) <= door._REMEMBERED
