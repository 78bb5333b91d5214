"""Runs a sweep: finds the runs that are done, starts the others, predicts their time, and updates the table.

When no run is left, the steps of all rows are timed in turn, in one process.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from signal import Signals
from statistics import mean

from ml_collections import ConfigDict
from rich.console import Console

from experiments.command_line import USAGE_STATUS, fail
from experiments.ending import Ending
from experiments.folders.folder_lock import FolderLock, Interrupted, InUseError
from experiments.from_config.images import describe_images
from experiments.sweep.error_plot import PICTURE, plot_errors
from experiments.sweep.results import check, collect, finished, write_runs
from experiments.sweep.row_process import execute
from experiments.sweep.rows import Rows, Run
from experiments.sweep.step_time import known_times, write_request
from experiments.sweep.table import CSV, LATEX, MARKDOWN, Line, sweep_table, tabulate, write_tables
from experiments.sweep.trade_offs import TRADE_OFFS, plot_trade_offs
from experiments.sweep.verification import verify
from experiments.tables import say


def run_series(
    rows: Rows, runs: Sequence[Run], workdir: Path, *, command: str, timed: bool, verified: bool, ending: Ending
) -> None:
    """Starts the runs that are not done, and updates table and picture after every run. An error ends the program.

    Args:
        rows: all rows of the config file.
        runs: the wanted runs, in this order.
        workdir: the folder of the sweep.
        command: the command that started the sweep, for the table's heading.
        timed: whether the steps of all rows are timed when no run is left.
        verified: trains the runs once more instead, and compares them.
        ending: of this process.
    """
    try:
        for run in runs:
            check(run.folder(workdir), rows.config(run))
        if verified:
            _check_done(rows, runs, workdir)
        _check_data([rows.config(run) for run in runs if finished(run.folder(workdir), rows.config(run)) is None])
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"workdir {str(workdir)!r} cannot be used: {error.strerror}; use another --workdir", USAGE_STATUS)
    console = Console() if sys.stdout.isatty() else Console(width=140)
    say(console, f"{len(runs)} runs of {len({run.row for run in runs})} rows, workdir: {workdir}")
    ending.left = f"the same command resumes in {workdir}"
    lock = FolderLock(workdir, report=lambda text: say(console, text), stopped=lambda: ending.received is not None)
    try:
        lock.acquire()
        ending.at_end(lock.release)
        ending.loses = lambda: True  # the row saves, and the table is written
        if verified:
            different = verify(rows, runs, workdir, console, ending, lock)
            _end_if_stopped(ending, workdir)
            if different:
                fail(f"{different} of {len(runs)} runs differ from the first time, see above", 1)
            return
        failures, lines = _run_all(rows, runs, workdir, command, console, ending, lock)
        if timed and ending.received is None:
            lines = _time_all(rows, runs, workdir, command, failures, console, ending, lock)
    except InUseError as error:
        fail(error, USAGE_STATUS)
    except Interrupted:
        assert ending.received is not None
        ending.end(f"interrupted by {Signals(ending.received).name} before any run", 128 + ending.received)
    except OSError as error:
        fail(f"{error.strerror or error} ({error.filename or workdir}); the same command resumes from there", 1)
    finally:
        lock.release()
    console.print(sweep_table(lines, title=_title(rows)))
    say(console, f"table: {', '.join(str(workdir / name) for name in (CSV, MARKDOWN, LATEX))}")
    for picture in (PICTURE, TRADE_OFFS):
        if (workdir / picture).exists():
            say(console, f"picture: {workdir / picture}")
    if failures:
        listed = "".join(f"\n  {run}: {error}" for run, error in failures.items())
        message = f"{len(failures)} of {len(runs)} runs failed; the same command tries them again:{listed}"
        if ending.received is None:
            fail(message, 1)
        print(f"error: {message}", file=sys.stderr)
    _end_if_stopped(ending, workdir)


def _end_if_stopped(ending: Ending, workdir: Path) -> None:
    if ending.received is not None:
        name = Signals(ending.received).name
        message = f"interrupted by {name}; saved in {workdir}: the same command resumes from there"
        ending.end(message, 128 + ending.received)


def _check_done(rows: Rows, runs: Sequence[Run], workdir: Path) -> None:
    """Checks that all runs are done.

    Raises:
        ValueError: a run is not done.
    """
    for run in runs:
        if finished(run.folder(workdir), rows.config(run)) is None:
            raise ValueError(f"--verify: {run} is not done in {workdir}: train it first, or choose another row")


def _check_data(configs: Sequence[ConfigDict]) -> None:
    """Check the data sets of the runs that are not done, each once, before the first run starts.

    Raises:
        ValueError, FileNotFoundError: see `experiments.from_config.images.describe_images`.
    """
    for config in {str(config.data.to_dict()): config for config in configs}.values():
        describe_images(config)


def _run_all(
    rows: Rows, runs: Sequence[Run], workdir: Path, command: str, console: Console, ending: Ending, lock: FolderLock
) -> tuple[dict[Run, str], Sequence[Line]]:
    """The error of each failed run, and the table."""
    failures: dict[Run, str] = {}
    clock = _Clock()
    lines = _update(rows, runs, workdir, command, failures)
    for number, run in enumerate(runs, start=1):
        if ending.received is not None:
            break
        which = f"run {number} of {len(runs)}: {run}"
        summary = finished(run.folder(workdir), rows.config(run))
        if summary is not None:
            clock.add(run, summary["train_seconds"])
            say(console, f"{which}, done already")
            continue
        expected = clock.expected(runs[number - 1 :])
        say(console, which if expected is None else f"{which}, about {_shown(expected)} left")
        started = time.monotonic()
        error = execute(
            rows.command(run, workdir, python=sys.executable),
            ending=ending,
            descriptor=lock.descriptor,
            started=lock.name_row,
        )
        if error is None:
            clock.add(run, time.monotonic() - started)
        elif ending.received is None:
            failures[run] = error
        lines = _update(rows, runs, workdir, command, failures)
    return failures, lines


def _time_all(
    rows: Rows,
    runs: Sequence[Run],
    workdir: Path,
    command: str,
    failures: dict[Run, str],
    console: Console,
    ending: Ending,
    lock: FolderLock,
) -> Sequence[Line]:
    """Times the steps of the rows with a finished run whose time is not in the folder. Returns the table."""
    done = {run.row: rows.config(run) for run, summary in collect(rows, runs, workdir).items() if summary is not None}
    known = known_times(workdir, done)
    missing = {row: config for row, config in done.items() if row not in known}
    if missing:
        say(console, f"timing the steps of {len(missing)} rows in turn")
        request = write_request(workdir, missing)
        error = execute(
            [sys.executable, "-m", "experiments.sweep.step_times", str(request)],
            ending=ending,
            descriptor=lock.descriptor,
            started=lock.name_row,
        )
        if error is not None and ending.received is None:
            say(console, f"the steps were not timed: {error}")
    return _update(rows, runs, workdir, command, failures)


def _update(rows: Rows, runs: Sequence[Run], workdir: Path, command: str, failures: dict[Run, str]) -> Sequence[Line]:
    summaries = collect(rows, runs, workdir)
    times = known_times(workdir, {run.row: rows.config(run) for run in summaries})
    lines = tabulate(rows, summaries, failures, times)
    write_tables(lines, workdir, title=_title(rows), command=command)
    write_runs(rows, summaries, workdir)
    plot_errors(summaries, workdir / PICTURE, title=_title(rows))
    plot_trade_offs(lines, workdir / TRADE_OFFS, title=_title(rows))
    return lines


class _Clock:
    """Predicts how long runs take from the runs that are done."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def add(self, run: Run, seconds: float) -> None:
        self._seconds.setdefault(run.row, []).append(seconds)

    def expected(self, runs: Sequence[Run]) -> float | None:
        """Predicted seconds of some runs: for each, the mean of its row's other seeds, or of all rows without any."""
        if not self._seconds:
            return None
        rows = {row: mean(seconds) for row, seconds in self._seconds.items()}
        return sum(rows.get(run.row, mean(rows.values())) for run in runs)


def _shown(seconds: float) -> str:
    hours, seconds = divmod(round(seconds), 3600)
    return f"{hours}:{seconds // 60:02d}:{seconds % 60:02d}"


def _title(rows: Rows) -> str:
    return " ".join(filter(None, [Path(rows.path).stem, rows.options]))
