"""Imports without what they import for nothing, and without the search for garbage in them."""

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def kept_for_good() -> Iterator[None]:
    """Import in the block without a search for garbage, which takes a tenth of the time of the imports.

    After the block no search looks at the objects that the process has by then: it would delay requests. An error in
    the block leaves them to later searches.
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
