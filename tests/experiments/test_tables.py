"""Tables of results for the terminal, and flags with several numbers."""

import optax
import pytest
from rich.console import Console

from experiments.command_line import numbers
from experiments.tables import say, summary_table, terminal_table
from kd_local.local import EndToEnd
from kd_local.models import create
from kd_local.training.plots import draw_curves
from kd_local.training.records import EpochRecord, SplitScores


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


MARKUP = "a[/y]b[bold]c:fire:d\\[e]"


def test_texts_of_users_are_no_markup():
    table = terminal_table({MARKUP: [MARKUP]}, title=MARKUP, caption=MARKUP)
    summary = summary_table({MARKUP: MARKUP})
    assert sum(line.count(MARKUP) for lines in map(printed, (table, summary)) for line in lines) == 6
    console = Console(width=80)
    with console.capture() as capture:
        say(console, MARKUP)
    assert capture.get() == MARKUP + "\n"


def test_a_title_of_a_picture_is_no_formula(tmp_path):
    title = r"teacher runs/$\x$"
    record = EpochRecord(
        epoch=1.0, step=1, train={"network": {"loss": 1.0}}, test=SplitScores(1.0, 0.5), validation=None, seconds=1.0,
        images_per_second=1.0, data_wait_seconds=0.0, learning_rate=None,
    )  # fmt: skip
    figure = draw_curves([record], [], method=EndToEnd(create("resnet8", classes=2), optax.sgd(0.1)), title=title)
    figure.savefig(tmp_path / "curves.png")
    assert figure.get_suptitle() == title
