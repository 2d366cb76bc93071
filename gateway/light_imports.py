"""Imports without what they import for nothing, and without the search for garbage in them."""

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def kept_for_good() -> Iterator[None]:
    """What is imported in the block is never looked through for garbage: neither now nor later.

    That would take a tenth of the time of the imports, again and again, and delay requests later.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def without_rich(*modules: str) -> None:
    """Import `modules` as if neither rich nor pygments were installed. Call this before anything else imports them.

    structlog draws tracebacks with these, and httpx a command line, which nobody here sees. They are more than half of
    the time that both take.
    """
    hidden = {"rich", "pygments"} - set(sys.modules)
    # Importing them raises ImportError, which both expect.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        for name in hidden:
            del sys.modules[name]
