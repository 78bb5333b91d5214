"""Runs a notebook and stores its outputs, with a digest of its code."""

import hashlib
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

_ROOT = Path(__file__).parents[2]


def run(path: Path) -> None:
    """Runs all cells, and replaces the outputs in the file."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(_ROOT)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ between executions
    notebook.metadata["code_digest"] = code_digest(notebook)
    nbformat.write(notebook, path)


def code_digest(notebook: Any) -> str:
    """A digest of a notebook's code cells."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]
