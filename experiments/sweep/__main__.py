"""Train all rows of a table of a paper: python -m experiments.sweep --config=FILE.py [--config.KEY=VALUE ...]

FILE.py has a tuple ROWS with the options of each row. Each row runs in its own process. The same command resumes a
sweep that was stopped. The sweep writes a folder for each row and seed. After every row it writes the table (table.csv,
table.md, table.tex), a record of each run (runs.jsonl) and pictures (error_over_modules.png, trade_offs.png). When all
rows are trained, their steps are timed in turn in one process, so that the times are compared under the same load.
With --jobs=2 two rows are trained at once: on CPUs, small networks train faster on a core each than on two in turn.
With --budget=seconds every row gets the time of the first row. --verify=ROW trains a row once more and compares it with
the first time.
"""

from experiments.ending import ENDING

if __name__ == "__main__":
    ENDING.watch()  # imports take seconds

import shlex
import sys
from collections.abc import Mapping
from typing import Any

from absl import app, flags, logging

from experiments.command_line import USAGE_STATUS, fail, numbers, parse, print_text
from experiments.config_flag import config_flag, define_config
from experiments.configs.contradictions import check_files
from experiments.folders.compilation_cache import use_compilation_cache
from experiments.sweep.budget import check_budget
from experiments.sweep.rows import Rows, Run, read_rows
from kd_local.paths import read_folder

_CONFIG = define_config("A config file with ROWS, such as experiments/configs/contsup/table1.py.")
_SEEDS = flags.DEFINE_string("seeds", None, "Seeds of every row, such as 0,1,2. The default is --config.seed.")
_ROWS = flags.DEFINE_string("rows", None, "Rows to run: numbers (1,3) or options (k=8). The default is all rows.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep. The default is runs/sweep-CONFIG-DATA.")
_TIMED = flags.DEFINE_bool("time", True, "Time the steps of all rows in turn when no run is left.")
_JOBS = flags.DEFINE_integer(
    "jobs", 1, "Runs to train at once. They share CPU cores and a GPU's memory equally; a TPU has one process.", 1, 64
)
_BUDGET = flags.DEFINE_string(
    "budget", None, "Give every row as many steps, seconds or multiply-adds (steps|seconds|multiply-adds) as the first."
)
_VERIFY = flags.DEFINE_string("verify", None, "Rows, as in --rows, to train once more; all epochs are compared.")
_PRINT = flags.DEFINE_bool("print_commands", False, "Print the command of each row and run nothing.")


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # libraries tell which files they read
    try:
        flag = config_flag()
        assert flag is not None
        texts = {name: text for name, text in flag.texts.items() if name != "seed"}
        rows = read_rows(flag.file, texts, {name: flag.given[name] for name in texts})
        _check_together(flag.given)
        seeds = _seeds("seed" in flag.given)
        runs = [Run(row, seed) for seed in seeds for row in _selected(rows)]
        workdir = rows.default_workdir() if _WORKDIR.value is None else read_folder(_WORKDIR.value, "workdir")
        for run in () if _PRINT.value else runs:
            check_files(rows.config(run))
    except (ValueError, OSError) as error:
        fail(error, USAGE_STATUS)
    if _PRINT.value:
        print_text("\n".join(shlex.join(rows.command(run, workdir)) for run in runs))
        return
    use_compilation_cache()
    from experiments.sweep.series import run_series  # imports JAX

    run_series(
        rows,
        runs,
        workdir,
        command=shlex.join(["python", "-m", "experiments.sweep", *sys.argv[1:]]),
        jobs=_JOBS.value,
        budget=_BUDGET.value,
        timed=_TIMED.value,
        verified=_VERIFY.value is not None,
        ending=ENDING,
    )


def _check_together(given: Mapping[str, Any]) -> None:
    """Checks that no flag is ignored because of another one.

    Args:
        given: the keys of the config that the command line sets.

    Raises:
        ValueError: a flag or a key would be ignored, or the budget is unknown.
    """
    if _BUDGET.value is not None:
        check_budget(_BUDGET.value)
        if "optimizer.schedule_steps" in given:
            raise ValueError("--config.optimizer.schedule_steps and --budget both set the schedule: leave one out")
        if _PRINT.value:
            raise ValueError("--print_commands does not know the steps of a --budget: leave one out")
    if _VERIFY.value is not None:
        for flag in ("time", "print_commands", "jobs"):
            if flags.FLAGS[flag].present:
                raise ValueError(f"--{flag} has no effect with --verify: leave one out")
    if _PRINT.value and flags.FLAGS["jobs"].present:
        raise ValueError("--jobs has no effect with --print_commands: leave one out")


def _selected(rows: Rows) -> tuple[str, ...]:
    if _VERIFY.value is None:
        return rows.select(_ROWS.value)
    if _ROWS.value is not None:
        raise ValueError("--rows and --verify both choose rows: leave out --rows")
    return rows.select(_VERIFY.value, flag="verify")


def _seeds(given: bool) -> tuple[int, ...]:
    if _SEEDS.value is None:
        return (_CONFIG.value.seed,)
    if given:
        raise ValueError("--config.seed and --seeds both set the seed: leave one of them out")
    return numbers("seeds", _SEEDS.value, example="0,1,2", highest=2**32 - 1)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
