"""Runs a notebook from top to bottom and stores its outputs: python examples/run_notebook.py examples/quickstart.ipynb

What changes from run to run and means nothing (times, process ids, the kernel's version) is not stored.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs. Raises CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=None).execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            # Warnings of the libraries say where they are installed.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                # A record as text is its every number; the picture says it in less.
                if "text/html" in output.get("data", {}):
                    output.data.pop("text/plain", None)
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def main() -> None:
    for name in sys.argv[1:]:
        nbformat.write(run(Path(name)), name)


if __name__ == "__main__":
    main()
