"""Runs a sweep: finds the runs that are done, starts the others, predicts their time, and updates the table.

When no run is left, the steps of all rows are timed in turn, in one process.
"""

import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from signal import Signals
from statistics import mean

from ml_collections import ConfigDict
from rich.console import Console

from experiments.command_line import USAGE_STATUS, fail
from experiments.ending import Ending
from experiments.folders.folder_lock import FolderLock, Interrupted, InUseError
from experiments.from_config.images import describe_images
from experiments.sweep.budget import STEPS, Budget, read_budget, with_budget, write_budget
from experiments.sweep.error_plot import PICTURE, plot_errors
from experiments.sweep.records import read_records, write_records
from experiments.sweep.results import Summaries, check, collect, result
from experiments.sweep.row_process import Share, execute, shares
from experiments.sweep.rows import Rows, Run
from experiments.sweep.step_time import StepTime, known_times, write_request
from experiments.sweep.table import CSV, LATEX, MARKDOWN, Line, sweep_table, tabulate, write_tables
from experiments.sweep.trade_offs import TRADE_OFFS, plot_trade_offs
from experiments.sweep.verification import verify
from experiments.tables import say
from kd_local.data import steps_per_epoch


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep and where they are.

    Attributes:
        rows: all rows of the config file.
        runs: the wanted runs, in this order.
        workdir: the folder of the sweep.
        command: the command that started the sweep, for the table's heading.
        jobs: how many runs are trained at once.
        console: for messages.
        ending: of this process.
        lock: of the folder.
    """

    rows: Rows
    runs: Sequence[Run]
    workdir: Path
    command: str
    jobs: int
    console: Console
    ending: Ending
    lock: FolderLock

    @property
    def row_names(self) -> list[str]:
        """The rows of the runs, in their order."""
        return list(dict.fromkeys(run.row for run in self.runs))

    @property
    def title(self) -> str:
        """The name of the config file, with its options."""
        return " ".join(filter(None, [Path(self.rows.path).stem, self.rows.options]))

    def say(self, text: str) -> None:
        """Prints a text."""
        say(self.console, text)

    def execute(self, command: Sequence[str], share: Share | None = None) -> str | None:
        """Runs a command; see `experiments.sweep.row_process.execute`."""
        return execute(
            command,
            ending=self.ending,
            descriptor=self.lock.descriptor,
            started=self.lock.row_started,
            ended=self.lock.row_ended,
            share=share,
        )


def run_series(
    rows: Rows,
    runs: Sequence[Run],
    workdir: Path,
    *,
    command: str,
    jobs: int = 1,
    budget: str | None = None,
    timed: bool = True,
    verified: bool = False,
    ending: Ending,
) -> None:
    """Starts the runs that are not done, and updates table and pictures after every run. An error ends the program.

    Args:
        rows: all rows of the config file.
        runs: the wanted runs, in this order.
        workdir: the folder of the sweep.
        command: the command that started the sweep, for the table's heading.
        jobs: how many runs are trained at once, see `experiments.sweep.row_process`.
        budget: what every row gets as much of as the first, see `experiments.sweep.budget`; None: each has its epochs.
        timed: whether the steps of all rows are timed when no run is left.
        verified: trains the runs once more instead, and compares them.
        ending: of this process.
    """
    try:
        if budget is None:
            _check_folders(rows, runs, workdir, verified=verified)
        records = read_records(workdir)
        missing = [run for run in runs if result(run.folder(workdir), rows.config(run), records.get(run)) is None]
        _check_data([rows.config(run) for run in missing])
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"workdir {str(workdir)!r} cannot be used: {error.strerror}; use another --workdir", USAGE_STATUS)
    console = Console() if sys.stdout.isatty() else Console(width=140)
    lock = FolderLock(workdir, report=lambda text: say(console, text), stopped=lambda: ending.received is not None)
    sweep = Sweep(rows, runs, workdir, command, jobs, console, ending, lock)
    sweep.say(f"{len(runs)} runs of {len(sweep.row_names)} rows, workdir: {workdir}")
    ending.left = f"the same command resumes in {workdir}"
    try:
        lock.acquire()
        ending.at_end(lock.release)
        ending.loses = lambda: True  # the row saves, and the table is written
        if budget is not None:
            sweep = replace(sweep, rows=_with_budget(sweep, budget))
            _check_folders(sweep.rows, runs, workdir, verified=verified)
        if verified:
            different = verify(sweep.rows, runs, workdir, say=sweep.say, execute=sweep.execute, ending=ending)
            _end_if_stopped(sweep)
            if different:
                fail(f"{different} of {len(runs)} runs differ from the first time, see above", 1)
            return
        failures, summaries = _run_all(sweep)
        if timed and ending.received is None:
            done = dict.fromkeys(run.row for run, summary in summaries.items() if summary is not None)
            _time(sweep, {name: sweep.rows.config(Run(name, 0)) for name in done})
        lines = _update(sweep, summaries, failures)
    except (InUseError, ValueError) as error:
        fail(error, USAGE_STATUS)
    except Interrupted:
        assert ending.received is not None
        ending.end(f"interrupted by {Signals(ending.received).name} before any run", 128 + ending.received)
    except OSError as error:
        fail(f"{error.strerror or error} ({error.filename or workdir}); the same command resumes from there", 1)
    finally:
        lock.release()
    console.print(sweep_table(lines, title=sweep.title))
    sweep.say(f"table: {', '.join(str(workdir / name) for name in (CSV, MARKDOWN, LATEX))}")
    for picture in (PICTURE, TRADE_OFFS):
        if (workdir / picture).exists():
            sweep.say(f"picture: {workdir / picture}")
    if failures:
        listed = "".join(f"\n  {run}: {error}" for run, error in failures.items())
        message = f"{len(failures)} of {len(runs)} runs failed; the same command tries them again:{listed}"
        if ending.received is None:
            fail(message, 1)
        print(f"error: {message}", file=sys.stderr)
    _end_if_stopped(sweep)


def _end_if_stopped(sweep: Sweep) -> None:
    received = sweep.ending.received
    if received is not None:
        message = (
            f"interrupted by {Signals(received).name}; saved in {sweep.workdir}: the same command resumes from there"
        )
        sweep.ending.end(message, 128 + received)


def _check_folders(rows: Rows, runs: Sequence[Run], workdir: Path, *, verified: bool) -> None:
    """Checks that each run's folder is new or has this run, and, for a verification, that it is done.

    Raises:
        ValueError: see `experiments.sweep.results.check`; or a run to verify is not done.
    """
    records = read_records(workdir)
    for run in runs:
        folder, config = run.folder(workdir), rows.config(run)
        check(folder, config, records.get(run))
        if verified and result(folder, config, records.get(run)) is None:
            raise ValueError(f"--verify: {run} is not done in {workdir}: train it first, or choose another row")


def _check_data(configs: Sequence[ConfigDict]) -> None:
    """Check the data sets of the runs that are not done, each once, before the first run starts.

    Raises:
        ValueError, FileNotFoundError: see `experiments.from_config.images.describe_images`.
    """
    for config in {str(config.data.to_dict()): config for config in configs}.values():
        describe_images(config)


def _with_budget(sweep: Sweep, budget: str) -> Rows:
    """The rows with the steps of the budget: those of an earlier start, or by the times of their steps.

    Raises:
        ValueError: see `read_budget`; or the steps could not be timed.
    """
    known, rows = read_budget(sweep.workdir, budget, sweep.rows)
    missing = [name for name in sweep.row_names if name not in rows.own]
    if not missing:
        return rows
    configs = {name: sweep.rows.config(Run(name, 0)) for name in missing}
    each = {name: steps_per_epoch(describe_images(config).train, config.batch_size) for name, config in configs.items()}
    times: Mapping[str, StepTime] = {}
    if budget != STEPS:
        _time(sweep, configs)
        times = known_times(sweep.workdir, configs)
        if sweep.ending.received is not None:
            raise Interrupted
        if untimed := sorted(configs.keys() - times.keys()):
            raise ValueError(f"--budget={budget}: the steps of {', '.join(untimed)} were not timed, see above")
    known = known or Budget.of_row(budget, sweep.rows, missing[0], each[missing[0]], times)
    rows = with_budget(rows, missing, known, each, times)
    write_budget(sweep.workdir, known, rows)
    return rows


def _run_all(sweep: Sweep) -> tuple[dict[Run, str], Summaries]:
    """The error of each failed run, and the summaries of all runs."""
    failures: dict[Run, str] = {}
    rows, workdir = sweep.rows, sweep.workdir
    clock = _Clock(sweep.jobs)
    summaries = collect(rows, sweep.runs, workdir)
    write_records(rows, summaries, workdir)
    waiting = deque(enumerate(sweep.runs, start=1))
    free: list[Share | None] = [None] if sweep.jobs == 1 else [*shares(sweep.jobs)]
    running: dict[Future[str | None], tuple[Run, Share | None, float]] = {}
    with ThreadPoolExecutor(sweep.jobs) as threads:
        while running or (waiting and sweep.ending.received is None):
            if free and waiting and sweep.ending.received is None:
                number, run = waiting.popleft()
                which = f"run {number} of {len(sweep.runs)}: {run}"
                if (summary := summaries[run]) is not None:
                    clock.add(run, summary["train_seconds"])
                    sweep.say(f"{which}, done already")
                    continue
                left = clock.expected([run, *(each for _, each in waiting)])
                sweep.say(which if left is None else f"{which}, about {_shown(left)} left")
                share = free.pop(0)
                command = rows.command(run, workdir, python=sys.executable)
                running[threads.submit(sweep.execute, command, share)] = run, share, time.monotonic()
                continue
            _update(sweep, summaries, failures)  # while runs are at work
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run, share, started = running.pop(future)
                free.append(share)
                error = future.result()
                if error is None:
                    clock.add(run, time.monotonic() - started)
                elif sweep.ending.received is None:
                    failures[run] = error
                # Only this run has changed: a look at every folder takes longer than a short run.
                summaries[run] = result(run.folder(workdir), rows.config(run), read_records(workdir).get(run))
                write_records(rows, {run: summaries[run]}, workdir)
    return failures, summaries


def _time(sweep: Sweep, configs: Mapping[str, ConfigDict]) -> None:
    """Times the steps of the rows whose times are not in the folder, and reports an error."""
    known = known_times(sweep.workdir, configs)
    missing = {row: config for row, config in configs.items() if row not in known}
    if missing:
        sweep.say(f"timing the steps of {len(missing)} rows in turn")
        request = write_request(sweep.workdir, missing)
        error = sweep.execute([sys.executable, "-m", "experiments.sweep.step_times", str(request)])
        if error is not None and sweep.ending.received is None:
            sweep.say(f"the steps were not timed: {error}")


def _update(sweep: Sweep, summaries: Summaries, failures: Mapping[Run, str]) -> Sequence[Line]:
    """Writes the table and the pictures."""
    workdir = sweep.workdir
    times = known_times(workdir, {row: sweep.rows.config(Run(row, 0)) for row in {run.row for run in summaries}})
    lines = tabulate(sweep.rows, summaries, failures, times)
    write_tables(lines, workdir, title=sweep.title, command=sweep.command)
    plot_errors(summaries, workdir / PICTURE, title=sweep.title)
    plot_trade_offs(lines, workdir / TRADE_OFFS, title=sweep.title)
    return lines


class _Clock:
    """Predicts how long runs, some of them at once, take from the runs that are done."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._seconds: dict[str, list[float]] = {}

    def add(self, run: Run, seconds: float) -> None:
        self._seconds.setdefault(run.row, []).append(seconds)

    def expected(self, runs: Sequence[Run]) -> float | None:
        """Predicted seconds of some runs: for each, the mean of its row's other seeds, or of all rows without any."""
        if not self._seconds:
            return None
        rows = {row: mean(seconds) for row, seconds in self._seconds.items()}
        return sum(rows.get(run.row, mean(rows.values())) for run in runs) / self._jobs


def _shown(seconds: float) -> str:
    hours, seconds = divmod(round(seconds), 3600)
    return f"{hours}:{seconds // 60:02d}:{seconds % 60:02d}"
