"""Times the rows of the speed table and prints it."""

import json
import os
import selectors
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from experiments.command_line import USAGE_STATUS, fail
from experiments.ending import ENDING
from experiments.folders.folder_lock import lock_folder
from experiments.from_config.experiment import build
from experiments.speed.figures import figures, to_time
from experiments.speed.picture import draw
from experiments.speed.predicted import predict_all
from experiments.speed.processes import RowProcess
from experiments.speed.profile import note
from experiments.speed.records import Compilation, Records, Round
from experiments.speed.rows import PYTORCH, SpeedRow, configured
from experiments.speed.table import speed_table
from experiments.tables import say
from kd_local.files import replace_text, replacing
from kd_local.memory import target
from kd_local.paths import make_folder

LINES, PICTURE = "speed.jsonl", "speed.png"


@dataclass(frozen=True)
class Timing:
    """How the rows are timed.

    Attributes:
        steps: steps of a round.
        rounds: number of timed rounds of each row.
        processes: number of rows that compile at once.
        seconds: time limit of the compilation.
        profile: folder for traces of rows; None: no trace.
        slowest: the number of rows to trace, those with the fewest floating-point operations a second; None: all.
        fresh: compile and time rows again whose figures are in the folder.
    """

    steps: int
    rounds: int
    processes: int
    seconds: float
    profile: Path | None
    slowest: int | None
    fresh: bool


def run(config: ConfigDict, rows: Sequence[SpeedRow], timing: Timing, workdir: Path) -> None:
    """Times the rows whose rounds are missing in the folder, and ends the program with an error if one fails."""
    # The accelerator's memory is left to the processes of the rows.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    _prepare(config, rows, workdir)
    if timing.profile is not None:
        try:
            make_folder(timing.profile, "profile")
        except ValueError as error:
            fail(error, USAGE_STATUS)
    ENDING.left = f"saved in {workdir}: the same command resumes from there"
    console = _console()
    records = Records(workdir, config, timing.steps)
    records.delete_caches_of_other_code()
    if timing.fresh:
        records.forget(rows)
    counts = to_time(rows, records, timing.rounds)
    say(console, f"rows: {len(rows)}, to time: {len(counts)}, workdir: {workdir}")
    known_to_trace = slowest(rows, records, timing.slowest) if timing.profile is not None else []
    started = [row for row in rows if row in counts or row in known_to_trace]
    ready = compiled_rows(started, {"config": config.to_dict(), "steps": timing.steps}, timing, records, console)
    ready = time_rows(ready, counts, records, console)
    traced = {} if timing.profile is None else trace_rows(ready, timing, records, console)
    for each in ready:
        each.end()
    # Rounds of an earlier start are enough for a row that failed now, but the program says that it failed.
    found = [row for row in rows if records.compilation(row) is not None and records.rounds(row)]
    results = [figures(row, rows, records, config.batch_size) for row in found]
    common = {"network": config.network.name, "batch": config.batch_size, "steps": timing.steps}
    spent = [traced.get(row) for row in found]
    lines = [
        {**one, "shares": shares, **common, **records.surroundings} for one, shares in zip(results, spent, strict=True)
    ]
    replace_text(workdir / LINES, "".join(json.dumps(line) + "\n" for line in lines))
    title = f"{config.network.name}, batch {config.batch_size}"
    if results:
        with replacing(workdir / PICTURE) as file:
            draw(results, title=title).savefig(file, dpi=120, format="png")
    console.print(speed_table(results, title=title))
    for row, shares in zip(found, spent, strict=True):
        if shares is not None:
            say(console, f"{row}: {note(shares)}")
    say(console, f"figures: {workdir / LINES}, picture: {workdir / PICTURE}")
    if len(ready) < len(started):
        fail(f"{len(started) - len(ready)} of {len(rows)} rows failed or were late, see above", 1)


def predict(config: ConfigDict, rows: Sequence[SpeedRow], name: str, steps: int, workdir: Path) -> None:
    """Predicts the rows for a TPU target, see `experiments.speed.predicted`."""
    # If a plugin of JAX is installed, JAX would look for its devices.
    jax.config.update("jax_platforms", "cpu")
    try:
        on = target(name)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)
    _prepare(config, rows, workdir)
    predict_all(config, rows, on, steps, workdir, _console())


def _prepare(config: ConfigDict, rows: Sequence[SpeedRow], workdir: Path) -> None:
    """Builds all rows, so that errors are raised before any compilation, and locks the folder."""
    try:
        for row in {row.work: row for row in rows}.values():
            build(configured(row, config), fresh_teachers=True)
        ENDING.at_end(lock_folder(workdir).release)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)
    ENDING.arm()


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=200)


def compiled_rows(
    rows: Sequence[SpeedRow], request: Mapping[str, Any], timing: Timing, records: Records, console: Console
) -> list[RowProcess]:
    """The processes of the rows after compilation. Rows that fail or exceed the limit are reported and left out.

    A row that has no record is compiled with an empty cache in one process, and runs in another, which finds the
    executables in the cache. So the measured memory has no part of the compilation, as in a run that starts again.
    """
    waiting, ready, running = list(rows), [], selectors.DefaultSelector()
    deadline = time.perf_counter() + timing.seconds
    while waiting or running.get_map():
        while waiting and len(running.get_map()) < timing.processes:
            row = waiting.pop(0)
            if records.compilation(row) is None:
                shutil.rmtree(records.cache(row), ignore_errors=True)
            each = RowProcess(row, dict(request), records.log(row), records.cache(row))
            assert each.process.stdout is not None
            running.register(each.process.stdout, selectors.EVENT_READ, each)
        found = running.select(max(0.0, deadline - time.perf_counter()))
        if not found:
            late = [key.data for key in running.get_map().values()]
            for each in late:
                each.end()
            names = ", ".join(str(row) for row in [*(each.row for each in late), *waiting])
            say(console, f"not compiled within {timing.seconds:.0f} s: {names}")
            break
        for key, _ in found:
            each = key.data
            running.unregister(key.fileobj)
            answer, record = each.answer(), records.compilation(each.row)
            if answer is None:
                say(console, f"{each.row}: {each.error()}")
                continue
            seconds = answer["compile_seconds"]
            if record is None:
                records.add_compilation(each.row, Compilation(**answer, cached_seconds=None))
                say(console, f"{each.row}: compiled in {seconds:.1f} s")
                if each.row.cached:
                    each.end()
                    waiting.insert(0, each.row)
                    continue
            elif each.row.cached and record.cached_seconds is None:
                records.add_compilation(each.row, replace(record, cached_seconds=seconds))
            ready.append(each)
    return sorted(ready, key=lambda each: rows.index(each.row))


def time_rows(
    ready: Sequence[RowProcess], counts: Mapping[SpeedRow, int], records: Records, console: Console
) -> list[RowProcess]:
    """Times rounds of all rows in turn. Returns the processes of the rows that did not fail."""
    ready, start = list(ready), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for number in range(max(counts.values(), default=0)):
        for each in [each for each in ready if counts.get(each.row, 0) > number]:
            each.ask({"profile": None})
            if (answer := each.answer()) is None:
                say(console, f"{each.row}: {each.error()}")
                ready.remove(each)
            else:
                records.add_round(each.row, Round(name=f"{start} {number + 1}", **answer))
    return ready


def trace_rows(
    ready: Sequence[RowProcess], timing: Timing, records: Records, console: Console
) -> dict[SpeedRow, dict[str, float]]:
    """Traces a round of rows in JAX. Returns the shares of their time by kind of operation, where they can be read."""
    found = {}
    processes = {each.row: each for each in ready}
    for row in slowest(list(processes), records, timing.slowest):
        each = processes[row]
        assert timing.profile is not None
        each.ask({"profile": str(timing.profile / str(row).replace(" ", "-"))})
        answer = each.answer() or {"problem": each.error()}
        if "shares" in answer:
            found[row] = answer["shares"]
        else:
            say(console, f"{row}: the operations of its trace cannot be read: {answer['problem']}")
    return found


def slowest(rows: Sequence[SpeedRow], records: Records, count: int | None) -> list[SpeedRow]:
    """The rows in JAX with the fewest floating-point operations a second, of those that were timed; None: all."""
    timed = [row for row in rows if row.framework != PYTORCH and records.rounds(row)]
    return sorted(timed, key=lambda row: records.flops(row) or 0.0)[:count]
