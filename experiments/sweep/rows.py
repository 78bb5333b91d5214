"""The rows of a sweep, from the tuple `ROWS` of a config file, and the command that trains each row.

Nothing is compiled or read here, so errors appear at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.config_flag import set_keys
from experiments.configs.checks import check_used, flat_values, unused
from experiments.configs.config_file import config_of, read_module
from experiments.configs.contradictions import check_config, check_warmups
from kd_local.paths import read_path


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
        texts: the keys that the command line sets for all rows, as they were written. A row takes those that it uses.
        overrides: the same, read.
        own: further keys of single rows, such as those of a budget.
    """

    path: str
    options: str
    names: tuple[str, ...]
    texts: Mapping[str, str]
    overrides: Mapping[str, Any]
    get_config: Callable[[str], ConfigDict]
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def config(self, run: Run) -> ConfigDict:
        """The config that trains the run."""
        config = self.get_config(self._options(run.row))
        file = flat_values(config)
        set_keys(config, {**self.overrides, "seed": run.seed})
        set_keys(config, {name: file[name] for name in unused(flat_values(config)) if name in self.overrides})
        set_keys(config, self.own.get(run.row, {}))
        return config

    def used(self, run: Run) -> tuple[str, ...]:
        """The keys of the command line that the run uses."""
        ignored = unused(flat_values(self.config(run)))
        return tuple(name for name in self.texts if name not in ignored)

    def command(self, run: Run, workdir: Path, *, python: str = "python") -> list[str]:
        """The command that trains the run in its folder."""
        own = self.own.get(run.row, {})
        return [
            python,
            "-m",
            "experiments.train",
            f"--config={self.path}:{self._options(run.row)}",
            *(f"--config.{name}={self.texts[name]}" for name in self.used(run) if name not in own),
            *(f"--config.{name}={_text(value)}" for name, value in own.items()),
            f"--config.seed={run.seed}",
            f"--workdir={run.folder(workdir)}",
        ]

    def default_workdir(self) -> Path:
        """The default folder: `runs/sweep-`, the config's name and options, and all data sets of its rows."""
        data = dict.fromkeys(self.config(Run(row, 0)).data.name for row in self.names)
        return Path("runs") / "-".join(["sweep", Path(self.path).stem, *filter(None, [self.options]), "+".join(data)])

    def select(self, text: str | None, *, flag: str = "rows") -> tuple[str, ...]:
        """The rows that a text selects; all rows if the text is None.

        Args:
            text: numbers of rows, from 1, such as `1,3`; or options of rows, such as `k=8,loss=contrast`; or, if no row
                has exactly these options, beginnings of options or of their values, such as `contrast`.
            flag: the flag with the text, for the error's message.

        Raises:
            ValueError: the text selects no row.
        """
        if text is None:
            return self.names
        parts = text.split(",")
        if all(part.strip().isdecimal() and part.isascii() for part in parts):
            numbers = sorted({int(part) for part in parts})
            if not 1 <= numbers[0] <= numbers[-1] <= len(self.names):
                raise ValueError(
                    f"--{flag}={text}: use numbers of rows of {self.path}, 1 to {len(self.names)}{self._listed()}"
                )
            return tuple(self.names[number - 1] for number in numbers)
        exact = tuple(row for row in self.names if set(parts) <= set(row.split(",")))
        selected = exact or tuple(row for row in self.names if all(_begins(part, row) for part in parts))
        if not selected or not text:
            raise ValueError(
                f"--{flag}={text}: no row of {self.path} has this text; use an option, the beginning of its value, or "
                f"numbers{self._listed()}"
            )
        return selected

    def _options(self, row: str) -> str:
        return ",".join(filter(None, [self.options, row]))

    def _listed(self) -> str:
        return ":\n" + "\n".join(f"  {number} {row}" for number, row in enumerate(self.names, start=1))


def read_rows(file: str, texts: Mapping[str, str], overrides: Mapping[str, Any]) -> Rows:
    """The rows of a config file, each checked.

    Args:
        file: its path, and behind a colon options for all of its rows, if any.
        texts: keys to set, as they were written, the seed left out.
        overrides: the same, read.

    Raises:
        ValueError: it has no `ROWS`; a row is no config of it, sets an option given for all, or has a key that would be
            ignored; or no row uses one of the keys.
    """
    path, _, options = file.partition(":")
    place = read_path(path, "config")
    module = read_module(place)
    names = getattr(module, "ROWS", ())
    if not names:
        raise ValueError(f"{path} has no ROWS, a tuple of its rows' options: use {_with_rows()}")
    rows = Rows(
        path, options, tuple(names), dict(texts), overrides, lambda options: config_of(module, place, options or None)
    )
    given = {item.partition("=")[0] for item in options.split(",") if item}
    for row in rows.names:
        for name in given & {item.partition("=")[0] for item in row.split(",")}:
            raise ValueError(f"option {name!r} of {file}: its rows set this option: choose rows by --rows={name}=...")
    runs = [Run(row, 0) for row in rows.names]
    configs = [rows.config(run) for run in runs]
    for row, config in zip(rows.names, configs, strict=True):
        try:
            check_used(config)
            check_config(config)
            check_warmups(config, overrides)
        except ValueError as error:
            raise ValueError(f"row {row} of {path}: {error}") from None
    idle = [unused(flat_values(config)) for config in configs]
    for name in overrides:
        if all(name in ignored for ignored in idle):
            raise ValueError(
                f"--config.{name}: no row of {path} uses it: it has an effect only with {idle[0][name].text}"
            )
    return rows


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _begins(part: str, row: str) -> bool:
    """True if an option of the row, or its value, begins with a text."""
    text = part.strip()
    items = [(item, item.partition("=")[2]) for item in row.split(",")]
    return bool(text) and any(item.startswith(text) or value.startswith(text) for item, value in items)


def _with_rows() -> str:
    files = sorted((Path(__file__).parents[1] / "configs").glob("*/*.py"))
    found = [file for file in files if "\nROWS = " in file.read_text()]
    here = Path.cwd()
    return ", ".join(str(file.relative_to(here) if file.is_relative_to(here) else file) for file in found)
