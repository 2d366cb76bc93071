"""Imports without what they import for nothing."""

import importlib
import sys


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
