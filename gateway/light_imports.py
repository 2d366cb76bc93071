"""Imports without what they import for nothing."""

import importlib
import sys


def without_rich(*modules: str) -> None:
    """Import `modules`, which import rich if it is installed, without it. Call this before anything else does.

    structlog and httpx draw tracebacks and a command line with rich, which nobody here sees. It takes half of the time
    of their import.
    """
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # importing it raises ImportError, which both expect
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        del sys.modules["rich"]
