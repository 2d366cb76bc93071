"""Leaves out the tests of readers where the libraries that read documents are not installed."""

import importlib.util

collect_ignore = (
    []
    if all(importlib.util.find_spec(name) for name in ("pypdfium2", "python_calamine", "striprtf", "pptx"))
    else ["test_readers.py", "test_split.py", "test_text.py"]
)
