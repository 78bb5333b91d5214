"""The rows of a sweep, from the tuple `ROWS` of a config file, and the command that trains each row.

An item of `ROWS` is a text with the options of one row. This file does not import JAX, so that errors appear at once.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict


@dataclass(frozen=True)
class Run:
    """A row with one seed."""

    row: str
    seed: int

    def __str__(self) -> str:
        return f"{self.row} seed {self.seed}"

    def folder(self, workdir: Path) -> Path:
        """The run's folder in the folder of the sweep."""
        return workdir / f"{self.row.replace('/', '.')}-seed{self.seed}"


@dataclass(frozen=True)
class Rows:
    """All rows of a config file, from `read_rows`.

    Attributes:
        path: path of the config file.
        options: options that apply to all rows; they precede each row's own.
        names: the options of each row, in the file's order.
        arguments: overrides of the config, as command-line arguments.
        overrides: the values of these overrides by key.
    """

    path: str
    options: str
    names: tuple[str, ...]
    arguments: tuple[str, ...]
    overrides: Mapping[str, Any]
    get_config: Callable[[str], ConfigDict]

    def config(self, run: Run) -> ConfigDict:
        """The config that trains the run."""
        config = self.get_config(self._options(run.row))
        config.update_from_flattened_dict({**self.overrides, "seed": run.seed})
        return config

    def command(self, run: Run, workdir: Path, *, python: str = "python") -> list[str]:
        """The command that trains the run in its folder."""
        return [
            python,
            "-m",
            "experiments.train",
            f"--config={self.path}:{self._options(run.row)}",
            *self.arguments,
            f"--config.seed={run.seed}",
            f"--workdir={run.folder(workdir)}",
        ]

    def default_workdir(self) -> Path:
        """The default folder: `runs/sweep-`, the config's name and options, and all data sets of its rows."""
        data = dict.fromkeys(self.config(Run(row, 0)).data.name for row in self.names)
        return Path("runs") / "-".join(["sweep", Path(self.path).stem, *filter(None, [self.options]), "+".join(data)])

    def select(self, text: str | None) -> tuple[str, ...]:
        """The rows that a text selects; all rows if the text is None.

        Args:
            text: numbers of rows, from 1, such as `1,3`; or options of rows, such as `k=8,loss=contrast`; or, if no row
                has exactly these options, parts of options, such as `contrast`.

        Raises:
            ValueError: the text selects no row.
        """
        if text is None:
            return self.names
        parts = text.split(",")
        if all(part.strip().isdecimal() for part in parts):
            numbers = sorted({int(part) for part in parts})
            if not 1 <= numbers[0] <= numbers[-1] <= len(self.names):
                raise ValueError(
                    f"--rows={text}: use numbers of rows of {self.path}, 1 to {len(self.names)}{self._listed()}"
                )
            return tuple(self.names[number - 1] for number in numbers)
        exact = tuple(row for row in self.names if set(parts) <= set(row.split(",")))
        selected = exact or tuple(row for row in self.names if all(part in row for part in parts))
        if not selected or not text:
            raise ValueError(
                f"--rows={text}: no row of {self.path} has this text; use a part of a row, or numbers{self._listed()}"
            )
        return selected

    def _options(self, row: str) -> str:
        return ",".join(filter(None, [self.options, row]))

    def _listed(self) -> str:
        return ":\n" + "\n".join(f"  {number} {row}" for number, row in enumerate(self.names, start=1))


def read_rows(file: str, arguments: Sequence[str], overrides: Mapping[str, Any]) -> Rows:
    """The rows of a config file.

    Args:
        file: path of the config file; options for all rows may follow after a colon.
        arguments: overrides as command-line arguments, without that of the seed.
        overrides: the values of these overrides by key.

    Raises:
        ValueError: the file has no `ROWS`, a row is not a valid config, or a row sets an option that is given for all
            rows.
    """
    path, _, options = file.partition(":")
    specification = importlib.util.spec_from_file_location("rows_config", path)
    if specification is None or specification.loader is None:
        raise ValueError(f"{path} is not a Python file: use {_with_rows()}")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    names = getattr(module, "ROWS", ())
    if not names:
        raise ValueError(f"{path} has no ROWS, a tuple of its rows' options: use {_with_rows()}")
    rows = Rows(path, options, tuple(names), tuple(arguments), overrides, module.get_config)
    given = {item.partition("=")[0] for item in options.split(",") if item}
    for row in rows.names:
        for name in given & {item.partition("=")[0] for item in row.split(",")}:
            raise ValueError(f"option {name!r} of {file}: its rows set this option; select rows by --rows={name}=...")
        rows.config(Run(row, 0))
    return rows


def overriding_arguments(argv: Sequence[str], takes_value: Callable[[str], bool]) -> list[str]:
    """The arguments of a command line that override keys of the config, except the seed.

    Args:
        argv: a valid command line.
        takes_value: returns True if a value follows the flag with this name when it is written without `=`.
    """
    kept = []
    for i, argument in enumerate(argv):
        name, equals, _ = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name.startswith(("config.", "noconfig.")) and name != "config.seed":
            kept.append(argument)
            if not equals and name.startswith("config.") and takes_value(name):
                kept.append(argv[i + 1])
    return kept


def _with_rows() -> str:
    files = sorted((Path(__file__).parents[1] / "configs").glob("*/*.py"))
    found = [file for file in files if "\nROWS = " in file.read_text()]
    here = Path.cwd()
    return ", ".join(str(file.relative_to(here) if file.is_relative_to(here) else file) for file in found)
