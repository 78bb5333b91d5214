"""docs/results.md has the tables of the files in docs/results, which sweeps wrote."""

from pathlib import Path

import pytest

from experiments.sweep.document import read_lines
from experiments.sweep.table import markdown

DOCS = Path(__file__).parents[1] / "docs"
FILES = sorted((DOCS / "results").glob("*.csv"))


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_table_of_the_document_is_that_of_its_file(file):
    lines = read_lines(file)
    assert lines and all(line.error is not None for line in lines)
    assert markdown(lines) in (DOCS / "results.md").read_text()
