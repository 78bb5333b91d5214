"""The outputs of the committed notebooks are those of their code."""

from pathlib import Path

import nbformat
import pytest

from experiments.notebooks.__main__ import FOLDER
from experiments.notebooks.run import code_digest


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: Path(path).stem)
def test_stored_outputs_belong_to_the_present_code(path):
    notebook = nbformat.read(path, as_version=4)
    way_out = f"run python -m experiments.notebooks {path.stem}"
    assert notebook.metadata.get("code_digest") == code_digest(notebook), way_out
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs), way_out
    assert not any(output.output_type == "error" for output in outputs), way_out
