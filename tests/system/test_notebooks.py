"""Notebooks run from their first cell to the last. They assert their claims themselves."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("name", "pictures"), [("contsup", 4), ("memory", 2), ("blockkd", 4)])
# The kernel's client leaves its sockets to the garbage collector.
@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs(name, pictures, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("NETWORKS", "resnet8")
    monkeypatch.setenv("BATCH", "32")
    monkeypatch.setenv("NETWORK", "resnet8")
    monkeypatch.setenv("EPOCHS", "4")
    notebook = nbformat.read(ROOT / "experiments" / "notebooks" / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= pictures
