"""Tables of results for the terminal, and flags with several numbers."""

import pytest
from rich.console import Console

from experiments.command_line import numbers
from experiments.tables import summary_table, terminal_table


def printed(table) -> list[str]:
    console = Console(width=80, record=True, quiet=False)
    with console.capture() as capture:
        console.print(table)
    return [line.split() for line in capture.get().splitlines()]


def test_a_table_has_a_line_for_each_row():
    lines = printed(terminal_table({"name": ["a", "b"], "size": ["1.0", ""]}, title="sizes", left=("name",)))
    assert ["│", "a", "│", "1.0", "│"] in lines and ["│", "b", "│", "│"] in lines


def test_a_summary_shows_each_value():
    lines = printed(summary_table({"error": 1.5, "names": ("x", "y"), "count": 12345, "done": True}))
    assert ["│", "count", "│", "12,345", "│"] in lines and ["│", "names", "│", "x,", "y", "│"] in lines


def test_numbers_of_a_flag_are_distinct_and_in_order():
    assert numbers("k", "4, 2,4", example="1,2") == (4, 2)


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "1,,2", "9"])
def test_other_numbers_are_refused(text):
    with pytest.raises(ValueError, match=f"--k={text}: use whole numbers from 1 to 8, .*such as --k=1,2$"):
        numbers("k", text, example="1,2", lowest=1, highest=8)


def test_only_long_cells_wrap_in_a_narrow_terminal():
    columns = {"method": ["m" * 30], "row": ["r" * 60]}
    lines = printed(terminal_table(columns, title="narrow", left=("method", "row"), long=("row",)))
    assert any("m" * 30 in line for line in lines) and not any("r" * 60 in line for line in lines)
