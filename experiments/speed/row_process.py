"""The process of one row: python -m experiments.speed.row_process, with a request on standard input.

The process reads a request, `{"row": ..., "config": ..., "steps": ...}`, compiles the row's step, and prints its memory
and compilation time. For each further line it times a round, and prints `{"seconds": ..., "host_seconds": ...}`.
"""

import json
import sys
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.memory.observed import tuples
from experiments.speed.rows import PYTORCH, SpeedRow


def main() -> None:
    request = json.loads(sys.stdin.readline())
    row = SpeedRow(**request["row"])
    kind: Any
    if row.framework == PYTORCH:
        jax.config.update("jax_platforms", "cpu")
        from experiments.speed.torch_step import TorchStep as kind
    else:
        from experiments.speed.jax_step import JaxStep as kind
    start = time.perf_counter()
    step = kind(row, ConfigDict(tuples(request["config"])), request["steps"])
    compiled = time.perf_counter() - start
    jax.block_until_ready(step.dispatch())
    known = {"compile_seconds": compiled, "predicted_bytes": step.predicted_bytes, "multiply_adds": step.multiply_adds}
    _answer(known)
    for line in sys.stdin:
        profile = json.loads(line)["profile"]
        if profile:
            jax.profiler.start_trace(profile)
        start = time.perf_counter()
        running = step.dispatch()
        dispatched = time.perf_counter() - start
        jax.block_until_ready(running)
        seconds = time.perf_counter() - start
        if profile:
            jax.profiler.stop_trace()
        _answer({"seconds": seconds, "host_seconds": dispatched, "measured_bytes": step.measured_bytes})


def _answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
