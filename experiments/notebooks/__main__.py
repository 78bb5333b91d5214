"""Run the notebooks and store their outputs: python -m experiments.notebooks [NAME ...]

The program writes a digest of the code cells to the metadata, so that a test finds outputs that belong to older code.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def main(names: list[str]) -> None:
    for path in [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(FOLDER.parents[1])}}).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times, which differ between executions
        notebook.metadata["code_digest"] = code_digest(notebook)
        nbformat.write(notebook, path)


def code_digest(notebook: Any) -> str:
    """A digest of a notebook's code cells."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


if __name__ == "__main__":
    main(sys.argv[1:])
