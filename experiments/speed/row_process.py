"""The process of one row: python -m experiments.speed.row_process, with a request on standard input.

The process reads a request, `{"row": ..., "config": ..., "steps": ...}`, compiles the row's step, and prints how long
that took, and what is known of the step. For each further line it runs a round. For `{"profile": null}` it times the
round, and prints `{"seconds": ...}`. For a folder it writes a trace of the round there, and prints what the time was
spent on.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from ml_collections import ConfigDict

from experiments.configs.of_json import tuples
from experiments.speed.profile import shares, traced
from experiments.speed.rows import PYTORCH, SpeedRow, configured

if TYPE_CHECKING:
    from experiments.speed.jax_step import JaxStep
    from experiments.speed.torch_step import TorchStep

_TRACED_STEPS = 10  # single ones: a trace of more takes long to read


def main() -> None:
    request = json.loads(sys.stdin.readline())
    row, config, steps = SpeedRow(**request["row"]), ConfigDict(tuples(request["config"])), request["steps"]
    make = _imported(row)
    start = time.perf_counter()
    step = make(row, config, steps)
    compiled = time.perf_counter() - start
    known = {"predicted_bytes": step.predicted_bytes, "multiply_adds": step.multiply_adds}
    _answer({"compile_seconds": compiled, "device": step.device, **known})
    warm = False
    for line in sys.stdin:
        if not warm:
            jax.block_until_ready(step.dispatch(1))
            warm = True
        profile = json.loads(line)["profile"]
        if profile is not None:
            _answer(_traced(step, min(steps, _TRACED_STEPS), Path(profile)))
            continue
        seconds, dispatched = _timed(step, steps)
        of_step = {"seconds": seconds / steps, "host_seconds": dispatched / steps}
        _answer({**of_step, "measured_bytes": step.measured_bytes})


def _timed(step: "JaxStep | TorchStep", steps: int) -> tuple[float, float]:
    """Seconds of steps, and seconds until their dispatch returned."""
    start = time.perf_counter()
    running = step.dispatch(steps)
    dispatched = time.perf_counter() - start
    jax.block_until_ready(running)
    return time.perf_counter() - start, dispatched


def _traced(step: "JaxStep | TorchStep", steps: int, folder: Path) -> dict[str, Any]:
    """`{"shares": shares of the time by kind of operation}` of a traced round, or `{"problem": why there are none}`."""
    if step.codes is None:
        return {"problem": "steps in PyTorch are not traced"}
    try:
        with traced(folder):
            seconds, _ = _timed(step, steps)
        return {"shares": shares(folder, seconds, step.codes)}
    except Exception as error:  # the times are still good
        return {"problem": str(error).strip() or type(error).__name__}


def _imported(row: SpeedRow) -> "Callable[[SpeedRow, ConfigDict, int], JaxStep | TorchStep]":
    """The function that compiles a row's step, with its imports done."""
    if row.framework == PYTORCH:
        jax.config.update("jax_platforms", "cpu")
        from experiments.speed.torch_step import TorchStep

        return TorchStep
    from experiments.speed.jax_step import JaxStep

    return lambda row, config, steps: JaxStep(configured(row, config), row.form, steps)


def _answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
