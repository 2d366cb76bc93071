"""How the time that something takes grows, for tests."""

import gc
import time
from collections.abc import Callable

_TRIES = 3


def assert_grows_at_most(
    work: Callable[[int], object], small: int, large: int, *, factor: float, least_s: float
) -> None:
    """Assert that `work(large)` takes at most `factor` times the processor time of `work(small)`.

    In one of three tries; a `work(small)` below `least_s` counts as that long.
    """
    for _ in range(_TRIES):
        took = [_processor_s(work, size) for size in (small, large)]
        if took[1] < max(took[0], least_s) * factor:
            return
    raise AssertionError(f"{small}: {took[0]:.3f} s, {large}: {took[1]:.3f} s")


def _processor_s(work: Callable[[int], object], size: int) -> float:
    # No garbage is collected meanwhile: that would take longer the more other tests have left in memory.
    gc.collect()
    gc.disable()
    try:
        since = time.process_time()
        work(size)
        return time.process_time() - since
    finally:
        gc.enable()
