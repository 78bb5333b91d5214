"""Train all rows of a config, a table of a paper: python -m experiments.sweep --config=FILE.py [--config.KEY=VALUE ...]

Each row is a process of its own. The same command resumes a sweep that was stopped. The sweep writes a folder for each
row and seed, and after every row table.csv, table.md and error_over_modules.png.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from experiments.command_line import USAGE_STATUS, fail, parse
from experiments.sweep.rows import Rows, Run, overriding_arguments, read_rows

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file with ROWS, as experiments/configs/contsup/table1.py.", lock_config=True
)
_SEEDS = flags.DEFINE_string("seeds", None, "Seeds of every row, as 0,1,2; --config.seed if none.")
_ROWS = flags.DEFINE_string("rows", None, "The rows to run: numbers, as 1,3, or options, as k=8; all if none.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this sweep; runs/sweep-CONFIG-DATA if none.")
_PRINT = flags.DEFINE_bool("print_commands", False, "Print the rows' commands, one a line, and run nothing.")


def main(_: list[str]) -> None:
    try:
        flag: Any = flags.FLAGS["config"]
        rows = read_rows(
            flag.config_filename,
            overriding_arguments(sys.argv, lambda name: not flags.FLAGS[name].boolean),
            config_flags.get_override_values(flag),
        )
        runs = [Run(row, seed) for seed in _seeds(rows) for row in rows.select(_ROWS.value)]
        workdir = Path(_WORKDIR.value) if _WORKDIR.value else rows.default_workdir()
    except (ValueError, TypeError, OSError, SyntaxError) as error:
        fail(error, USAGE_STATUS)
    if _PRINT.value:
        for run in runs:
            print(shlex.join(rows.command(run, workdir)))
        return
    # Only now what takes a second to import.
    from experiments.sweep.series import run_series

    run_series(rows, runs, workdir, command=shlex.join(["python", "-m", "experiments.sweep", *sys.argv[1:]]))


def _seeds(rows: Rows) -> tuple[int, ...]:
    if _SEEDS.value is None:
        return (_CONFIG.value.seed,)
    if "seed" in rows.overrides:
        raise ValueError("--config.seed and --seeds both say the seed: leave one of them out")
    parts = [part.strip() for part in _SEEDS.value.split(",")]
    if not all(part.isdecimal() and int(part) < 2**32 for part in parts):
        raise ValueError(f"--seeds={_SEEDS.value}: use whole numbers from 0 to {2**32 - 1}, such as --seeds=0,1,2")
    return tuple(dict.fromkeys(map(int, parts)))


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
