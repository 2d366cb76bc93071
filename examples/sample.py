"""Writes documents and thirty questions, to try the examples with.

    examples/run sample var/course

The documents are what the modules of Python's standard library say about themselves, one Markdown file a module.
`questions.json`, beside the folder, has each question with the document that answers it.
"""

import importlib
import inspect
import json
import pkgutil
import sys
import warnings
from pathlib import Path

ASKED = {
    "How do I make a temporary directory that is deleted afterwards?": "tempfile",
    "How can I parse command line arguments?": "argparse",
    "How do I copy a whole directory tree?": "shutil",
    "sort a list while inserting with binary search": "bisect",
    "priority queue based on a heap": "heapq",
    "encode binary data as base64 text": "base64",
    "What measures the execution time of small bits of code?": "timeit",
    "generate universally unique identifiers": "uuid",
    "compare sequences and show the differences of two texts": "difflib",
    "read and write comma separated values": "csv",
    "send mail with the simple mail transfer protocol": "smtplib",
    "connect to an FTP server as a client": "ftplib",
    "How do I guess the MIME type of a file?": "mimetypes",
    "wrap paragraphs of text to a given width": "textwrap",
    "pickling and unpickling objects": "pickle",
    "work with rational numbers": "fractions",
    "decimal floating point arithmetic for money": "decimal",
    "mean, median and standard deviation": "statistics",
    "random numbers": "random",
    "secure tokens for passwords": "secrets",
    "gzip compressed files": "gzip",
    "read and write ZIP archives": "zipfile",
    "print data structures prettily": "pprint",
    "a read-eval-print command interpreter framework for line oriented tools": "cmd",
    "schedule events to run later": "sched",
    "match file names with shell patterns": "fnmatch",
    "match against Unix shell wildcards in file lists": "glob",
    "debugger": "pdb",
    "fetch URLs robots may visit": "urllib.robotparser",
    "configuration files with sections": "configparser",
}


def texts() -> dict[str, str]:
    """The documentation strings of the standard library's modules that have anything to say."""
    names = sorted(
        sys.stdlib_module_names - {"this", "antigravity", "idlelib", "turtle", "turtledemo", "tkinter", "test"}
    )
    for package in ("concurrent.futures", "email", "http", "json", "logging", "urllib", "xml.etree", "asyncio"):
        parent = importlib.import_module(package)
        names += [f"{package}.{info.name}" for info in pkgutil.iter_modules(parent.__path__) if "__" not in info.name]
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            try:
                module = importlib.import_module(name)
            except ImportError:  # not of this platform
                continue
            said = [module.__doc__ or ""]
            public = getattr(module, "__all__", [each for each, value in vars(module).items() if callable(value)])
            said += [f"{each}: {inspect.getdoc(getattr(module, each, None))}" for each in public]
            if not name.startswith("_") and len("\n\n".join(said)) > 80:
                found[name] = "\n\n".join(said)[:1500]
    return found


def write(directory: Path) -> dict[str, str]:
    """Write the documents. Return the questions, each with the name of its document."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in texts().items():
        (directory / f"{name}.md").write_text(f"# The module {name}\n\n{text}\n")
    return {question: f"{module}.md" for question, module in ASKED.items()}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: examples/run sample DIRECTORY")
    directory = Path(sys.argv[1])
    questions = write(directory)
    file = directory.with_name("questions.json")
    file.write_text(json.dumps(questions, indent=2) + "\n")
    print(f"{len(list(directory.glob('*.md')))} documents in {directory}, {len(questions)} questions in {file}")


if __name__ == "__main__":
    main()
