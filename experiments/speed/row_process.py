"""The process of one row: python -m experiments.speed.row_process, with a request on standard input.

The process reads a request, `{"row": ..., "config": ..., "steps": ...}`, compiles the row's step, and prints how long
that took, and what is known of the step. For each further line it times a round, and prints `{"seconds": ...}`.
"""

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import jax
from ml_collections import ConfigDict

from experiments.memory.observed import tuples
from experiments.speed.rows import PYTORCH, SpeedRow

if TYPE_CHECKING:
    from experiments.speed.jax_step import JaxStep
    from experiments.speed.torch_step import TorchStep


def main() -> None:
    request = json.loads(sys.stdin.readline())
    row, config, steps = SpeedRow(**request["row"]), ConfigDict(tuples(request["config"])), request["steps"]
    kind = _kind(row)
    start = time.perf_counter()
    step = kind(row, config, steps)
    compiled = time.perf_counter() - start
    known = {"predicted_bytes": step.predicted_bytes, "multiply_adds": step.multiply_adds}
    _answer({"compile_seconds": compiled, "device": step.device, **known})
    warm = False
    for line in sys.stdin:
        if not warm:
            jax.block_until_ready(step.dispatch(1))
            warm = True
        profile = json.loads(line)["profile"]
        if profile:
            jax.profiler.start_trace(profile)
        start = time.perf_counter()
        running = step.dispatch(steps)
        dispatched = time.perf_counter() - start
        jax.block_until_ready(running)
        seconds = time.perf_counter() - start
        if profile:
            jax.profiler.stop_trace()
        of_step = {"seconds": seconds / steps, "host_seconds": dispatched / steps}
        _answer({**of_step, "measured_bytes": step.measured_bytes})


def _kind(row: SpeedRow) -> "type[JaxStep | TorchStep]":
    if row.framework == PYTORCH:
        jax.config.update("jax_platforms", "cpu")
        from experiments.speed.torch_step import TorchStep

        return TorchStep
    from experiments.speed.jax_step import JaxStep

    return JaxStep


def _answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
