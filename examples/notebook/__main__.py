"""Runs the tour. It writes the notebook with its outputs, and prints the outputs.

examples/run notebook [OUTPUT.ipynb]
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from examples.connection import ROOT

_TIMEOUT_S = 300


def main() -> None:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "var/tour.ipynb"
    notebook = nbformat.read(Path(__file__).with_name("tour.ipynb"), as_version=4)
    try:
        NotebookClient(notebook, timeout=_TIMEOUT_S, kernel_name="python3").execute()
    finally:
        output.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, output)
    for cell in notebook.cells:
        for said in cell.get("outputs", []):
            print(said.get("text", ""), end="")
    print(f"\n{output}")


main()
