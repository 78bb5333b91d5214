"""Prints the table of a sweep for a document, without runs: python -m experiments.sweep.document FOLDER/table.csv"""

import csv
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from experiments.command_line import USAGE_STATUS, fail, print_text
from experiments.sweep.table import Line, markdown


def read_lines(path: Path) -> list[Line]:
    """The lines of a sweep's table.csv.

    Raises:
        ValueError: the file is not such a table.
        OSError: the file cannot be read.
    """
    hints = get_type_hints(Line)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return [
            Line(**{field.name: _value(hints[field.name], row[field.name]) for field in fields(Line)}) for row in rows
        ]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is not the table.csv of a sweep of this version ({error!r})") from None


def _value(hint: Any, text: str) -> Any:
    kinds = get_args(hint) or (hint,)
    return None if text == "" and type(None) in kinds else kinds[0](text)


def main(arguments: list[str]) -> None:
    """Prints the table of each file."""
    if not arguments:
        fail("no file: use python -m experiments.sweep.document FOLDER/table.csv", USAGE_STATUS)
    for argument in arguments:
        try:
            print_text(markdown(read_lines(Path(argument))))
        except (OSError, ValueError) as error:
            fail(error, USAGE_STATUS)


if __name__ == "__main__":
    main(sys.argv[1:])
