"""Imports without what they import for nothing."""

import importlib
import sys


def without_rich(*modules: str) -> None:
    """Import `modules`, which import rich if it is installed, without it. Call this before anything else does.

    structlog and httpx draw tracebacks and a command line with rich and pygments, which nobody here sees. These take
    more than half of the time of their import.
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
