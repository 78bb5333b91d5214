"""Seconds of a training step of each row of a sweep, and of end-to-end training in the same form.

The process `python -m experiments.sweep.step_times REQUEST` times the rows in turn on synthetic images: in each round a
row runs a few steps, then the next row. So a row and its end-to-end training are compared under the same load of the
machine, which the training times of runs are not.
"""

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.configs.contradictions import step_form
from experiments.configs.of_json import tuples
from experiments.speed.jax_step import JaxStep
from experiments.speed.rows import SCANNED, SEPARATE
from experiments.sweep.step_time import StepTime, add_times, of_step

ROUNDS = 5
_STEPS_OF_A_CALL, _SECONDS_OF_A_ROUND = 10, 1.0


def whole(config: ConfigDict) -> ConfigDict:
    """The config of end-to-end training of the same network, with all images of an update as one batch."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.batch_size *= config.optimizer.accumulate
        config.optimizer.accumulate = 1
        config.method, config.end_to_end.remat = "end_to_end", False
    return config


def form_of(config: ConfigDict) -> str:
    """The form of the step in which the config trains, one of `experiments.speed.rows.FORMS`."""
    form, steps = step_form(config)
    by_default = config.steps_per_call is None and config.step != SEPARATE and jax.default_backend() != "cpu"
    return SCANNED if steps > 1 or by_default else form


def time_steps(configs: Mapping[str, ConfigDict], *, rounds: int = ROUNDS) -> dict[str, StepTime]:
    """Times all rows in turn. The first step of each is not timed.

    Args:
        configs: a config for each row.
        rounds: number of rounds.
    """
    every = dict(configs)
    references = {}
    for row, config in configs.items():
        reference = whole(config)
        same = (other for other, known in every.items() if _work(known) == _work(reference))
        references[row] = next(same, f"end to end of {row}")
        every.setdefault(references[row], reference)
    steps = {row: JaxStep(config, form_of(config), _STEPS_OF_A_CALL) for row, config in every.items()}
    batches = {row: config.optimizer.accumulate for row, config in every.items()}
    taken = {row: _steps_of_a_round(step) for row, step in steps.items()}
    seconds: dict[str, list[float]] = {row: [] for row in every}
    for _ in range(rounds):
        for row, step in steps.items():
            seconds[row].append(_seconds(step, taken[row]) / taken[row] * batches[row])
    found = {}
    for row in configs:
        ratios = [own / of for own, of in zip(seconds[row], seconds[references[row]], strict=True)]
        found[row] = StepTime(
            seconds=statistics.median(seconds[row]),
            lowest=min(seconds[row]),
            highest=max(seconds[row]),
            of_end_to_end=statistics.median(ratios),
            peak_of_end_to_end=steps[row].predicted_bytes / steps[references[row]].predicted_bytes,
            multiply_adds=steps[row].multiply_adds * batches[row],
            rounds=rounds,
            device=steps[row].device,
            jax=jax.__version__,
        )
    return found


def _steps_of_a_round(step: JaxStep) -> int:
    """The steps of a call, or at most as many steps as take a second; all shapes are warm afterwards."""
    jax.block_until_ready(step.dispatch(1))
    return (
        _STEPS_OF_A_CALL
        if step.scanned
        else max(1, min(_STEPS_OF_A_CALL, round(_SECONDS_OF_A_ROUND / _seconds(step, 1))))
    )


def _work(config: ConfigDict) -> tuple[dict[str, Any], str]:
    return of_step(config), form_of(config)


def _seconds(step: JaxStep, steps: int) -> float:
    start = time.perf_counter()
    jax.block_until_ready(step.dispatch(steps))
    return time.perf_counter() - start


def main(arguments: Sequence[str]) -> None:
    """Times the rows of a request and adds them to the file of the folder."""
    request = Path(arguments[0])
    configs = {row: ConfigDict(tuples(values)) for row, values in json.loads(request.read_text()).items()}
    add_times(request.parent, configs, time_steps(configs))
    request.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
