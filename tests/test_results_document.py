"""docs/results.md has the tables of the folders in docs/results, which sweeps wrote, and each has the runs' records."""

import runpy
from pathlib import Path
from statistics import mean

import pytest

from experiments.sweep.document import read_lines
from experiments.sweep.records import RUNS, read_records
from experiments.sweep.table import CSV, markdown
from experiments.sweep.trade_offs import TRADE_OFFS

DOCS = Path(__file__).parents[1] / "docs"
FOLDERS = sorted(file.parent for file in (DOCS / "results").glob(f"*/{CSV}"))
CONTEXTS = {"R0", "E", "R1", "R1E"}


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_a_table_of_the_document_is_that_of_its_folder(folder):
    lines = read_lines(folder / CSV)
    text = (DOCS / "results.md").read_text()
    assert lines and all(line.error is not None for line in lines)
    assert markdown(lines) in text
    assert f"](results/{folder.name}/{TRADE_OFFS})" in text and (folder / TRADE_OFFS).exists()


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_the_errors_of_a_table_are_those_of_its_records(folder):
    records = read_records(folder).values()
    for line in read_lines(folder / CSV):
        errors = [record.test_error for record in records if record.row == line.row]
        assert (len(errors), mean(errors)) == (line.seeds, pytest.approx(line.error))
    for record in records:
        assert record.starts and all(start["commit"] and not start["changed"] for start in record.starts)
    text = (folder / RUNS).read_text()
    assert "/home/" not in text and "/tmp/" not in text


def test_the_picture_of_the_readme_has_the_figures_of_the_documents():
    """Headings, rows and columns are where the program that draws it looks for them."""
    error, memory = runpy.run_path(str(DOCS / "overview.py"))["draw"]().axes
    drawn = {line.get_label(): len(line.get_ydata()) for line in memory.lines if line.get_label() in CONTEXTS}
    assert {one.get_label() for one in error.containers} == drawn.keys() == CONTEXTS and set(drawn.values()) == {4}
    assert len(memory.lines) == 6  # and end to end, twice
