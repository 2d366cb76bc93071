"""How long something takes, for tests of how that grows."""

import gc
import time
from collections.abc import Callable


def processor_s(work: Callable[[], object]) -> float:
    """Seconds of the processor, the least of two runs.

    No garbage is collected meanwhile: that would take longer the more other tests have left in memory.
    """
    took = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            since = time.process_time()
            work()
            took.append(time.process_time() - since)
    finally:
        gc.enable()
    return min(took)
