"""Writes tables of results, as CSV and on the terminal, and lines of text."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from kd_local.files import replace_text


def write_csv(path: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a CSV file with a heading for each name and a line for each row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_text(path, text.getvalue())


def terminal_table(
    columns: Mapping[str, Sequence[str]],
    *,
    title: str,
    left: Collection[str] = (),
    long: Collection[str] = (),
    caption: str | None = None,
) -> Table:
    """A table for the terminal. All texts are shown unchanged: `[x]` and `:x:` in a name are no markup.

    Args:
        columns: the cells of each column, by its heading.
        title: the title above the table.
        left: headings of the columns with text. All other columns are aligned to the right.
        long: headings of the columns whose cells wrap on a narrow terminal, like headings of several words.
        caption: a text below the table.
    """
    table = Table(title=Text(title, "table.title"), caption=None if caption is None else Text(caption, "table.caption"))
    for heading in columns:
        wraps = heading in long or " " in heading
        justify: JustifyMethod = "left" if heading in left else "right"
        table.add_column(Text(heading), justify=justify, no_wrap=not wraps, overflow="fold")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, cells))
    return table


def summary_table(summary: Mapping[str, Any]) -> Table:
    """A table with a line for each value of a summary."""
    table = Table(show_header=False, title="result")
    for name, value in summary.items():
        table.add_row(Text(name), Text(_shown(value)))
    return table


def say(console: Console, text: str) -> None:
    """Prints a text unchanged: without wrapping, highlighting, markup or emoji."""
    console.print(text, soft_wrap=True, highlight=False, markup=False, emoji=False)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}".rstrip("0").rstrip(".")
    if isinstance(value, tuple):
        return ", ".join(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
